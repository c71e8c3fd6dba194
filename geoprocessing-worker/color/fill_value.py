"""Values that mean "no data" though the file does not say so: found by how far they lie from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENOUGH = 1 << 18  # values; a share of half a percent is then still a thousand of them
FEWEST = 0.005  # of the values: below that, percentiles pass over them anyway
OTHERS = 16  # pixels at least that are not the fill value

# Different other values at least. One value beside another is data, such as rain and no rain. Codes of classes are
# fewer than the values of a measurement, and one of them may run round the picture.
OTHERS_OF_KNOWN, OTHERS_OF_COLLAR, OTHERS_OF_ANY = 2, 16, 32


# Written as "no data" by common programs. Whatever is as large as ENORMOUS is one, too.
KNOWN = frozenset({
    -9999.0, -99999.0, -999999.0, -9999.9, -999.0, 9999.0, 99999.0, 999999.0, -32768.0, -32767.0, 32767.0, 65535.0,
    -2147483648.0, -2147483647.0, 2147483647.0, 4294967295.0, 0.0,
})  # fmt: skip
ENORMOUS = 1e19  # netCDF's own default is 9.97e36, ESRI's the lowest float32; no unit of anything on Earth gets there

SMALL_CODES = 64  # codes of classes in bytes end below it; a picture of so few grays would have brighter ones
EVEN = 0.99  # of the pixels: where one code or 255 holds more, the others are few things on a background, or mistakes
TOLD_APART = 16  # gray levels between one code and the next, at which bytes are clear as they are

EXACT = 1 << 53  # whole numbers below it are doubles

# The gap to the nearest other value, in times the width in which nearly all other values lie.
GAP_OF_KNOWN, GAP_OF_OTHER = 0.5, 3.0


@dataclass(frozen=True, slots=True)
class FillValue:
    """A value, and the part of the valid pixels that hold it, 0 to 1."""

    value: float
    share: float


def find_fill_values(values: NDArray[Any], collar: float | None = None) -> tuple[FillValue, ...]:
    """At most one below and one above all other values, each alone there. Real data is never hidden for it.

    `collar`: a value that runs all round the picture. The gap that it needs is as small as that of a known value.
    """
    sample = values[:: max(1, values.size // ENOUGH)].astype(np.float64)
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
    """255 beside classes with small codes, and nothing in between. With one other value it is the white of a mask."""
    below = values < 255
    # Most pictures end here: counting takes twenty times as long.
    if below.all() or not (below & (values > values.min())).any() or (below & (values >= SMALL_CODES)).any():
        return ()
    counts = np.bincount(values, minlength=256)[:255]
    codes, others = np.flatnonzero(counts), int(counts.sum())
    clear = codes[-1] - codes[0] >= TOLD_APART * (codes.size - 1)
    background = others < (1 - EVEN) * values.size
    if others < OTHERS or clear or background or counts.max() > EVEN * others:
        return ()
    return (FillValue(255, 1 - others / values.size),)


def without(values: NDArray[Any], fills: tuple[FillValue, ...]) -> NDArray[Any]:
    """The values that are none of these."""
    kept = values
    for fill in fills:
        # Found among doubles, which 64-bit numbers were rounded to: their own largest lies a little below.
        wide = kept.dtype.kind in "iu" and kept.dtype.itemsize > 4
        kept = kept[kept.astype(np.float64) != fill.value] if wide else kept[kept != kept.dtype.type(fill.value)]
    return kept


def _as_stored(values: NDArray[Any], found: float) -> float:
    """The value itself where it was found as the double that a whole number of 64 bits was rounded to."""
    if values.dtype.kind not in "iu" or abs(found) < EXACT:
        return found
    return int(values[values.astype(np.float64) == found][0])


def _fill(values: NDArray[np.float64], edge: float, collar: float | None) -> FillValue | None:
    """The edge of all values as a fill value, if it lies far enough from enough others."""
    others = values[values != edge]
    share = 1 - others.size / max(1, values.size)
    if others.size < OTHERS or share < FEWEST:
        return None
    low, high = np.percentile(others, (1, 99))
    width = float(high - low) or float(others.max() - others.min())
    gap = float(np.abs(others - edge).min())
    if abs(edge) >= ENORMOUS:
        return FillValue(edge, share) if gap > width else None
    written = edge in KNOWN and edge != 0
    needed = OTHERS_OF_KNOWN if written else OTHERS_OF_COLLAR if edge and edge == collar else OTHERS_OF_ANY
    if np.unique(others).size < needed:
        return None
    enough = GAP_OF_KNOWN if edge in KNOWN or edge == collar else GAP_OF_OTHER
    return FillValue(edge, share) if gap >= enough * width else None
