"""Coordinate reference systems: parsed without opening files, reduced to their horizontal part, described."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio.crs
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer
from pyproj.crs.crs import BoundCRS
from pyproj.enums import WktVersion
from pyproj.exceptions import CRSError, ProjError
from rasterio.errors import CRSError as GdalCRSError

from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.geo.crs_text import json_names_file, names_file

Numbers = NDArray[np.float64]

_CODE = re.compile(r"(?:urn:ogc:def:crs:)?([A-Za-z]{2,10}):(?:[\d.]*:)?([A-Za-z0-9]{1,12})")
_WKT = re.compile(r"\s*(GEOGCS|PROJCS|GEOCCS|COMPD_CS|LOCAL_CS|[A-Z]+CRS|BOUNDCRS)\s*\[", re.IGNORECASE)
_PROJ = re.compile(r"\+proj=\S.*", re.DOTALL)
_IGNORED = re.compile(r"\+?\b(?:type=\w+|nadgrids=@null)")  # `type` is added here. The null grid has no effect
PLANE = 2  # axes
SEMI_MAJOR, SEMI_MINOR, MILLIMETER = 6378137.0, 6356752.3142, 1e-3  # meters
SEVERAL = "unavailable until"  # PROJ's definition of a transformation that chooses by the place of a point
SMALLEST_UNIT, LARGEST_UNIT = 1e-12, 1e8  # meters or radians
_DATUMS = {"datum", "datum_ensemble"}
_WGS84 = "World Geodetic System 1984"


def parse_crs(text: str) -> CRS:
    """Return the CRS of a payload or setting: a code, WKT, PROJJSON, or a PROJ string.

    Pipelines, `+init=`, file names and URLs never reach PROJ.

    Raises:
        JobError: `bad_crs`.
    """
    text = text.strip()
    if names_file(text):
        raise _bad(text)
    try:
        crs = _parsed(text)
        if usable(crs):
            if not _CODE.fullmatch(text):  # CRSs of PROJ's own database are sound
                _exercise(crs)
            return crs
    except (JobError, MemoryError):
        raise
    except Exception as error:  # pyproj raises CRSError, JSONDecodeError, KeyError and more
        raise _bad(text) from error
    raise _bad(text)


def _parsed(text: str) -> CRS:
    if code := _CODE.fullmatch(text):
        return CRS.from_authority(code[1].upper(), code[2])
    if _WKT.match(text):
        return CRS.from_wkt(text)
    if _PROJ.fullmatch(text):
        return CRS.from_user_input(f"{_IGNORED.sub('', text)} +type=crs")
    if not text.startswith("{"):
        raise _bad(text)
    content = json.loads(text)
    if json_names_file(content):
        raise _bad(text)
    return CRS.from_json_dict(content)


def _exercise(crs: CRS) -> None:
    """Read every property of a CRS that jobs need.

    pyproj parses some CRSs and raises later: for a missing part, a unit of 0, or text that it cannot export as JSON.
    """
    flat = horizontal(crs)
    for part in (crs, flat):
        describe(part)
        latitude_first(part)
    if not has_possible_unit(flat):
        raise ValueError("its unit is impossible")
    if unshifted(flat).is_geographic:
        per_degree(flat)


def _bad(text: str) -> JobError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return invalid_input(
        "bad_crs",
        f"Unknown coordinate system {shown!r}. "
        "Use a code such as EPSG:4326, WKT, PROJJSON or a PROJ string without grids.",
        given=shown,
    )


def horizontal(crs: CRS) -> CRS:
    """Return the part that places a picture: two axes, and the CRS's own datum shift if it has one."""
    if crs.is_bound and crs.source_crs is not None and crs.target_crs is not None:
        source = horizontal(crs.source_crs)
        if source.is_bound or _no_shift(crs, source):
            return source
        return crs if source.equals(crs.source_crs) else BoundCRS(source, crs.target_crs, crs.coordinate_operation)
    if crs.is_compound and crs.sub_crs_list:
        return horizontal(crs.sub_crs_list[0])
    return _from_embedded_proj(crs.to_2d() if len(crs.axis_info) == 3 else crs)


