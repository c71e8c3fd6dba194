"""How a file says where it lies: the first of its ways that is whole wins, and what cannot be is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from affine import Affine
from pyproj import CRS
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from geoprocessing_worker.control import Control, fit_control
from geoprocessing_worker.crs import from_gdal, horizontal, usable
from geoprocessing_worker.header import Georeferencing

FARTHEST = 1e12  # in units of the system; the Moon is 4e8 metres away
HALF_ROUND = 180.0  # degrees
LATITUDE, LONGITUDE = 91.0, 721.0  # degrees: beyond these nobody has put a grid, dust and a second turn included


@dataclass(frozen=True, slots=True)
class Georeference:
    """The system and one of transform, ground control points and RPC; none of them if there is none that is whole.

    `doubt`: why what the file says is not believed. `crs_given`: the system is the job's.
    """

    crs: CRS | None = None
    transform: Affine | None = None
    control: Control | None = None
    rpc: RPC | None = None
    kind: Georeferencing = Georeferencing.NONE
    doubt: str | None = None
    crs_given: bool = False


def georeference(dataset: Any, own_crs: CRS | None, source_crs: CRS | None) -> Georeference:
    """What a dataset says of its place, in its own system; `source_crs` is used where that is none."""
    if not dataset.transform.is_identity and dataset.transform.determinant != 0:
        return _by_transform(dataset, own_crs if usable(own_crs) else None, source_crs)
    found = _by_points(dataset, source_crs)
    if found is not None and found.doubt is None:
        return found
    if dataset.rpcs is not None:
        return Georeference(CRS.from_epsg(4326), rpc=dataset.rpcs, kind=Georeferencing.RPC)
    return found or Georeference()


def _by_transform(dataset: Any, own_crs: CRS | None, source_crs: CRS | None) -> Georeference:
    crs, given = own_crs or (source_crs if usable(source_crs) else None), own_crs is None
    transform = dataset.transform
    corners = [transform @ corner for corner in ((0, 0), (dataset.width, 0), (0, dataset.height))]
    numbers = [*transform, *(number for corner in corners for number in corner)]
    if not all(math.isfinite(number) and abs(number) < FARTHEST for number in numbers):
        return Georeference(doubt="the numbers by which the file says its place are no place")
    if _beside_the_globe(crs, corners):
        crs, given = None if _beside_the_globe(source_crs, corners) else source_crs, True
        if crs is None:
            x, y = corners[0]
            who = "the file" if own_crs else "sourceCrs"
            doubt = f"{who} says degrees, but its corner lies at {x:.10g}, {y:.10g}: its coordinate system is another"
            return Georeference(transform=transform, doubt=doubt)
    kind = Georeferencing.NONE if crs is None else Georeferencing.AFFINE
    return Georeference(crs, transform, kind=kind, crs_given=given and crs is not None)


def _beside_the_globe(crs: CRS | None, corners: list[tuple[float, float]]) -> bool:
    """Whether a system of degrees cannot be the one that the corners are given in."""
    if crs is None or not horizontal(crs).is_geographic:
        return False
    return any(abs(x) > LONGITUDE or abs(y) > LATITUDE for x, y in corners)


def _by_points(dataset: Any, source_crs: CRS | None) -> Georeference | None:
    points, points_crs = dataset.gcps
    system = from_gdal(points_crs)
    given = not usable(system)
    system = source_crs if given else system
    whole = [point for point in points if all(map(math.isfinite, (point.row, point.col, point.x, point.y)))]
    if len(points) < 3 or system is None or not usable(system):
        return None
    places = [(point.x, point.y) for point in whole]
    if _beside_the_globe(system, places):
        if source_crs is None or _beside_the_globe(source_crs, places):
            return Georeference(doubt="the file's ground control points are said to be degrees, but are none")
        system, given = source_crs, True
    doubt = "the file's ground control points lie on one line or in one place, so that no curve goes through them"
    control = fit_control(_in_one_piece(whole, system)) if len(whole) >= 3 else None
    if control is None:
        return Georeference(doubt=doubt)
    return Georeference(system, control=control, kind=Georeferencing.GCPS, crs_given=given)


def _in_one_piece(points: list[GroundControlPoint], crs: CRS) -> tuple[GroundControlPoint, ...]:
    """The points with longitudes that run on past 180 where the file lies across the date line."""
    longitudes = [point.x for point in points]
    if not horizontal(crs).is_geographic or max(longitudes) - min(longitudes) <= HALF_ROUND:
        return tuple(points)
    eastward = [longitude + 360.0 if longitude < 0.0 else longitude for longitude in longitudes]
    if max(eastward) - min(eastward) > HALF_ROUND:
        return tuple(points)  # so wide that it goes round the world anyway
    return tuple(
        GroundControlPoint(row=point.row, col=point.col, x=x, y=point.y, z=point.z)
        for point, x in zip(points, eastward, strict=True)
    )
