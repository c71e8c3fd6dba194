"""Choose how values become 8 bit, from a sample of valid pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = 64
"""A raster of at most so many distinct integers has classes, not measurements."""

DARK_CODES = 128
"""Codes of classes are spread if all are below. Grays of a photograph may be as dark as they are."""

CLASS_SPAN = 1024
"""Codes of land cover and the like have a smaller span. Codes of a wider span must be repeated:"""
MIN_REPETITIONS = 8  # pixels per value, as the median. In measurements hardly a value occurs twice.
COUNTED_VALUES = 1 << 18  # values of a sample in which repetitions are counted

MIN_SPAN = 1e-300
"""A smaller span is constant, since division by it overflows."""

COMPARED_SHAPE = (256, 1024)  # rows and columns: enough to see how neighbors differ
MANY_CLASSES = 16  # values: among fewer, every step is to one nearby
NEARBY_RANKS = 3  # ranks
FIRST_VALUES = 1000  # values
MIN_NEARBY_SHARE = 0.6  # of all changes between neighbors


@dataclass(frozen=True, slots=True)
class Stretch:
    """value = lo + pixel / 255 * (hi - lo), to half a step. `reason` explains the choice of lo and hi."""

    kind: str
    lo: float
    hi: float
    reason: str

    @property
    def identity(self) -> bool:
        """Whether each value is its own pixel."""
        return self.lo == 0.0 and self.hi == 255.0


def few_values(values: NDArray[np.generic]) -> bool:
    """Whether a sample of integers, of any type, has so few distinct ones that they must be classes."""
    return few_near_values(values) or _few_far_values(values)


def few_near_values(values: NDArray[np.generic]) -> bool:
    """Whether they are classes with a span of codes so small that minimum to maximum shows them all."""
    if values.size < 16 or not _are_integers(values):
        return False
    if float(values.max()) - float(values.min()) > CLASS_SPAN:
        return False
    # uint8 subtraction overflows, as does a large float as an integer.
    wide = values if values.dtype.kind == "f" else values.astype(np.int64)
    codes = (wide - wide.min()).astype(np.intp)
    return int(np.count_nonzero(np.bincount(codes))) <= MAX_CLASSES


def _few_far_values(values: NDArray[Any]) -> bool:
    some = values[:: max(1, values.size // FIRST_VALUES)]
    if values.size < 16 or np.unique(some).size > MAX_CLASSES or not _are_integers(values):
        return False
    codes, counts = np.unique(values[:: max(1, values.size // COUNTED_VALUES)], return_counts=True)
    return codes.size <= MAX_CLASSES and float(np.median(counts)) >= MIN_REPETITIONS


def _are_integers(values: NDArray[Any]) -> bool:
    """Whether all are integers. Among floats the first few decide nearly always."""
    if values.dtype.kind != "f":
        return values.dtype.kind in "iub"
    return all(bool((part == np.rint(part)).all()) for part in (values[:FIRST_VALUES], values))


def is_ordered(plane: NDArray[Any]) -> bool:
    """Whether (rows, columns) of few distinct integers are measurements or a photograph, not classes.

    Between neighbors, measurements change to a value nearby, classes to any. Among few values all are near.
    """
    part = plane[: COMPARED_SHAPE[0], : COMPARED_SHAPE[1]]
    known = _distinct(part) if _are_integers(part.reshape(-1)) else part[:0, 0]
    if not MANY_CLASSES < known.size <= MAX_CLASSES:
        return False
    steps = np.abs(np.diff(np.searchsorted(known, part).astype(np.int16), axis=1))
    changes = np.count_nonzero(steps)
    return bool(changes and np.count_nonzero(steps > NEARBY_RANKS) < changes * (1 - MIN_NEARBY_SHARE))


def _distinct(part: NDArray[Any]) -> NDArray[Any]:
    if part.dtype == np.uint8:
        return np.flatnonzero(np.bincount(part.reshape(-1), minlength=256)).astype(np.uint8)
    if np.unique(part[::16]).size > MAX_CLASSES:
        return part[:0, 0]
    return np.unique(part)


def choose_stretch(
    values: NDArray[np.generic], bits: int | None, asked: str | None, *, color: bool, ordered: bool = False
) -> Stretch:
    """Choose the stretch for a sample.

    Args:
        values: the valid sample values, any shape, possibly empty.
        bits: bits per sample where the file declares fewer than its type has.
        asked: the payload's stretch, already checked (`options.STRETCHES`), or `None`.
        color: whether the file declares or names the bands as red, green and blue, which are never classes.
        ordered: whether neighbors hold values nearby, so that few values are no classes.
    """
    if asked is not None:
        return _asked(values, asked)
    if values.dtype == np.uint8:
        return _byte(values, bits, color=color, ordered=ordered)
    if values.size == 0:
        return Stretch("none", 0.0, 255.0, "no valid value in the sample")
    if not color and not ordered and few_near_values(values):
        return _minmax(values, f"at most {MAX_CLASSES} different whole values: classes, all kept apart")
    if not color and not ordered and few_values(values):
        reason = f"at most {MAX_CLASSES} different whole values far apart: classes, the usual ones kept apart"
        return _percentile(values, 0.5, 99.5, reason)
    return _percentile(values, 2.0, 98.0, "2nd to 98th percentile of the valid pixels in the sample")


def _byte(values: NDArray[np.generic], bits: int | None, *, color: bool, ordered: bool) -> Stretch:
    if bits is not None and bits < 8 and (values.size == 0 or int(values.max()) < 2**bits):
        return Stretch("bits", 0.0, float(2**bits - 1), f"the file's {bits} bits, spread over 8")
    varied = values.size > 0 and values.min() != values.max()
    dark = MAX_CLASSES if ordered else DARK_CODES
    if not color and varied and int(values.max()) < dark and few_values(values):
        return _minmax(values, f"few whole values below {dark}, which would all be dark: all kept apart")
    return Stretch("none", 0.0, 255.0, "8-bit values are shown as they are")


def _asked(values: NDArray[np.generic], asked: str) -> Stretch:
    kind, _, rest = asked.partition(":")
    numbers = [float(part) for part in rest.split(",")] if rest else []
    reason = "asked for in the payload"
    if kind == "none":
        return Stretch("none", 0.0, 255.0, reason)
    if kind == "range":
        return Stretch("range", numbers[0], numbers[1], reason)
    if values.size == 0:
        return Stretch("none", 0.0, 255.0, "no valid value in the sample")
    if kind == "minmax":
        return _minmax(values, reason)
    if kind == "percentile":
        return _percentile(values, numbers[0], numbers[1], reason)
    wide = values.astype(np.float64)
    mean, spread = float(wide.mean()), float(wide.std()) * numbers[0]
    return _apart("stddev", mean - spread, mean + spread, reason)


def _minmax(values: NDArray[np.generic], reason: str) -> Stretch:
    return _apart("minmax", float(values.min()), float(values.max()), reason)


def _percentile(values: NDArray[np.generic], low: float, high: float, reason: str) -> Stretch:
    lo, hi = (float(edge) for edge in np.percentile(values.astype(np.float64), (low, high)))
    if lo == hi:
        # The percentiles of a raster with one prevailing value (a mask, rain) would hide all other values.
        lo, hi = float(values.min()), float(values.max())
        reason += "; they are equal, so lowest to highest value instead"
    return _apart("percentile", lo, hi, reason)


def _apart(kind: str, lo: float, hi: float, reason: str) -> Stretch:
    """Return a stretch, or a flat middle gray for a constant raster, so that nothing is divided by zero."""
    if hi - lo > MIN_SPAN:
        return Stretch(kind, lo, hi, reason)
    half = max(abs(lo) * 1e-6, 0.5)
    return Stretch("constant", lo - half, lo + half, f"{reason}; all values are {lo:g}, so a flat picture")
