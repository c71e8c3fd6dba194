"""Checks the CRS that a file declares: whether it is usable, and how accurate it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import rasterio.crs
from pyproj import CRS
from pyproj.crs import Datum  # type: ignore[attr-defined]  # public in its documents
from pyproj.exceptions import CRSError
from rasterio.errors import CRSError as GdalCRSError

from geoprocessing_worker.geo.crs import (
    angular_axes,
    from_gdal,
    has_possible_unit,
    horizontal,
    parts,
    reachable,
    unshifted,
    usable,
)
from geoprocessing_worker.geo.crs_text import grid_names, has_text_value, without_grid_names
from geoprocessing_worker.tiff.geo_keys import angular_unit, has_own_projection, meridian, unknown_code

WGS84_SEMI_MINOR = 6356752.3  # meters. That of GRS 1980 differs by 0.1 mm
MAX_SHIFT = 1e5  # meters, arc-seconds or parts per million. Surveys differ by some 1,000 meters
LONGEST_NAME = 60  # characters
ESRI_STRING = "ESRI PE String = "
DEGREE = math.radians(1.0)
NAMELESS = ("unknown", "unnamed", "undefined", "not specified", "not_specified", "user-defined", "user defined")


@dataclass(frozen=True, slots=True)
class DeclaredCrs:
    """The CRS of a file.

    `crs`: `None` if the file declares none or an unusable one. `unused`: the reason why a declared CRS is unusable.
    `caveat`: the reason why a usable one can be inaccurate.
    """

    crs: CRS | None = None
    unused: str | None = None
    caveat: str | None = None


def declared_crs(crs: rasterio.crs.CRS | None, keys: Mapping[int, float], texts: Iterable[str] = ()) -> DeclaredCrs:
    """Return the CRS that GDAL reads in a file, without grids.

    Args:
        crs: GDAL's reading.
        keys: the file's GeoTIFF keys.
        texts: the texts of these keys, whole.
    """
    if crs is None or not _wkt(crs):
        return DeclaredCrs()
    found = _in_declared_unit(from_gdal(crs), keys)
    if found is None or found.name.startswith(ESRI_STRING):
        # GDAL parses the string only if the file's model type is user-defined too.
        return _without_grids(_esri_string(_wkt(crs), texts))
    if usable(found):
        fault = _fault(found, keys)
        return DeclaredCrs(found, caveat=_datum_caveat(found, keys)) if fault is None else _unused(found.name, fault)
    code = unknown_code(keys)
    if code is not None and "Engineering" in found.type_name:
        return _unused(f"EPSG:{code}", "its code is unknown")
    return _unused(found.name, f"it is neither geographic nor projected ({found.type_name.removesuffix(' CRS')})")


def unreadable_crs(keys: Mapping[int, float]) -> DeclaredCrs:
    """Return the result for a CRS that rasterio cannot read, such as one with a datum shift of NaN."""
    code = unknown_code(keys)
    return _unused(f"EPSG:{code}" if code else "user-defined", "PROJ cannot parse it")


def _fault(crs: CRS, keys: Mapping[int, float]) -> str | None:
    if crs.is_projected and has_own_projection(keys) and not _is_degree(angular_unit(keys)):
        return "GDAL reads the angles of its projection in degrees, but they are in another unit"
    if not has_possible_unit(crs):
        return "the size of its unit is impossible"
    return "the numbers of its datum shift are impossible" if _shift_is_impossible(crs) else None


def _shift_is_impossible(crs: CRS) -> bool:
    """Whether the CRS's own datum shift exceeds those of all surveys."""
    bound = horizontal(crs)
    operation = bound.coordinate_operation if bound.is_bound else None
    values = [] if operation is None else [parameter.value for parameter in operation.params]
    return any(isinstance(value, float | int) and not abs(value) <= MAX_SHIFT for value in values)


