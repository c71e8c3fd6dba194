"""Find undeclared fill values by their distance from all other values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLED_VALUES = 1 << 18  # values: half a percent of them is still a thousand
MIN_SHARE = 0.005  # of the values: percentiles ignore fewer
MIN_OTHERS = 16  # pixels at least that are not the fill value

# Distinct other values at least. One value beside another is data, such as rain and no rain. Codes of classes are
# fewer than the values of a measurement, and one of them may surround the picture.
OTHERS_OF_KNOWN, OTHERS_OF_COLLAR, OTHERS_OF_ANY = 2, 16, 32


# Common programs write these as "no data". So is any value from ENORMOUS up.
KNOWN_VALUES = frozenset({
    -9999.0, -99999.0, -999999.0, -9999.9, -999.0, 9999.0, 99999.0, 999999.0, -32768.0, -32767.0, 32767.0, 65535.0,
    -2147483648.0, -2147483647.0, 2147483647.0, 4294967295.0, 0.0,
})  # fmt: skip
ENORMOUS = 1e19  # netCDF's default is 9.97e36, ESRI's the lowest float32. No unit of anything on Earth gets there.

SMALL_CODES = 64  # codes of classes in bytes are below. A picture of so few grays would have brighter ones.
MAX_SHARE = 0.99  # of the pixels: a more frequent value is the background of few features, or these are mistakes
DISTINCT_LEVELS = 16  # gray levels between neighboring codes, at which bytes are distinct without a stretch

MAX_EXACT = 1 << 53  # whole numbers below it are doubles

# The gap to the nearest other value, as a multiple of the width of nearly all other values.
GAP_OF_KNOWN, GAP_OF_OTHER = 0.5, 3.0


@dataclass(frozen=True, slots=True)
class FillValue:
    """A value, and its share of the valid pixels, 0 to 1."""

    value: float
    share: float


def find_fill_values(values: NDArray[Any], collar: float | None = None) -> tuple[FillValue, ...]:
    """Return at most one fill value below and one above all other values. Real data is never hidden for it.

    `collar`: a value all round the picture. It needs as small a gap as a known fill value.
    """
    sample = values[:: max(1, values.size // SAMPLED_VALUES)].astype(np.float64)
    found: list[FillValue] = []
    rest = sample
    for _ in range(2):
        candidates = [
            fill
            for edge in (rest.min(initial=np.inf), rest.max(initial=-np.inf))
            if (fill := _fill(rest, float(edge), collar))
        ]
        if not candidates:
            break
        farthest = max(candidates, key=lambda fill: abs(fill.value - float(np.median(rest))))
        share = float(np.count_nonzero(sample == farthest.value)) / sample.size
        found.append(FillValue(_as_stored(values, farthest.value), share))
        rest = rest[rest != farthest.value]
    return tuple(found)


def find_byte_fill(values: NDArray[np.uint8]) -> tuple[FillValue, ...]:
    """Find 255 beside small class codes, with nothing in between. With one other value it is the white of a mask."""
    below = values < 255
    # Most pictures return here. Counting takes twenty times as long.
    if below.all() or not (below & (values > values.min())).any() or (below & (values >= SMALL_CODES)).any():
        return ()
    counts = np.bincount(values, minlength=256)[:255]
    codes, others = np.flatnonzero(counts), int(counts.sum())
    clear = codes[-1] - codes[0] >= DISTINCT_LEVELS * (codes.size - 1)
    background = others < (1 - MAX_SHARE) * values.size
    if others < MIN_OTHERS or clear or background or counts.max() > MAX_SHARE * others:
        return ()
    return (FillValue(255, 1 - others / values.size),)


def without(values: NDArray[Any], fills: tuple[FillValue, ...]) -> NDArray[Any]:
    """Return the values without these fill values."""
    kept = values
    for fill in fills:
        # Found as doubles, to which 64-bit numbers are rounded: the largest 64-bit number is a little lower.
        wide = kept.dtype.kind in "iu" and kept.dtype.itemsize > 4
        kept = kept[kept.astype(np.float64) != fill.value] if wide else kept[kept != kept.dtype.type(fill.value)]
    return kept


def _as_stored(values: NDArray[Any], found: float) -> float:
    """Return the stored value of a double that was rounded from a 64-bit integer."""
    if values.dtype.kind not in "iu" or abs(found) < MAX_EXACT:
        return found
    return int(values[values.astype(np.float64) == found][0])


def _fill(values: NDArray[np.float64], edge: float, collar: float | None) -> FillValue | None:
    """Return the edge of all values as a fill value, if it is far enough from enough others."""
    others = values[values != edge]
    share = 1 - others.size / max(1, values.size)
    if others.size < MIN_OTHERS or share < MIN_SHARE:
        return None
    low, high = np.percentile(others, (1, 99))
    width = float(high - low) or float(others.max() - others.min())
    gap = float(np.abs(others - edge).min())
    if abs(edge) >= ENORMOUS:
        return FillValue(edge, share) if gap > width else None
    written = edge in KNOWN_VALUES and edge != 0
    needed = OTHERS_OF_KNOWN if written else OTHERS_OF_COLLAR if edge and edge == collar else OTHERS_OF_ANY
    if np.unique(others).size < needed:
        return None
    enough = GAP_OF_KNOWN if edge in KNOWN_VALUES or edge == collar else GAP_OF_OTHER
    return FillValue(edge, share) if gap >= enough * width else None
