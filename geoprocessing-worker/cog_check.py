"""Holds a rewritten GeoTIFF against the one that it was made of: what it says, and what its pixels are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.windows import Window

from geoprocessing_worker.crs import reachable, same
from geoprocessing_worker.geometry import Layout
from geoprocessing_worker.ground import ground, project
from geoprocessing_worker.header import SourceHeader
from geoprocessing_worker.mesh import source_positions
from geoprocessing_worker.opening import open_source
from geoprocessing_worker.raster import Grid
from geoprocessing_worker.verify import failed

EACH_WAY = 4  # places along each side
WINDOW = 64  # pixels a side of what is compared
MOST_OFF = 24.0  # gray levels that a lossy codec may be off on average, at the lowest quality worth having
MOST_LOST = 0.25  # of the places of a reprojected copy, where the source is too busy for a bound to hold

# What must be the same in both headers, as SourceHeader and BandHeader name it.
KEPT = ("width", "height", "georeferencing", "transform", "has_mask", "pixel_is_point", "gcp_residual")
KEPT_OF_BANDS = ("dtype", "description", "scale", "offset", "unit")


def check_copy(source: Path, made: Path, header: SourceHeader, found: SourceHeader, *, lossy: bool) -> None:
    """A copy in place: every fact of the header, and pixels in sixteen windows.

    Raises:
        JobError: `self_check_failed`, class internal.
    """
    _check_facts(header, found, made, lossy=lossy)
    with open_source(source, directory=header.directory) as before, open_source(made) as after:
        count = min(before.count, after.count)
        indexes = list(range(1, count + 1))
        for window in _windows(header):
            one, other = before.read(indexes, window=window), after.read(indexes, window=window)
            if not _equal(one, other, lossy=lossy):
                raise failed(f"its pixels differ round column {window.col_off}, row {window.row_off}", made)


def _check_facts(header: SourceHeader, found: SourceHeader, made: Path, *, lossy: bool) -> None:
    wrong = [name for name in KEPT if not _alike(getattr(header, name), getattr(found, name))]
    if lossy:
        # An alpha band becomes a mask in a JPEG, and with it the picture has one band less.
        wrong = [name for name in wrong if name != "has_mask"]
    elif len(header.bands) != len(found.bands):
        wrong.append("bands")
    for before, after in zip(header.bands, found.bands, strict=False):
        wrong += [name for name in KEPT_OF_BANDS if getattr(before, name) != getattr(after, name)]
        if not _same_number(before.nodata, after.nodata):
            wrong.append("nodata")
    if not _same_tables(header, found):
        wrong.append("palette")
    if (header.crs is None) != (found.crs is None) or (
        header.crs is not None and found.crs is not None and not _same_places(header, found)
    ):
        wrong.append("crs")
    if wrong:
        raise failed(f"it does not say the same of its {', '.join(dict.fromkeys(wrong))}", made)


def _same_places(header: SourceHeader, found: SourceHeader) -> bool:
    """Whether both systems have the picture in the same place, however many words each takes for it."""
    assert header.crs is not None  # noqa: S101 - asked of both before
    assert found.crs is not None  # noqa: S101
    if same(header.crs, found.crs):
        return True
    xs, ys = ground(header)(np.linspace(0, header.width, 5), np.linspace(0, header.height, 5))
    globe = CRS.from_epsg(4326)
    if not (reachable(header.crs, globe) and reachable(found.crs, globe)):
        return False
    one, other = (np.stack(project(crs, globe, xs, ys)) for crs in (header.crs, found.crs))
    return bool(np.allclose(one, other, rtol=0, atol=1e-7, equal_nan=True))


def _alike(one: Any, other: Any) -> bool:
    if hasattr(one, "almost_equals") and other is not None:
        return bool(one.almost_equals(other, precision=1e-9 * max(1.0, abs(one.a))))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-6))
    return bool(one == other)


def _same_number(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.isclose(one, other, rtol=1e-12, equal_nan=True)) or one == other


def _same_tables(header: SourceHeader, found: SourceHeader) -> bool:
    if header.palette is not None and found.palette is not None:
        return _same_colours(header.palette, found.palette)
    if header.palette is None and found.palette is None:
        return True
    # GDAL tells black and white by a table or without, as it likes.
    return header.bands[0].bits == 1 and bool((_two_colours(header) == _two_colours(found)).all())


def _two_colours(header: SourceHeader) -> NDArray[Any]:
    if header.palette is not None:
        return header.palette[:2, :3]
    return np.array([[255] * 3, [0] * 3] if header.miniswhite else [[0] * 3, [255] * 3])


def _same_colours(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """GDAL fills a table up to its type's range with black."""
    entries = min(len(one), len(other))
    return bool((one[:entries] == other[:entries]).all() and not one[entries:, :3].any())


def _equal(one: NDArray[Any], other: NDArray[Any], *, lossy: bool) -> bool:
    if not lossy:
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean()) <= MOST_OFF


def _windows(header: SourceHeader) -> Iterator[Window]:
    width, height = min(WINDOW, header.width), min(WINDOW, header.height)
    for across in np.unique(np.linspace(0, header.width - width, EACH_WAY).astype(int)):
        for down in np.unique(np.linspace(0, header.height - height, EACH_WAY).astype(int)):
            yield Window(int(across), int(down), width, height)


def check_web_copy(source: Path, made: Path, header: SourceHeader, found: SourceHeader) -> None:
    """A reprojected copy: each of sixteen places holds what the source has round there.

    Raises:
        JobError: `self_check_failed`, class internal.
    """
    if found.crs is None or found.transform is None or header.crs is None:
        raise failed("it has no place on Earth", made)
    layout = Layout(Grid(found.width, found.height, found.transform, found.crs), 0, 0, True, False, False, "")
    inverse = source_positions(header, layout, header.width, header.height)
    parts = (np.arange(EACH_WAY) + 0.5) / EACH_WAY
    columns, rows = np.meshgrid(parts * found.width, parts * found.height)
    xs, ys = inverse(np.floor(columns) + 0.5, np.floor(rows) + 0.5)
    verdicts: list[bool] = []
    with open_source(source, directory=header.directory) as before, open_source(made) as after:
        indexes = list(range(1, min(before.count, after.count) + 1))
        for column, row, x, y in zip(columns.flat, rows.flat, xs.flat, ys.flat, strict=True):
            if not (2 <= x < header.width - 3 and 2 <= y < header.height - 3):
                continue
            near = before.read(indexes, window=Window(int(x) - 2, int(y) - 2, 5, 5)).reshape(len(indexes), -1)
            pixel = after.read(indexes, window=Window(int(column), int(row), 1, 1)).reshape(len(indexes))
            verdicts.append(_between(pixel, near))
    if verdicts.count(False) > max(1, len(verdicts) * MOST_LOST):
        raise failed(f"in {verdicts.count(False)} of {len(verdicts)} places it shows something else", made)


def _between(pixel: NDArray[Any], near: NDArray[Any]) -> bool:
    if pixel.dtype.kind == "f" and np.isnan(near).any():
        return True
    low, high = near.min(axis=1).astype(float), near.max(axis=1).astype(float)
    leave = 24.0 if pixel.dtype == np.uint8 else 1e-6 * np.maximum(np.abs(low), np.abs(high))
    return bool(((pixel >= low - leave) & (pixel <= high + leave)).all())