def _in_declared_unit(crs: CRS | None, keys: Mapping[int, float]) -> CRS | None:
    """Return a CRS in the angular unit of the file. In a projected CRS the unit is that of its base.

    GDAL replaces a user-defined unit by the degree, and converts a prime meridian in another unit twice (GDAL 3.10).
    """
    if crs is None or crs.prime_meridian is None:
        return crs
    size, axis = angular_unit(keys), crs.axis_info[0] if crs.is_geographic else crs.prime_meridian
    radians = size or float(axis.unit_conversion_factor)
    if _is_degree(radians):
        return crs
    unit: dict[str, Any] = {"type": "AngularUnit", "name": axis.unit_name if size is None else "unknown"}
    unit |= {"conversion_factor": radians}
    whole = crs.to_json_dict()
    *_, base = parts(whole)
    for angular in angular_axes(base) if size is not None else ():
        angular["unit"] = unit
    longitude = meridian(keys, radians)
    if longitude is not None and "datum" in base:
        value = {"value": math.radians(longitude) / radians, "unit": unit}
        base["datum"]["prime_meridian"] = {"name": crs.prime_meridian.name, "longitude": value}
    return CRS.from_json_dict(whole)


def _is_degree(radians: float | None) -> bool:
    return radians is None or math.isclose(radians, DEGREE, rel_tol=1e-9)


def _without_grids(text: str) -> DeclaredCrs:
    grids, rest = grid_names(text), without_grid_names(text)
    if rest is None:
        return _unused(_name_in(text), "it holds PROJ operations that could open files")
    try:
        parsed = CRS.from_wkt(rest)
    except CRSError:
        return _unused(_name_in(text), "PROJ cannot parse it")
    horizontal_part = parsed.sub_crs_list[0] if parsed.is_compound else parsed
    bound_to_grid = horizontal_part.is_bound and has_text_value(horizontal_part.to_json_dict())
    found = horizontal(unshifted(horizontal_part) if bound_to_grid else horizontal_part)
    if not usable(found):
        return _unused(found.name, "it is neither geographic nor projected")
    if grids and (bound_to_grid or "nadgrids" in rest):
        return DeclaredCrs(
            found,
            caveat=f"the file's datum shift needs the grid {_shown(grids[0])}, which is not available here: "
            "positions can be off by some hundred meters. Reproject the file with gdalwarp where the grid is installed",
        )
    return DeclaredCrs(found, caveat=_datum_caveat(found, {}))


def _unused(name: str, reason: str) -> DeclaredCrs:
    return DeclaredCrs(unused=f"the file's coordinate system {_shown(name)} cannot be used, since {reason}")


def _datum_caveat(crs: CRS, keys: Mapping[int, float]) -> str | None:
    """Return the caveat of a CRS with a datum of unknown relation to WGS 84."""
    plain = horizontal(crs)
    if plain.is_bound or plain.geodetic_crs is None:
        return None
    datum = plain.geodetic_crs.datum
    if datum is None or _is_known(datum.name, (plain, plain.geodetic_crs, datum)):
        return None
    if not reachable(plain, CRS.from_epsg(4326)):
        return None  # another planet
    code = unknown_code(keys) if plain.is_geographic else None
    modern = plain.ellipsoid is not None and abs(plain.ellipsoid.semi_minor_metre - WGS84_SEMI_MINOR) < 1.0
    return (
        f"the datum of the file's coordinate system is unknown ({f'EPSG:{code}' if code else _shown(datum.name)}) "
        "and is treated as WGS 84: positions can be off by "
        f"some {'meters' if modern else 'hundred meters'}. If you know the system, give sourceCrs"
    )


def _is_known(name: str, described: Iterable[Any]) -> bool:
    """Whether an authority lists a datum of this name, or a code identifies one of the described objects."""
    if name.lower().startswith(NAMELESS):
        return False
    if any("id" in object_.to_json_dict() for object_ in described):
        return True
    try:
        Datum.from_name(name)
    except CRSError:
        return False
    return True


def _shown(name: str) -> str:
    return repr(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "...")


def _wkt(crs: rasterio.crs.CRS) -> str:
    for version in ("WKT2_2019", None):
        with suppress(GdalCRSError):
            return str(crs.to_wkt(version=version))
    return ""


def _esri_string(text: str, texts: Iterable[str]) -> str:
    """Return the ESRI string that begins with the name of an engineering CRS, or the text itself."""
    if not _name_in(text).startswith(ESRI_STRING):
        return text
    with suppress(CRSError):
        name = str(CRS.from_wkt(text).name)
        return next((whole for whole in texts if whole.startswith(name)), name).removeprefix(ESRI_STRING)
    return text


def _name_in(text: str) -> str:
    return text.partition('"')[2].partition('"')[0]
