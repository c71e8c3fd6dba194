"""Placements of a picture on web maps and in KML, each with its error in pixels, and only if accurate enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pyproj import CRS

from geoprocessing_worker.geo.crs import same
from geoprocessing_worker.geo.outline import lonlat_mesh
from geoprocessing_worker.geo.pixel_to_crs import MERCATOR_LIMIT, Points
from geoprocessing_worker.raster import Grid

HOLDS = 2.0  # pixels of the picture. A placement with a larger error is omitted
EXACT = 0.1  # pixels. A KML box is preferred to a quad up to this error
ROUNDING = 1e-6  # degrees. A tenth of a meter
MERCATOR, DEGREES = "EPSG:3857", "EPSG:4326"

Corners = tuple[tuple[float, float], ...]
"""Upper left, upper right, lower right, lower left in longitude and latitude."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Corners between which a map stretches the picture, and its largest error in pixels of the picture.

    The error is at most the picture's diagonal, which also applies to corners off the Earth.
    """

    corners: Corners
    error: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Placements:
    """The placements of one picture on each kind of map.

    Leaflet draws a box, MapLibre a quadrilateral, both in Web Mercator. KML has a box and a quadrilateral in degrees.
    `ask_for` is the CRS in which the picture would be accurate on a web map. It is `None` if no picture of this area
    would be, or if this one already is.
    """

    leaflet: Placement
    maplibre: Placement
    box: Placement
    quad: Placement
    ask_for: str | None
    ask_for_in_kml: str | None

    @property
    def note(self) -> str | None:
        """A sentence for a picture that a web map would misplace."""
        off = [name for name, kind in (("Leaflet", self.leaflet), ("MapLibre", self.maplibre)) if not kind.holds]
        if not off:
            return None
        if self.ask_for is None:
            return "web maps end at 85.05 degrees north and south, and this picture is beyond"
        worst = max(kind.error for kind in (self.leaflet, self.maplibre) if not kind.holds)
        return (
            f"{' and '.join(off)} would show this picture up to {worst:.1f} pixels off. "
            f'For a web map, ask for {{"coordinateSystem": "{self.ask_for}"}}'
        )

    def as_json(self) -> dict[str, Any]:
        """Return the block `maps` of the metadata."""
        kml = self.quad if self.box.error > EXACT and self.quad.holds else self.box
        return {
            "leaflet": {"bounds": _bounds(self.leaflet), **_advice(self.leaflet, self.ask_for)},
            "maplibre": {"coordinates": _coordinates(self.maplibre), **_advice(self.maplibre, self.ask_for)},
            "kml": {**_kml(kml, quad=kml is self.quad), **_advice(kml, self.ask_for_in_kml)},
            "recommendedCrs": None if self.leaflet.holds and self.maplibre.holds else self.ask_for,
        }


@lru_cache(maxsize=4)
def placements(grid: Grid) -> Placements | None:
    """Return the placements of a picture on this grid, or `None` if it has no place on Earth.

    Cached, since both the plan and the metadata of a job need them.
    """
    mesh = lonlat_mesh(grid)
    if mesh is None or grid.crs is None:
        return None
    lons, lats = mesh
    box, quad = _box(lons, lats), _quad(lons, lats)
    mercator = (lons, _northing(lats))
    shown = bool((np.isfinite(lons) & (np.abs(lats) < MERCATOR_LIMIT)).any())
    return Placements(
        leaflet=_on_mercator(box, mercator, grid),
        maplibre=_on_mercator(quad, mercator, grid),
        box=_in_degrees(box, mesh, grid),
        quad=_in_degrees(quad, mesh, grid),
        ask_for=MERCATOR if shown and not _north_up_in(grid, 3857) else None,
        ask_for_in_kml=None if _north_up_in(grid, 4326) else DEGREES,
    )


def _north_up_in(grid: Grid, code: int) -> bool:
    turned = grid.transform is not None and bool(grid.transform.b or grid.transform.d)
    return grid.crs is not None and not turned and same(grid.crs, CRS.from_epsg(code))


def _box(lons: Points, lats: Points) -> Corners:
    lons, lats = lons[np.isfinite(lons)], lats[np.isfinite(lats)]
    if not (lons.size and lats.size):
        return ((np.nan, np.nan),) * 4
    west, south, east, north = (float(side) for side in (lons.min(), lats.min(), lons.max(), lats.max()))
    return (west, north), (east, north), (east, south), (west, south)


def _quad(lons: Points, lats: Points) -> Corners:
    return tuple((float(lons[node]), float(lats[node])) for node in ((0, 0), (0, -1), (-1, -1), (-1, 0)))


def _northing(lats: Points) -> Points:
    """Return Web Mercator's y in degrees of its equator, clipped at its edge as web maps do."""
    with np.errstate(invalid="ignore"):
        return np.degrees(np.arctanh(np.sin(np.radians(np.clip(lats, -MERCATOR_LIMIT, MERCATOR_LIMIT)))))


def _on_mercator(corners: Corners, true: tuple[Points, Points], grid: Grid) -> Placement:
    lons, lats = np.array(corners).T
    error = largest_error(np.stack([lons, _northing(lats)], axis=-1), true, grid.width, grid.height)
    within = bool((np.abs(lats) <= MERCATOR_LIMIT + ROUNDING).all())
    return Placement(corners, error, within and error <= HOLDS and _has_area(corners))


