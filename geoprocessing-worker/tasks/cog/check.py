"""Compare a rewritten GeoTIFF with its source: header and pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.windows import Window

from geoprocessing_worker.geo.approx_transform import source_positions
from geoprocessing_worker.geo.crs import reachable, same
from geoprocessing_worker.geo.layout import Layout
from geoprocessing_worker.geo.pixel_to_crs import Points, period, pixel_to_crs, project
from geoprocessing_worker.output.verify import failed
from geoprocessing_worker.raster import Grid, SourceHeader
from geoprocessing_worker.source.gdal import open_source
from geoprocessing_worker.source.gdal_errors import corrupt
from geoprocessing_worker.source.sampling import OpenLevel, internal_mask, open_level

POINTS_PER_SIDE = 4  # points along each side
SEARCHED_PER_SIDE = 16  # points along each side of a source, to be found in a reprojected copy
COMPARED_POINTS = 40  # of these points
WINDOW = 64  # pixels a side of a comparison
CELL = 16  # pixels a side of the units of JPEG with subsampled colors, and of WebP
MAX_ERROR = 24.0  # gray levels that the mean of a cell may be off
MAX_ERROR_AT_WORST = 60.0  # more of them at quality 1, where JPEG rounds the mean to multiples of 100
MAX_PIXEL_ERROR = 255.0  # more of them for a single pixel at quality 1
MAX_LOST_SHARE = 0.25  # of the points of a reprojected copy, where the source is too busy for a bound to hold

# Fields of SourceHeader and BandHeader that must be equal in both headers.
SAME_FACTS = ("width", "height", "has_mask", "pixel_is_point", "gcp_residual")
SAME_BAND_FACTS = ("dtype", "description", "scale", "offset", "unit")


def check_copy(source: Path, made: Path, header: SourceHeader, found: SourceHeader, *, quality: int | None) -> None:
    """Check a copy in place: the header, and pixels in sixteen windows. `quality` is that of a lossy codec.

    Raises:
        JobError: `corrupt_block` if the source reads differently each time, else `self_check_failed`, class internal.
    """
    _check_facts(header, found, made, lossy=quality is not None)
    with open_level(source, header, header.full) as before, open_level(made, found, found.full) as after:
        count = min(before.dataset.count, after.dataset.count)
        indexes = list(range(1, count + 1))
        for window in _windows(header):
            one, other = before.dataset.read(indexes, window=window), after.dataset.read(indexes, window=window)
            hidden = _hidden(before, header, window)
            good = np.array_equal(hidden, _hidden(after, found, window))
            if quality is not None:
                good = good and _alike_where_visible(one, other, hidden, quality)
            else:
                good = good and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
            if not good:
                refuse_unsteady(source, header, indexes, window, one)
                raise failed(f"its pixels differ around column {window.col_off}, row {window.row_off}", made)


def refuse_unsteady(
    source: Path, header: SourceHeader, indexes: list[int], window: Window, before: NDArray[Any]
) -> None:
    """Refuse a source with pixels that differ from one decoding to the next.

    Decoders leave parts of a damaged block unwritten, so its pixels are leftovers in memory.

    Raises:
        JobError: `corrupt_block`.
    """
    with open_source(source, directory=header.directory, own=True) as again:
        now = again.read(indexes, window=window)
    if not np.array_equal(before, now, equal_nan=now.dtype.kind in "fc"):
        raise corrupt("a block reads differently each time")


def _check_facts(header: SourceHeader, found: SourceHeader, made: Path, *, lossy: bool) -> None:
    wrong = [name for name in SAME_FACTS if not _equal(getattr(header, name), getattr(found, name))]
    if lossy:
        # An alpha band becomes a mask in a JPEG, and the picture has one band less.
        wrong = [name for name in wrong if name != "has_mask"]
        if _hides(header) and not _hides(found):
            wrong.append("mask")
    elif len(header.bands) != len(found.bands):
        wrong.append("bands")
    for before, after in zip(header.bands, found.bands, strict=False):
        wrong += [name for name in SAME_BAND_FACTS if getattr(before, name) != getattr(after, name)]
        if not _same_number(before.nodata, after.nodata):
            wrong.append("nodata")
    if not _same_tables(header, found):
        wrong.append("palette")
    wrong += different_place(header, found)
    if wrong:
        raise failed(f"it differs in its {', '.join(dict.fromkeys(wrong))}", made)


def _hides(header: SourceHeader) -> bool:
    return header.has_mask or any(band.colorinterp == "alpha" for band in header.bands)


def different_place(header: SourceHeader, found: SourceHeader) -> list[str]:
    """Return which of `georeferencing`, `transform` and `crs` differ."""
    wrong = [] if header.georeferencing is found.georeferencing else ["georeferencing"]
    # Without a coordinate system GDAL may derive a transform from half of the tags.
    lost = header.crs is None and found.transform is None
    if not lost and not _equal(header.transform, found.transform):
        wrong.append("transform")
    return wrong if same_places(header, found.crs) else [*wrong, "crs"]


def same_places(header: SourceHeader, found: CRS | None) -> bool:
    """Whether a system puts the picture in the same place as its own, in whatever notation."""
    if header.crs is None or found is None:
        return header.crs is found
    if same(header.crs, found):
        return True
    xs, ys = pixel_to_crs(header)(np.linspace(0, header.width, 5), np.linspace(0, header.height, 5))
    globe = CRS.from_epsg(4326)
    if not (reachable(header.crs, globe) and reachable(found, globe)):
        return False
    one, other = (np.stack(project(crs, globe, xs, ys)) for crs in (header.crs, found))
    return bool(np.allclose(one, other, rtol=0, atol=1e-7, equal_nan=True))


def _equal(one: Any, other: Any) -> bool:
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
        return _same_colors(header.palette, found.palette)
    if header.palette is None and found.palette is None:
        return True
    # GDAL stores black and white with or without a table.
    return header.bands[0].bits == 1 and bool((_two_colors(header) == _two_colors(found)).all())


def _two_colors(header: SourceHeader) -> NDArray[Any]:
    if header.palette is not None:
        return header.palette[:2, :3]
    return np.array([[255] * 3, [0] * 3] if header.miniswhite else [[0] * 3, [255] * 3])


def _same_colors(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Compare, since GDAL pads a table with black up to its type's range."""
    entries = min(len(one), len(other))
    return bool((one[:entries] == other[:entries]).all() and not one[entries:, :3].any())


