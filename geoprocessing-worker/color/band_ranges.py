"""Whether the values of three unnamed bands are so different that they cannot be the colors of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.color.fill_value import find_fill_values, without
from geoprocessing_worker.raster import BandHeader

SMALL_SHARE = 0.03  # of the common range: eight gray levels for a whole band
MIN_VALUES = 256  # values


def unlike_ranges(values: NDArray[Any], bands: Sequence[BandHeader]) -> str | None:
    """Return why one stretch cannot show these (bands, pixels), raw or scaled. `None` if it can.

    Bytes are not stretched, and a constant band fits any stretch.
    """
    if values.dtype.kind not in "iuf" or values.dtype == np.uint8 or values.shape[1] < MIN_VALUES:
        return None
    ranges = [edges for plane in values if (edges := _range(plane))[1] > edges[0]]
    scaled = [_scaled(_range(plane), band) for plane, band in zip(values, bands, strict=True)]
    for found in (ranges, [edges for edges in scaled if edges[1] > edges[0]]):
        if len(found) > 1 and min(high - low for low, high in found) < SMALL_SHARE * _span(found):
            return "the bands' ranges differ: " + ", ".join(f"{low:.6g} to {high:.6g}" for low, high in found)
    return None


def _range(plane: NDArray[Any]) -> tuple[float, float]:
    """Return the 2nd to 98th percentile, without fill values."""
    kept = without(plane, find_fill_values(plane)).astype(np.float64)
    low, high = np.percentile(kept, (2, 98))
    return float(low), float(high)


def _scaled(edges: tuple[float, float], band: BandHeader) -> tuple[float, float]:
    low, high = sorted(edge * band.scale + band.offset for edge in edges)
    return low, high


def _span(ranges: Sequence[tuple[float, float]]) -> float:
    return max(high for _, high in ranges) - min(low for low, _ in ranges)
