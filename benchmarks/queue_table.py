"""Figures of the queue benchmarks, each beside its bar."""

from __future__ import annotations

import logging
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

WIDTH = 84  # characters of the longest name


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: the name of the figure.
        value: the figure, in `unit`.
        bar: the required value, in `unit`, or None.
        at_least: whether the bar is a minimum. Otherwise it is a maximum.
        unit: such as `ms` or `1/s`.
    """

    name: str
    value: float
    bar: float | None
    at_least: bool
    unit: str

    @property
    def holds(self) -> bool:
        """Return whether the bar is reached. NaN never reaches it."""
        if self.bar is None:
            return not math.isnan(self.value)
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:g} {self.unit}"
        return f"{self.name:{WIDTH}}  {self.value:10.2f} {self.unit:4}  {bar}{'' if self.holds else '  ✗ missed'}"


def print_table(rows: Iterable[Row]) -> int:
    """Print each figure beside its bar once measured, and only warnings of the log. Return 1 for a missed bar."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}", flush=True)
    all_hold = True
    for row in rows:
        print(f"{row}  (load {os.getloadavg()[0]:.1f})", flush=True)
        all_hold = all_hold and row.holds
    return 0 if all_hold else 1
