"""Figures of the queue's benchmarks, each beside its bar."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

WIDTH = 84  # characters of the longest name


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure, in `unit`.
        bar: what it has to reach, in `unit`; None where it is only told.
        at_least: the bar is a floor; otherwise a ceiling.
        unit: such as `ms` or `1/s`.
    """

    name: str
    value: float
    bar: float | None
    at_least: bool
    unit: str

    @property
    def holds(self) -> bool:
        """Is the bar reached? A figure that is not a number never is."""
        if self.bar is None:
            return not math.isnan(self.value)
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:g} {self.unit}"
        return f"{self.name:{WIDTH}}  {self.value:10.2f} {self.unit:4}  {bar}{'' if self.holds else '  ✗ missed'}"


def print_table(rows: Iterable[Row]) -> int:
    """Print each figure beside its bar as soon as it is there, of the log only warnings; 1 if one is missed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    all_hold = True
    for row in rows:
        print(row, flush=True)
        all_hold = all_hold and row.holds
    return 0 if all_hold else 1
