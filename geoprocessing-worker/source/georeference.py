"""Reads a file's georeference: the first complete kind is used, and an impossible one gets a reason."""

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

MAX_COORDINATE = 1e12  # in units of the CRS. The Moon is 4e8 meters away
ROUNDING = 2.0**-50  # of a coordinate: doubles cannot express a smaller pixel there
HALF_TURN = 180.0  # degrees
LATITUDE, LONGITUDE = 91.0, 721.0  # degrees: larger than those of any real grid, rounding and a second turn included
ON_A_LINE = "the file's ground control points lie on one line or in one place, so that no curve goes through them"


@dataclass(frozen=True, slots=True)
class Georeference:
    """The CRS and one of transform, ground control points and RPC: none of them if none is complete.

    `doubt`: the reason why the declared georeference is unused. `caveat`: the reason why it can be inaccurate.
    `crs_given`: the CRS is the job's.
    """

    crs: CRS | None = None
    transform: Affine | None = None
    control: Control | None = None
    rpc: RPC | None = None
    kind: Georeferencing = Georeferencing.NONE
    doubt: str | None = None
    caveat: str | None = None
    crs_given: bool = False


def georeference(dataset: Any, declared: DeclaredCrs, source_crs: CRS | None) -> Georeference:
    """Return the georeference of a dataset in its declared CRS, or in `source_crs` if that is unusable."""
    if not dataset.transform.is_identity and dataset.transform.determinant != 0:
        return _by_transform(dataset, declared, source_crs)
    found = _by_points(dataset, declared, source_crs)
    if found is not None and found.doubt is None:
        return found
    if dataset.rpcs is not None:
        return Georeference(CRS.from_epsg(4326), rpc=dataset.rpcs, kind=Georeferencing.RPC)
    return found or Georeference(doubt=_without_a_transform(declared))


def _without_a_transform(declared: DeclaredCrs) -> str | None:
    if declared == DeclaredCrs():
        return None
    return declared.unused or "the file has a coordinate system, but no transform, tie points or RPC"


def _by_transform(dataset: Any, declared: DeclaredCrs, source_crs: CRS | None) -> Georeference:
    transform = dataset.transform
    corners = [transform @ corner for corner in ((0, 0), (dataset.width, 0), (0, dataset.height))]
    numbers = [*transform, *(number for corner in corners for number in corner)]
    possible = all(math.isfinite(number) and abs(number) < MAX_COORDINATE for number in numbers)
    if not possible or any(side < ROUNDING * max(map(abs, numbers)) for side in _pixel(transform)):
        return Georeference(doubt="the numbers of the file's georeference are impossible")
    found = _placed_crs(declared, source_crs, corners)
    kind = Georeferencing.NONE if found.crs is None else Georeferencing.AFFINE
    return replace(found, transform=transform, kind=kind)


def _pixel(transform: Affine) -> tuple[float, float]:
    """Return the sides of a pixel."""
    return math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)


def _placed_crs(declared: DeclaredCrs, source_crs: CRS | None, points: list[tuple[float, float]]) -> Georeference:
    """Return the CRS of these coordinates: the declared one unless the job has a better one."""
    job = source_crs if usable(source_crs) and not _off_the_globe(source_crs, points) else None
    fits = declared.crs is not None and not _off_the_globe(declared.crs, points)
    if job is not None and not (fits and (declared.caveat is None or not _same_kind(job, declared.crs))):
        return Georeference(job, crs_given=True)
    if fits:
        return Georeference(declared.crs, caveat=declared.caveat)
    misfit = declared.crs or (source_crs if usable(source_crs) else None)
    if misfit is None:
        return Georeference(doubt=declared.unused)
    origin, (x, y) = "the file" if declared.crs else "sourceCrs", points[0]
    unit = horizontal(misfit).axis_info[0].unit_name
    unit = "degrees" if unit == "degree" else f"coordinates in {unit}"
    doubt = f"{origin} declares {unit}, but the corner is at {x:.10g}, {y:.10g}: the coordinate system is another one"
    return Georeference(doubt=doubt)


def _same_kind(one: CRS, other: CRS | None) -> bool:
    """Whether both CRSs are geographic or both projected, so that one can replace the other."""
    return other is not None and one.is_geographic == other.is_geographic


def _off_the_globe(crs: CRS | None, points: list[tuple[float, float]]) -> bool:
    """Whether a CRS is geographic and these coordinates are impossible in its angular unit."""
    if crs is None or not horizontal(crs).is_geographic:
        return False
    degree = per_degree(crs)
    return any(abs(x) > LONGITUDE * degree or abs(y) > LATITUDE * degree for x, y in points)


def _by_points(dataset: Any, declared: DeclaredCrs, source_crs: CRS | None) -> Georeference | None:
    points, _ = dataset.gcps
    whole = [point for point in points if all(map(math.isfinite, (point.row, point.col, point.x, point.y)))]
    if not points:
        return None
    if len(points) < 3:
        return Georeference(doubt=f"the file has {len(points)} ground control points, and at least 3 are needed")
    if len(whole) < 3:
        return Georeference(doubt=ON_A_LINE)
    found = _placed_crs(declared, source_crs, [(point.x, point.y) for point in whole])
    if found.crs is None:
        missing = "the file has ground control points, but no coordinate system for them"
        return Georeference(doubt=found.doubt or missing)
    control = fit_control(_continuous(whole, found.crs))
    if control is None or isinstance(control, Misfit):
        return Georeference(doubt=ON_A_LINE if control is None else control.message)
    return replace(found, control=control, kind=Georeferencing.GCPS)


def _continuous(points: list[GroundControlPoint], crs: CRS) -> tuple[GroundControlPoint, ...]:
    """Return the points with longitudes that continue past 180 if the file crosses the antimeridian."""
    longitudes = [point.x for point in points]
    if not horizontal(crs).is_geographic:
        return tuple(points)
    half_round = HALF_TURN * per_degree(crs)
    if max(longitudes) - min(longitudes) <= half_round:
        return tuple(points)
    eastward = [longitude + 2 * half_round if longitude < 0.0 else longitude for longitude in longitudes]
    if max(eastward) - min(eastward) > half_round:
        return tuple(points)  # wider than half the world either way
    return tuple(
        GroundControlPoint(row=point.row, col=point.col, x=x, y=point.y, z=point.z)
        for point, x in zip(points, eastward, strict=True)
    )