def all_nodata(block: NDArray[Any], nodata: tuple[float | None, ...]) -> NDArray[np.bool_]:
    """Return True where each band of a block has its nodata value."""
    found: NDArray[np.bool_] = np.ones(block.shape[1:], dtype=np.bool_)
    for band, value in zip(block, nodata, strict=True):
        found &= np.isnan(band) if value is not None and np.isnan(value) else band == value
    return found


def _hidden(source: OpenLevel, header: SourceHeader, window: Window, *, by_nodata: bool = False) -> NDArray[np.bool_]:
    """Return (rows, columns), true where a mask or an alpha band hides all, or nodata if `by_nodata`.

    GDAL counts alpha bands only as the second or the fourth.
    """
    dataset = source.dataset
    hidden = np.zeros((int(window.height), int(window.width)), dtype=np.bool_)
    for band in header.bands:
        if band.colorinterp == "alpha":
            hidden |= dataset.read(band.index, window=window) == 0
    if header.has_mask:
        hidden |= internal_mask(source, tuple(band.index for band in header.bands), window) == 0
    if by_nodata and dataset.nodata is not None:
        hidden |= all_nodata(dataset.read(window=window), dataset.nodatavals)
    return hidden


def _alike_where_visible(one: NDArray[Any], other: NDArray[Any], hidden: NDArray[np.bool_], quality: int) -> bool:
    """Whether fully visible cells of 16 pixels a side, the units of lossy codecs, have the same means.

    A codec may change colors under hidden pixels, and blends them with their neighbors within a cell. At low quality
    single pixels of a busy picture are far off, but the mean of a cell is not.
    """
    wrong, compared = 0.0, 0
    for top in range(0, hidden.shape[0], CELL):
        for left in range(0, hidden.shape[1], CELL):
            cell = np.s_[top : top + CELL, left : left + CELL]
            if hidden[cell].any():
                continue
            off = one[:, *cell].mean(axis=(1, 2)) - other[:, *cell].mean(axis=(1, 2))
            wrong += float(np.abs(off).mean()) * hidden[cell].size
            compared += hidden[cell].size
    return wrong <= (MAX_ERROR + MAX_ERROR_AT_WORST / quality) * compared


