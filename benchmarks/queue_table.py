"""Figures of the queue's benchmarks, each beside its bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure, in `unit`.
        bar: what it has to reach, in `unit`.
        at_least: the bar is a floor; otherwise a ceiling.
        unit: such as `ms` or `1/s`.
    """

    name: str
    value: float
    bar: float
    at_least: bool
    unit: str

    @property
    def holds(self) -> bool:
        """Is the bar reached? A figure that is not a number never is."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def print_table(rows: Sequence[Row]) -> int:
    """Print all figures beside their bars; 1 if one is missed, else 0."""
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        bar = f"{'≥' if row.at_least else '≤'} {row.bar:g} {row.unit}"
        mark = "" if row.holds else "  ✗ missed"
        print(f"{row.name:{width}}  {row.value:10.2f} {row.unit:4}  {bar}{mark}", flush=True)
    return 0 if all(row.holds for row in rows) else 1
