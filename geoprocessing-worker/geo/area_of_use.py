"""Crops files to the area of use of a CRS. Beyond it, many projections stretch until the rest is a dot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.geo.crs import areal_scales, unshifted
from geoprocessing_worker.geo.pixel_to_crs import Points, is_mercator, period, pixel_to_crs, project
from geoprocessing_worker.raster import SourceHeader

EARTH_RADIUS = 6.4e6  # meters. A file narrower than that in the CRS holds little that is stretched
MAX_AREA_SCALE = 132.0  # times the area scale of the smallest part: as much as Web Mercator at its edge
SMALLEST_QUANTILE = 0.1  # quantile of the area scale that counts as the smallest
MIN_WIDTH_RATIO = 3.0  # ratio of widths, whole file to part, from which the part is used
SAMPLES = 65  # points along each side of the area of use


def usable_part(header: SourceHeader, crs: CRS, xs: Points, ys: Points) -> tuple[Points, Points, Points | float] | None:
    """Return the part of a file that `crs` shows at about the same scale everywhere.

    Args:
        header: of the file.
        crs: the target CRS.
        xs: (rows, columns) of points spread over the file, in `crs`.
        ys: the same.

    Returns:
        x and y of points spread over the part, and the number of source pixels between four of them. `None` if the
        whole file can be shown, as nearly always.

    Raises:
        JobError: `bad_crs`: the file lies outside the area of use.
    """
    if header.transform is None or not crs.is_projected or is_mercator(crs):
        return None  # Mercator is cropped at 85 degrees in any case
    if not _width(xs, ys) * crs.axis_info[0].unit_conversion_factor > EARTH_RADIUS:
        return None
    stretched = _stretched(header, crs, xs.shape)
    if not stretched.any():
        return None
    area = unshifted(crs).area_of_use
    if area is None:
        part = np.where(stretched, np.nan, xs), np.where(stretched, np.nan, ys)
        return *part, header.width * header.height / cell_areas(xs, ys).size
    west, south, east, north = bounds = area.bounds
    found = _in_area_of_use(header, crs, bounds)
    if not np.isfinite(found[0]).sum() >= 3:
        raise invalid_input(
            "bad_crs",
            f"The file lies outside the area where {crs.name} can be used, which runs from {south:g} to {north:g} "
            f"degrees north and from {west:g} to {east:g} degrees east. Choose another system.",
        )
    return found if _width(*found[:2]) * MIN_WIDTH_RATIO < _width(xs, ys) else None


def cell_areas(xs: Points, ys: Points) -> Points:
    """Return (rows - 1, columns - 1) areas of the quadrangles between (rows, columns) points."""
    up, down = slice(None, -1), slice(1, None)
    corners = [(xs[i, j], ys[i, j]) for i, j in ((up, up), (up, down), (down, down), (down, up))]
    with np.errstate(invalid="ignore", over="ignore"):
        twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True))
    areas: Points = np.abs(twice) / 2
    return areas


def _width(xs: Points, ys: Points) -> float:
    sides = [side[np.isfinite(side)] for side in (xs, ys)]
    return max(float(np.ptp(side)) if side.size else 0.0 for side in sides)


def _stretched(header: SourceHeader, crs: CRS, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which points of a grid over the file are shown at a much larger scale than others."""
    columns, rows = np.meshgrid(np.linspace(0, header.width, shape[1]), np.linspace(0, header.height, shape[0]))
    lons, lats = project(_crs(header), CRS.from_epsg(4326), *pixel_to_crs(header)(columns.ravel(), rows.ravel()))
    scales = areal_scales(crs, lons, lats).reshape(shape)
    known = scales[np.isfinite(scales)]
    smallest = np.quantile(known, SMALLEST_QUANTILE) if known.size else np.inf
    stretched: NDArray[np.bool_] = scales > MAX_AREA_SCALE * smallest
    return stretched


def _in_area_of_use(
    header: SourceHeader, crs: CRS, bounds: tuple[float, float, float, float]
) -> tuple[Points, Points, Points]:
    """Return points over the area of use, NaN outside the file, and the number of its pixels between them."""
    west, south, east, north = bounds
    lons, lats = np.meshgrid(
        np.linspace(west, east if east > west else east + 360.0, SAMPLES), np.linspace(north, south, SAMPLES)
    )
    columns, rows = _pixels(header, lons.ravel(), lats.ravel())
    inside = (columns >= 0) & (columns <= header.width) & (rows >= 0) & (rows <= header.height)
    xs, ys = project(CRS.from_epsg(4326), crs, lons.ravel(), lats.ravel())
    xs, ys, columns, rows = (np.where(inside, side, np.nan).reshape(lons.shape) for side in (xs, ys, columns, rows))
    return xs, ys, cell_areas(columns, rows)


def _pixels(header: SourceHeader, lons: Points, lats: Points) -> tuple[Points, Points]:
    """Return columns and rows of points. A longitude that repeats is taken inside the file."""
    crs, affine = _crs(header), header.transform
    if affine is None:
        raise ValueError("a file without a transform")
    xs, ys = project(CRS.from_epsg(4326), crs, lons, lats)
    turn = period(crs)
    if turn is not None:
        first = min((affine @ corner)[0] for corner in ((0, 0), (header.width, 0), (0, header.height)))
        xs = first + (xs - first) % turn
    back = ~affine
    return back.a * xs + back.b * ys + back.c, back.d * xs + back.e * ys + back.f


def _crs(header: SourceHeader) -> CRS:
    if header.crs is None:
        raise ValueError("a file without a CRS")
    return header.crs
