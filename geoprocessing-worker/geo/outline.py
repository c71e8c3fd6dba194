"""The outline of a picture in longitude and latitude, for web maps and catalogs."""

from __future__ import annotations

import numpy as np
from pyproj import CRS

from geoprocessing_worker.geo.crs import reachable, same
from geoprocessing_worker.geo.pixel_to_crs import Points, project
from geoprocessing_worker.raster import Grid

NODES = 33  # per side: between nodes, map projections curve by less than a pixel


def lonlat_ring(grid: Grid) -> list[tuple[float, float]] | None:
    """Return the densified outline of a grid in longitude and latitude, counterclockwise from the upper left."""
    steps = np.linspace(0.0, 1.0, 9)[:-1]
    columns = np.concatenate([0 * steps, steps, 0 * steps + 1, 1 - steps]) * grid.width
    rows = np.concatenate([steps, 0 * steps + 1, 1 - steps, 0 * steps]) * grid.height
    found = _lonlat(grid, columns, rows)
    if found is None or not (np.isfinite(found[0]).all() and np.isfinite(found[1]).all()):
        return None
    lons, lats = found
    return [(float(lon), float(lat)) for lon, lat in zip(_in_one_turn(grid, lons), lats, strict=True)]


def lonlat_mesh(grid: Grid) -> tuple[Points, Points] | None:
    """Return longitudes and latitudes of NODES x NODES points from edge to edge, continuous across the antimeridian.

    A point off the Earth is not finite. `None` without a georeference, or on another planet.
    """
    columns, rows = np.meshgrid(np.linspace(0.0, grid.width, NODES), np.linspace(0.0, grid.height, NODES))
    found = _lonlat(grid, columns.ravel(), rows.ravel())
    if found is None:
        return None
    lons, lats = (side.reshape(columns.shape) for side in found)
    return _in_one_turn(grid, lons), lats


def _lonlat(grid: Grid, columns: Points, rows: Points) -> tuple[Points, Points] | None:
    globe = CRS.from_epsg(4326)
    if grid.transform is None or grid.crs is None or not reachable(grid.crs, globe):
        return None
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    return project(grid.crs, globe, a * columns + b * rows + c, d * columns + e * rows + f)


def _in_one_turn(grid: Grid, lons: Points) -> Points:
    """Remove the jump at the antimeridian, which PROJ adds when it transforms from another CRS."""
    if grid.crs is None or same(grid.crs, CRS.from_epsg(4326)):
        return lons
    finite = np.isfinite(lons)
    if not finite.all():
        middle = float(np.median(lons[finite])) if finite.any() else 0.0
        with np.errstate(invalid="ignore"):
            whole: Points = (lons - middle + 180.0) % 360.0 - 180.0 + middle
        return whole
    for axis in reversed(range(lons.ndim)):
        lons = np.unwrap(lons, axis=axis, period=360.0)
    middle = (lons.min() + lons.max()) / 2
    if abs(middle) > 270.0:
        lons -= 360.0 * np.round(middle / 360.0)  # rounding at the seam put the start on the other side
    return lons


def lonlat_bounds(grid: Grid) -> tuple[float, float, float, float] | None:
    """Return (west, south, east, north) in degrees. East exceeds 180 if the picture crosses the antimeridian."""
    ring = lonlat_ring(grid)
    if ring is None:
        return None
    lons, lats = [point[0] for point in ring], [point[1] for point in ring]
    if abs(lons[-1] - lons[0]) > 180.0 and not (grid.crs is None or grid.crs.is_geographic):
        # The outline goes around the Earth, so that a pole is inside.
        north = sum(lats) > 0
        return (-180.0, min(lats), 180.0, 90.0) if north else (-180.0, -90.0, 180.0, max(lats))
    return min(lons), min(lats), max(lons), max(lats)