def _from_embedded_proj(crs: CRS) -> CRS:
    """Return the CRS of the PROJ string embedded in a CRS, since PROJ uses it and ignores the WKT around it.

    The two can differ. GDAL reads ESRI's geostationary projection as swept by y, and keeps `+sweep=x` in the string.
    """
    before, found, string = (crs.remarks or "").partition("PROJ CRS string: ")
    if before or not found:
        return crs
    try:
        embedded = CRS.from_user_input(f"{_IGNORED.sub('', string)} +type=crs")
    except CRSError:
        return crs
    content = {**embedded.to_json_dict(), "name": crs.name}
    geodetic = crs.geodetic_crs
    if geodetic is not None and "base_crs" in content and _modern(crs) and _modern(embedded):
        # The string has an ellipsoid and no datum, and the datum of the WKT has no shift to apply.
        datum = {key: value for key, value in geodetic.to_json_dict().items() if key in _DATUMS}
        base = {key: value for key, value in content["base_crs"].items() if key not in _DATUMS}
        content["base_crs"] = base | datum
    return CRS.from_json_dict(content)


def _modern(crs: CRS) -> bool:
    """Whether a CRS has the ellipsoid of WGS 84 or GRS 1980 (0.1 mm apart), Greenwich's meridian, and is not bound."""
    found = crs.ellipsoid
    if found is None or crs.is_bound or meridian_of(crs):
        return False
    return found.semi_major_metre == SEMI_MAJOR and abs(found.semi_minor_metre - SEMI_MINOR) < MILLIMETER


def _no_shift(crs: CRS, source: CRS) -> bool:
    """Whether a zero shift from WGS 84 to itself hides the code of the bound CRS."""
    operation, datum = crs.coordinate_operation, source.geodetic_crs.datum if source.geodetic_crs else None
    same_datum = datum is not None and datum.name.startswith(_WGS84)
    return same_datum and operation is not None and not any(float(parameter.value) for parameter in operation.params)


def unshifted(crs: CRS) -> CRS:
    """Return a horizontal CRS without its own datum shift, to inspect its axes and projection."""
    return crs.source_crs if crs.is_bound and crs.source_crs is not None else crs


def has_possible_unit(crs: CRS) -> bool:
    """Whether coordinates can be in the CRS's unit."""
    return bool(SMALLEST_UNIT <= crs.axis_info[0].unit_conversion_factor <= LARGEST_UNIT)


def per_degree(crs: CRS) -> float:
    """Return the units of a geographic CRS per degree: 1, or 3600 for arc-seconds."""
    units = math.radians(1.0) / horizontal(crs).axis_info[0].unit_conversion_factor
    return 1.0 if math.isclose(units, 1.0, rel_tol=1e-9) else units


