"""How a file declares its place: the first complete way wins, and what cannot be a place gets a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from affine import Affine
from pyproj import CRS
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from geoprocessing_worker.geo.control_points import Control, Misfit, fit_control
from geoprocessing_worker.geo.crs import horizontal, per_degree, usable
from geoprocessing_worker.raster import Georeferencing
from geoprocessing_worker.source.declared_crs import DeclaredCrs

FARTHEST = 1e12  # in units of the system; the Moon is 4e8 metres away
HALF_ROUND = 180.0  # degrees
LATITUDE, LONGITUDE = 91.0, 721.0  # degrees: beyond these nobody has put a grid, dust and a second turn included
ON_A_LINE = "the file's ground control points lie on one line or in one place, so that no curve goes through them"


@dataclass(frozen=True, slots=True)
class Georeference:
    """The system and one of transform, ground control points and RPC; none of them if none is complete.

    `doubt`: the reason why the file's own words are not used. `caveat`: the reason why the place can be off.
    `crs_given`: the system is the job's.
    """

    crs: CRS | None = None
    transform: Affine | None = None
    control: Control | None = None
    rpc: RPC | None = None
    kind: Georeferencing = Georeferencing.NONE
    doubt: str | None = None
    caveat: str | None = None
    crs_given: bool = False


def georeference(dataset: Any, own: DeclaredCrs, source_crs: CRS | None) -> Georeference:
    """Return the place of a dataset in its own system, or in `source_crs` where its own cannot be used."""
    if not dataset.transform.is_identity and dataset.transform.determinant != 0:
        return _by_transform(dataset, own, source_crs)
    found = _by_points(dataset, own, source_crs)
    if found is not None and found.doubt is None:
        return found
    if dataset.rpcs is not None:
        return Georeference(CRS.from_epsg(4326), rpc=dataset.rpcs, kind=Georeferencing.RPC)
    return found or Georeference(doubt=_without_a_transform(own))


def _without_a_transform(own: DeclaredCrs) -> str | None:
    if own == DeclaredCrs():
        return None
    return own.unused or "the file has a coordinate system, but no transform, tie points or RPC"


def _by_transform(dataset: Any, own: DeclaredCrs, source_crs: CRS | None) -> Georeference:
    transform = dataset.transform
    corners = [transform @ corner for corner in ((0, 0), (dataset.width, 0), (0, dataset.height))]
    numbers = [*transform, *(number for corner in corners for number in corner)]
    if not all(math.isfinite(number) and abs(number) < FARTHEST for number in numbers):
        return Georeference(doubt="the numbers by which the file says its place are no place")
    found = _system(own, source_crs, corners)
    kind = Georeferencing.NONE if found.crs is None else Georeferencing.AFFINE
    return replace(found, transform=transform, kind=kind)


def _system(own: DeclaredCrs, source_crs: CRS | None, places: list[tuple[float, float]]) -> Georeference:
    """Return the system of these coordinates, without a place: the file's own unless the job has a better one."""
    job = source_crs if usable(source_crs) and not _beside_the_globe(source_crs, places) else None
    fits = own.crs is not None and not _beside_the_globe(own.crs, places)
    if job is not None and not (fits and (own.caveat is None or not _alike(job, own.crs))):
        return Georeference(job, crs_given=True)
    if fits:
        return Georeference(own.crs, caveat=own.caveat)
    declared = own.crs or (source_crs if usable(source_crs) else None)
    if declared is None:
        return Georeference(doubt=own.unused)
    who, (x, y) = "the file" if own.crs else "sourceCrs", places[0]
    unit = horizontal(declared).axis_info[0].unit_name
    words = "degrees" if unit == "degree" else f"coordinates in {unit}"
    doubt = f"{who} says {words}, but its corner lies at {x:.10g}, {y:.10g}: its coordinate system is another"
    return Georeference(doubt=doubt)


def _alike(one: CRS, other: CRS | None) -> bool:
    """Whether both systems are geographic or both projected, so that one can stand in for the other."""
    return other is not None and one.is_geographic == other.is_geographic


def _beside_the_globe(crs: CRS | None, places: list[tuple[float, float]]) -> bool:
    """Whether a geographic system cannot be the one of these coordinates, in its own angular unit."""
    if crs is None or not horizontal(crs).is_geographic:
        return False
    degree = per_degree(crs)
    return any(abs(x) > LONGITUDE * degree or abs(y) > LATITUDE * degree for x, y in places)


def _by_points(dataset: Any, own: DeclaredCrs, source_crs: CRS | None) -> Georeference | None:
    points, _ = dataset.gcps
    whole = [point for point in points if all(map(math.isfinite, (point.row, point.col, point.x, point.y)))]
    if not points:
        return None
    if len(points) < 3:
        return Georeference(doubt=f"the file has {len(points)} ground control points, and at least 3 are needed")
    if len(whole) < 3:
        return Georeference(doubt=ON_A_LINE)
    found = _system(own, source_crs, [(point.x, point.y) for point in whole])
    if found.crs is None:
        missing = "the file has ground control points, but no coordinate system for them"
        return Georeference(doubt=found.doubt or missing)
    control = fit_control(_in_one_piece(whole, found.crs))
    if control is None or isinstance(control, Misfit):
        return Georeference(doubt=ON_A_LINE if control is None else control.words)
    return replace(found, control=control, kind=Georeferencing.GCPS)


def _in_one_piece(points: list[GroundControlPoint], crs: CRS) -> tuple[GroundControlPoint, ...]:
    """The points with longitudes that run on past 180 where the file lies across the date line."""
    longitudes = [point.x for point in points]
    if not horizontal(crs).is_geographic:
        return tuple(points)
    half_round = HALF_ROUND * per_degree(crs)
    if max(longitudes) - min(longitudes) <= half_round:
        return tuple(points)
    eastward = [longitude + 2 * half_round if longitude < 0.0 else longitude for longitude in longitudes]
    if max(eastward) - min(eastward) > half_round:
        return tuple(points)  # so wide that it goes round the world anyway
    return tuple(
        GroundControlPoint(row=point.row, col=point.col, x=x, y=point.y, z=point.z)
        for point, x in zip(points, eastward, strict=True)
    )
