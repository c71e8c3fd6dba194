"""Where a system of coordinates is of use: beyond, many of them grow until the rest of a picture is a dot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.geo.crs import areal_scales, unshifted
from geoprocessing_worker.geo.pixel_to_crs import Points, is_mercator, period, pixel_to_crs, project
from geoprocessing_worker.raster import SourceHeader

EARTH_RADIUS = 6.4e6  # metres; no file that stays narrower in the system can hold much that is blown up
BLOWN_UP = 132.0  # times the area of what is shown smallest: as much as Web Mercator does where it ends
SMALLEST = 0.1  # of the file is shown smaller than what is called smallest
WORTH = 3.0  # times as wide the whole must be for a part to be taken
SAMPLES = 65  # points along each side of the area of use


def usable_part(header: SourceHeader, crs: CRS, xs: Points, ys: Points) -> tuple[Points, Points, Points | float] | None:
    """The part of a file that can be shown in `crs` at a scale that is about the same everywhere.

    Args:
        header: the file's.
        crs: the system asked for.
        xs: (rows, columns), points all over the file in `crs`.
        ys: the same.

    Returns:
        x and y of points all over the part, and how many of the file's pixels lie between four of them; `None` where
        the whole file can be shown, as nearly always.

    Raises:
        JobError: `bad_crs`: the file has nothing but what the system blows up.
    """
    if header.transform is None or not crs.is_projected or is_mercator(crs):
        return None  # Mercator is cut at 85 degrees in any case
    if not _width(xs, ys) * crs.axis_info[0].unit_conversion_factor > EARTH_RADIUS:
        return None
    blown_up = _blown_up(header, crs, xs.shape)
    if not blown_up.any():
        return None
    area = unshifted(crs).area_of_use
    if area is None:
        kept = np.where(blown_up, np.nan, xs), np.where(blown_up, np.nan, ys)
        return *kept, header.width * header.height / cell_areas(xs, ys).size
    west, south, east, north = bounds = area.bounds
    found = _in_area_of_use(header, crs, bounds)
    if not np.isfinite(found[0]).sum() >= 3:
        raise invalid_input(
            "bad_crs",
            f"The file lies outside the area where {crs.name} can be used, which runs from {south:g} to {north:g} "
            f"degrees north and from {west:g} to {east:g} degrees east. Choose another system.",
        )
    return found if _width(*found[:2]) * WORTH < _width(xs, ys) else None


def cell_areas(xs: Points, ys: Points) -> Points:
    """(rows - 1, columns - 1) areas of the quadrangles between (rows, columns) points."""
    up, down = slice(None, -1), slice(1, None)
    corners = [(xs[i, j], ys[i, j]) for i, j in ((up, up), (up, down), (down, down), (down, up))]
    with np.errstate(invalid="ignore", over="ignore"):
        twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True))
    areas: Points = np.abs(twice) / 2
    return areas


def _width(xs: Points, ys: Points) -> float:
    sides = [side[np.isfinite(side)] for side in (xs, ys)]
    return max(float(np.ptp(side)) if side.size else 0.0 for side in sides)


def _blown_up(header: SourceHeader, crs: CRS, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of the points of a mesh all over the file are shown much larger than others."""
    columns, rows = np.meshgrid(np.linspace(0, header.width, shape[1]), np.linspace(0, header.height, shape[0]))
    lons, lats = project(_system(header), CRS.from_epsg(4326), *pixel_to_crs(header)(columns.ravel(), rows.ravel()))
    scales = areal_scales(crs, lons, lats).reshape(shape)
    known = scales[np.isfinite(scales)]
    smallest = np.quantile(known, SMALLEST) if known.size else np.inf
    blown_up: NDArray[np.bool_] = scales > BLOWN_UP * smallest
    return blown_up


def _in_area_of_use(
    header: SourceHeader, crs: CRS, bounds: tuple[float, float, float, float]
) -> tuple[Points, Points, Points]:
    """Points all over the system's area of use, NaN where the file does not reach, and its pixels between them."""
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
    """Columns and rows of places; a place that has many names by the one that lies in the file."""
    system, affine = _system(header), header.transform
    if affine is None:
        raise ValueError("a file without a transform")
    xs, ys = project(CRS.from_epsg(4326), system, lons, lats)
    turn = period(system)
    if turn is not None:
        first = min((affine @ corner)[0] for corner in ((0, 0), (header.width, 0), (0, header.height)))
        xs = first + (xs - first) % turn
    back = ~affine
    return back.a * xs + back.b * ys + back.c, back.d * xs + back.e * ys + back.f


def _system(header: SourceHeader) -> CRS:
    if header.crs is None:
        raise ValueError("a file without a coordinate system")
    return header.crs
