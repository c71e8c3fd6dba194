"""The outline of a picture in longitude and latitude, for web maps and for those who look pictures up."""

from __future__ import annotations

import numpy as np
from pyproj import CRS

from geoprocessing_worker.crs import reachable
from geoprocessing_worker.ground import project
from geoprocessing_worker.raster import Grid


def lonlat_ring(grid: Grid) -> list[tuple[float, float]] | None:
    """The outline of a grid in longitude and latitude, densified, counterclockwise from the upper left; not cut."""
    if grid.transform is None or grid.crs is None or not reachable(grid.crs, CRS.from_epsg(4326)):
        return None
    steps = np.linspace(0.0, 1.0, 9)[:-1]
    columns = np.concatenate([0 * steps, steps, 0 * steps + 1, 1 - steps]) * grid.width
    rows = np.concatenate([steps, 0 * steps + 1, 1 - steps, 0 * steps]) * grid.height
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    lons, lats = project(grid.crs, CRS.from_epsg(4326), xs, ys)
    if not (np.isfinite(lons).all() and np.isfinite(lats).all()):
        return None
    if not grid.crs.is_geographic:
        lons = np.unwrap(lons, period=360.0)
        middle = (lons.min() + lons.max()) / 2
        if abs(middle) > 270.0:
            lons -= 360.0 * np.round(middle / 360.0)  # dust at the seam began it on the other side
    return [(float(lon), float(lat)) for lon, lat in zip(lons, lats, strict=True)]


def lonlat_bounds(grid: Grid) -> tuple[float, float, float, float] | None:
    """(west, south, east, north) in degrees; east may pass 180 where a picture crosses the antimeridian."""
    ring = lonlat_ring(grid)
    if ring is None:
        return None
    lons, lats = [point[0] for point in ring], [point[1] for point in ring]
    if abs(lons[-1] - lons[0]) > 180.0 and not (grid.crs is None or grid.crs.is_geographic):
        # The outline goes all round, so that a pole lies within.
        north = sum(lats) > 0
        return (-180.0, min(lats), 180.0, 90.0) if north else (-180.0, -90.0, 180.0, max(lats))
    return min(lons), min(lats), max(lons), max(lats)


def lonlat_corners(grid: Grid) -> tuple[tuple[float, float], ...] | None:
    """Upper left, upper right, lower right, lower left in longitude and latitude."""
    ring = lonlat_ring(grid)
    return None if ring is None else (ring[0], ring[24], ring[16], ring[8])