def _in_degrees(corners: Corners, true: tuple[Points, Points], grid: Grid) -> Placement:
    error = largest_error(np.array(corners), true, grid.width, grid.height)
    return Placement(corners, error, error <= HOLDS and _has_area(corners))


def _has_area(corners: Corners) -> bool:
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    return abs((x2 - x0) * (y3 - y1) - (x3 - x1) * (y2 - y0)) > 0


def largest_error(corners: Points, true: tuple[Points, Points], width: int, height: int) -> float:
    """Return the largest displacement of the picture on a map, in pixels, at most the picture's diagonal.

    Maps stretch a picture between four corners by two triangles (MapLibre up to 5) or by a perspective (since 6).
    The larger error counts. For a parallelogram both are equal.

    Args:
        corners: (4, 2), in the map's plane.
        true: x and y of a grid from edge to edge of the picture, in that plane. Only finite points count.
        width: of the picture.
        height: of the picture.
    """
    diagonal = float(np.hypot(width, height))
    counted = np.isfinite(true[0]) & np.isfinite(true[1])
    if not (np.isfinite(corners).all() and counted.any()):
        return diagonal
    upper_left, upper_right, lower_right, lower_left = corners
    across = (upper_right - upper_left + lower_right - lower_left) / (2 * width)
    down = (lower_left - upper_left + lower_right - upper_right) / (2 * height)
    area = across[0] * down[1] - across[1] * down[0]
    if not area:
        return diagonal
    worst = 0.0
    for xs, ys in (_triangles(corners, true[0].shape), _perspective(corners, true[0].shape)):
        off_x, off_y = (true[0] - xs)[counted], (true[1] - ys)[counted]
        columns, rows = off_x * down[1] - off_y * down[0], off_y * across[0] - off_x * across[1]
        off = np.hypot(columns, rows) / abs(area)
        worst = max(worst, float(off.max())) if np.isfinite(off).all() else diagonal
    return min(worst, diagonal)


def _parts(shape: tuple[int, ...]) -> tuple[Points, Points]:
    """Return the position of each node across and down the picture, from 0 to 1."""
    across, down = np.meshgrid(np.linspace(0.0, 1.0, shape[1]), np.linspace(0.0, 1.0, shape[0]))
    return across, down


def _triangles(corners: Points, shape: tuple[int, ...]) -> tuple[Points, Points]:
    """Map by two triangles, divided by the diagonal from the upper right to the lower left."""
    across, down = _parts(shape)
    upper_left, upper_right, lower_right, lower_left = corners
    upper = across + down <= 1
    xs, ys = (
        np.where(
            upper,
            upper_left[axis] + across * (upper_right - upper_left)[axis] + down * (lower_left - upper_left)[axis],
            lower_right[axis]
            + (1 - across) * (lower_left - lower_right)[axis]
            + (1 - down) * (upper_right - lower_right)[axis],
        )
        for axis in (0, 1)
    )
    return xs, ys


def _perspective(corners: Points, shape: tuple[int, ...]) -> tuple[Points, Points]:
    """Map by the perspective through the corners (Heckbert 1989, section 2.2.3)."""
    across, down = _parts(shape)
    upper_left, upper_right, lower_right, lower_left = corners
    twist = upper_left - upper_right + lower_right - lower_left
    (right_x, right_y), (down_x, down_y) = upper_right - lower_right, lower_left - lower_right
    area = right_x * down_y - down_x * right_y
    if not area:
        return _triangles(corners, shape)
    g = (twist[0] * down_y - down_x * twist[1]) / area
    h = (right_x * twist[1] - twist[0] * right_y) / area
    depth = 1 + g * across + h * down
    with np.errstate(divide="ignore", invalid="ignore"):
        xs, ys = (
            (
                upper_left[axis]
                + across * (upper_right[axis] * (1 + g) - upper_left[axis])
                + down * (lower_left[axis] * (1 + h) - upper_left[axis])
            )
            / depth
            for axis in (0, 1)
        )
    return xs, ys


def _advice(placement: Placement, ask_for: str | None) -> dict[str, Any]:
    asked = None if placement.holds or ask_for is None else {"coordinateSystem": ask_for}
    return {"maxErrorPx": round(placement.error, 3), "instead": asked}


def _bounds(placement: Placement) -> list[list[float]] | None:
    (west, north), _, (east, south), _ = placement.corners
    return [[south, west], [north, east]] if placement.holds else None


def _coordinates(placement: Placement) -> list[list[float]] | None:
    """Return corners with a center from -180 to 180. MapLibre (6.17) draws nothing for a center beyond."""
    if not placement.holds:
        return None
    lons = [lon for lon, _ in placement.corners]
    turns = 360.0 * math.floor(((min(lons) + max(lons)) / 2 + 180.0) / 360.0)
    return [[lon - turns, lat] for lon, lat in placement.corners]


def _kml(placement: Placement, *, quad: bool) -> dict[str, Any]:
    if not placement.holds:
        return {}
    if quad:
        upper_left, upper_right, lower_right, lower_left = placement.corners
        return {"gx:LatLonQuad": [list(corner) for corner in (lower_left, lower_right, upper_right, upper_left)]}
    (west, north), _, (east, south), _ = placement.corners
    return {"LatLonBox": {"north": north, "south": south, "east": east, "west": west}}