def _windows(header: SourceHeader) -> Iterator[Window]:
    """Yield windows that begin at the border of a cell."""
    width, height = min(WINDOW, header.width), min(WINDOW, header.height)
    for across in np.unique(np.linspace(0, header.width - width, POINTS_PER_SIDE).astype(int) // CELL * CELL):
        for down in np.unique(np.linspace(0, header.height - height, POINTS_PER_SIDE).astype(int) // CELL * CELL):
            yield Window(int(across), int(down), width, height)


def check_web_copy(source: Path, made: Path, header: SourceHeader, found: SourceHeader, *, quality: int | None) -> None:
    """Check a reprojected copy: pixels at some points match the source's values around them, or both are hidden.

    `quality` is that of a lossy codec.

    Raises:
        JobError: `corrupt_block` if the source reads differently each time, else `self_check_failed`, class internal.
    """
    if found.crs is None or found.transform is None or header.crs is None:
        raise failed("it has no place on Earth", made)
    leeway = 0.0 if quality is None else MAX_ERROR + MAX_PIXEL_ERROR / quality
    by_nodata = header.has_mask and not found.has_mask  # GDAL's warp prefers nodata to a mask
    if not _seen(header, found)[0].size:
        raise failed("it is in another place", made)
    verdicts: dict[bool, list[bool]] = {True: [], False: []}  # by whether the source hides the point
    with open_level(source, header, header.full) as before, open_level(made, found, found.full) as after:
        # Alpha is compared as visibility: in a copy it may have become a mask.
        colors = sum(band.colorinterp != "alpha" for band in header.bands)
        indexes = list(range(1, min(colors, after.dataset.count) + 1))
        for (column, row), (x, y) in _places(header, found):
            near, pixel = Window(x - 2, y - 2, 5, 5), Window(column, row, 1, 1)
            hidden = _hidden(before, header, near, by_nodata=by_nodata)
            if hidden.any() and not hidden.all():
                continue
            values = before.dataset.read(indexes, window=near)
            good = bool(hidden.all() == _hidden(after, found, pixel, by_nodata=by_nodata).all())
            if good and not hidden.all():
                good = _between(after.dataset.read(indexes, window=pixel).ravel(), values, leeway)
            verdicts[bool(hidden.all())].append(good)
            if not good:
                refuse_unsteady(source, header, indexes, near, values)
    for group in verdicts.values():
        wrong = group.count(False)
        if wrong > max(1, len(group) * MAX_LOST_SHARE):
            raise failed(f"in {wrong} of {len(group)} places it shows something else", made)


def _places(header: SourceHeader, found: SourceHeader) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield pixels of a reprojected copy, as (column, row), each with its pixel of the source."""
    columns, rows = _seen(header, found)
    layout = Layout(Grid(found.width, found.height, found.transform, found.crs), 0, 0, True, False, False, "")
    xs, ys = source_positions(header, layout, header.width, header.height)(columns + 0.5, rows + 0.5)
    # Comparisons with NaN are false.
    within = np.flatnonzero((xs >= 2) & (xs < header.width - 3) & (ys >= 2) & (ys < header.height - 3))
    for place in within[:: max(1, len(within) // COMPARED_POINTS)]:
        yield (int(columns[place]), int(rows[place])), (int(xs[place]), int(ys[place]))


def _seen(header: SourceHeader, found: SourceHeader) -> tuple[Points, Points]:
    """Return columns and rows of the copy's pixels under points all over the source."""
    if header.crs is None or found.crs is None or found.transform is None:
        return np.zeros(0), np.zeros(0)
    parts = (np.arange(SEARCHED_PER_SIDE) + 0.5) / SEARCHED_PER_SIDE
    across, down = np.meshgrid(parts * header.width, parts * header.height)
    xs, ys = project(header.crs, found.crs, *pixel_to_crs(header)(across.ravel(), down.ravel()))
    turn, middle = period(found.crs), (found.transform @ (found.width / 2, 0))[0]
    with np.errstate(invalid="ignore"):
        if turn is not None:
            xs = xs - np.round((xs - middle) / turn) * turn
        back = ~found.transform
        columns, rows = back.a * xs + back.b * ys + back.c, back.d * xs + back.e * ys + back.f
        seen = (columns >= 0) & (columns < found.width) & (rows >= 0) & (rows < found.height)
    return np.floor(columns[seen]), np.floor(rows[seen])


def _between(pixel: NDArray[Any], near: NDArray[Any], leeway: float) -> bool:
    """Whether each band of a pixel is within the range of the source pixels around it, give or take `leeway`."""
    near = near.reshape(len(near), -1)
    if pixel.dtype.kind == "c":
        return bool((pixel[:, None] == near).any(axis=1).all())  # complex numbers are only picked
    if pixel.dtype.kind == "f" and np.isnan(near).any():
        return True
    low, high = near.min(axis=1).astype(float), near.max(axis=1).astype(float)
    rounding = 24.0 if pixel.dtype == np.uint8 else 1e-6 * np.maximum(np.abs(low), np.abs(high))
    return bool(((pixel >= low - leeway - rounding) & (pixel <= high + leeway + rounding)).all())