def parts(crs_json: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a CRS in PROJJSON, then each nested one, down to its geographic base."""
    yield crs_json
    for name in ("source_crs", "base_crs"):
        if name in crs_json:
            yield from parts(crs_json[name])
    yield from parts(crs_json["components"][0]) if "components" in crs_json else ()


def angular_axes(crs_json: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the latitude and longitude axes of a CRS in PROJJSON: none of a projected one."""
    axes = crs_json.get("coordinate_system", {})
    return axes["axis"][:PLANE] if axes.get("subtype") == "ellipsoidal" else []


def in_degrees(crs: CRS) -> CRS:
    """Return a CRS with latitudes, longitudes and prime meridian in degrees. Projected coordinates stay."""
    whole = crs.to_json_dict()
    for part in parts(whole):
        for axis in angular_axes(part):
            axis["unit"] = "degree"
        if crs.prime_meridian is not None and "datum" in part:
            longitude = math.degrees(meridian_of(crs))
            part["datum"]["prime_meridian"] = {"name": crs.prime_meridian.name, "longitude": longitude}
    return CRS.from_json_dict(whole)


def meridian_of(crs: CRS) -> float:
    """Return the prime meridian in radians east of Greenwich."""
    found = crs.prime_meridian
    return 0.0 if found is None else float(found.longitude) * float(found.unit_conversion_factor)


def usable(crs: CRS | None) -> bool:
    """Whether a CRS can place a picture on Earth. Local and engineering CRSs cannot."""
    return crs is not None and (crs.is_geographic or crs.is_projected)


def from_gdal(crs: rasterio.crs.CRS | None) -> CRS | None:
    """Return GDAL's CRS for pyproj. `None` if there is none, it names a file, or PROJ cannot parse it."""
    if crs is None:
        return None
    # Some CRSs can be written in one version of WKT only.
    for version in ("WKT2_2019", None):
        try:
            text = crs.to_wkt(version=version)
            return None if names_file(text) else _by_its_code(_from_embedded_proj(CRS.from_wkt(text)))
        except (CRSError, GdalCRSError, ValueError):
            continue
    return None


def _by_its_code(crs: CRS) -> CRS:
    """Return the CRS of GDAL's code, if it differs only in the name of its datum or of its method.

    GDAL's database can be newer than pyproj's. For example, it has a separate datum for Finland's EPSG:3067. From a
    file's code it also reads some projections of the sphere as those of the ellipsoid (EPSG:32662 and 9311, GDAL 3.10).
    """
    name = crs.to_json_dict().get("id", {})
    if name.get("authority") != "EPSG" or epsg(crs) is not None:
        return crs
    try:
        other = CRS.from_epsg(name["code"])
    except CRSError:
        return crs
    alike = (
        crs.type_name == other.type_name
        and crs.ellipsoid == other.ellipsoid
        and crs.prime_meridian == other.prime_meridian
        and _parameters(crs) == _parameters(other)
        and _axes(crs) == _axes(other)
    )
    return other if alike else crs


def _parameters(crs: CRS) -> set[tuple[str, Any]]:
    operation = crs.coordinate_operation
    return {(each.name, each.value) for each in operation.params if each.value} if operation is not None else set()


def _axes(crs: CRS) -> list[tuple[str, float]]:
    return [(axis.direction, round(axis.unit_conversion_factor, 12)) for axis in crs.axis_info]


def to_gdal(crs: CRS) -> rasterio.crs.CRS:
    """Return the CRS for rasterio, by code if it has one, since GDAL then skips its guesses."""
    code = epsg(crs)
    return rasterio.crs.CRS.from_epsg(code) if code else rasterio.crs.CRS.from_wkt(crs.to_wkt(WktVersion.WKT2_2019))


@dataclass(frozen=True, slots=True)
class CrsTransform:
    """A transformation between two CRSs, in traditional (east, north) order and in the units of each CRS.

    PROJ chooses among datum shifts by the place of a point, for each direction on its own, and near the limits of their
    areas not the same. `back` is the reverse transformation where it takes precedence.
    """

    transformer: Transformer
    into_degrees: float | None
    from_degrees: float | None
    back: CrsTransform | None

    def transform(self, xs: Numbers, ys: Numbers, *, errcheck: bool = True) -> tuple[Numbers, Numbers]:
        """Transform points to the target CRS, so that `back` returns them. Inexpressible points are infinite."""
        found = self.as_proj(xs, ys, errcheck=errcheck)
        if self.back is None:
            return found
        off = self._off(xs, ys, found)
        nearer = self.as_proj(xs + off[0], ys + off[1], errcheck=False)
        # A meridian has several x values, and stays where it is.
        better = np.hypot(*self._off(xs, ys, nearer)) < np.hypot(*off) / 2
        return np.where(better, nearer[0], found[0]), np.where(better, nearer[1], found[1])

    def as_proj(self, xs: Numbers, ys: Numbers, *, errcheck: bool) -> tuple[Numbers, Numbers]:
        """Transform points as PROJ does."""
        if self.into_degrees is not None:
            xs, ys = xs * self.into_degrees, ys * self.into_degrees
        xs, ys = self.transformer.transform(xs, ys, errcheck=errcheck)
        return (xs, ys) if self.from_degrees is None else (xs * self.from_degrees, ys * self.from_degrees)

    def _off(self, xs: Numbers, ys: Numbers, found: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
        """Return how far `back` takes the targets of points from these. Not finite where it cannot."""
        if self.back is None:
            return np.zeros_like(xs), np.zeros_like(ys)
        back_x, back_y = self.back.as_proj(*found, errcheck=False)
        with np.errstate(invalid="ignore"):
            return xs - back_x, ys - back_y


@lru_cache(maxsize=512)  # the fork server has some 250
def transformer(source: CRS, target: CRS) -> CrsTransform:
    """Return the transformation between two CRSs. Cached, since PROJ takes 2 ms to find it.

    Raises:
        ProjError: there is none.
    """
    # Without a code PROJ 9.5 tries IGNF's transformations too, and loses a meridian other than Greenwich in them.
    losing = any(meridian_of(each) and "id" not in each.to_json_dict() for each in (source, target))
    found = Transformer.from_crs(source, target, always_xy=True, authority="EPSG" if losing else None)
    # pyproj takes and returns degrees for CRSs in radians.
    into = math.degrees(1.0) if _in_radians(source) else None
    several = found.definition.startswith(SEVERAL) and _precedence(target) < _precedence(source)
    back = transformer(target, source) if several else None
    return CrsTransform(found, into, math.radians(1.0) if _in_radians(target) else None, back)


def _precedence(crs: CRS) -> tuple[bool, bool, str]:
    """Return the order of two CRSs: PROJ chooses datum shifts best from WGS 84, and from degrees."""
    return not crs.name.startswith("WGS 84"), crs.is_projected, crs.srs


def _in_radians(crs: CRS) -> bool:
    return crs.is_geographic and crs.axis_info[0].unit_conversion_factor == 1.0


def reachable(source: CRS, target: CRS) -> bool:
    """Whether a transformation between two CRSs exists. None does from another planet to Earth."""
    if same(source, target):
        return True  # avoids opening PROJ's database, which is slow
    try:
        transformer(source, target)
    except ProjError:
        return False
    return True


def areal_scales(crs: CRS, lons: NDArray[np.float64], lats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areal scale of a CRS at points in degrees. Infinite where it is undefined."""
    found = np.abs(np.asarray(Proj(crs).get_factors(lons, lats, errcheck=False).areal_scale))
    return np.where(found < 1e29, found, np.inf)  # PROJ's infinity is 1e30


def epsg(crs: CRS) -> int | None:
    """Return the EPSG code if the CRS is exactly that one, else `None`."""
    authority = crs.to_authority(auth_name="EPSG", min_confidence=100)
    return int(authority[1]) if authority and authority[1].isdigit() else None


def same(one: CRS, other: CRS) -> bool:
    """Whether two CRSs give a point the same coordinates in traditional (east, north) order."""
    if one.equals(other, ignore_axis_order=True):
        return True
    if not (one.is_projected and other.is_projected and _method(one) == _method(other)):
        return False
    # PROJ ignores the order of latitude and longitude only, not that of northing and easting.
    try:
        return _without_axes(one).equals(_without_axes(other))
    except CRSError:
        return False


def _method(crs: CRS) -> str | None:
    """Return the method of the projection. In WKT1 without axes, both Krovak methods are the same."""
    operation = unshifted(crs).coordinate_operation
    return None if operation is None else operation.method_name


def _without_axes(crs: CRS) -> CRS:
    return CRS.from_wkt(crs.to_wkt(WktVersion.WKT1_GDAL, output_axis_rule=False))


def latitude_first(crs: CRS) -> bool:
    """Whether latitude or northing is the first axis, by the authority."""
    axes = crs.axis_info[:PLANE]
    if not axes or axes[0].direction.lower() not in {"north", "south"}:
        return False
    # Both axes of a polar CRS can have the same direction, so the name decides.
    return axes[0].direction != axes[-1].direction or axes[0].name.lower().startswith("northing")


def describe(crs: CRS | None) -> dict[str, Any] | None:
    """Return name, EPSG code (or `None`), WKT2 and PROJJSON."""
    if crs is None:
        return None
    return {
        "name": crs.name,
        "epsg": epsg(crs),
        "wkt2": crs.to_wkt(WktVersion.WKT2_2019),
        "projjson": crs.to_json_dict(),
    }
