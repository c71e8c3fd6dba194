"""Coordinate reference systems: taken only as an authority's code, WKT or PROJJSON, and told in every common form."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import numpy as np
import rasterio.crs
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer
from pyproj.enums import WktVersion
from pyproj.exceptions import CRSError, ProjError
from rasterio.errors import CRSError as GdalCRSError

from geoprocessing_worker.errors import refused

NATIVE = "native"
"""The word that keeps a file's own coordinate system."""

_CODE = re.compile(r"(?:urn:ogc:def:crs:)?([A-Za-z]{2,10}):(?:[\d.]*:)?([A-Za-z0-9]{1,12})")
_WKT = re.compile(r"\s*(GEOGCS|PROJCS|GEOCCS|COMPD_CS|LOCAL_CS|[A-Z]+CRS|BOUNDCRS)\s*\[", re.IGNORECASE)

# For schemas: how each form begins. They let pass what the two above do, and a little more.
CODE_PATTERN = r"(?:urn:ogc:def:crs:)?[A-Za-z]{2,10}:(?:[\d.]*:)?[A-Za-z0-9]{1,12}\s*$"
WKT_PATTERN = r"[A-Za-z_]+\s*\["
PROJJSON_PATTERN = r"\{"
# A system may name files that shift its coordinates; in PROJ's own language, which WKT and PROJJSON may hold within
# (as an extension, or as the name of a method), it may do so in a dozen ways.
_FILES = re.compile(
    r"nadgrids|geoidgrids|PROJ4_GRIDS|PARAMETERFILE|EXTENSION\s*[\[(]|PROJ-based|\b(?:proj|init)\s*=", re.IGNORECASE
)


def parse_crs(text: str) -> CRS:
    """The system that a payload or setting names.

    PROJ's own parser would also take `+nadgrids=`, pipelines, file names and URLs; those never reach it.

    Raises:
        JobError: `bad_crs`.
    """
    text = text.strip()
    if _FILES.search(text):
        raise _bad(text)
    try:
        if code := _CODE.fullmatch(text):
            crs = CRS.from_authority(code[1].upper(), code[2])
        elif _WKT.match(text):
            crs = CRS.from_wkt(text)
        elif text.startswith("{"):
            content = json.loads(text)
            # Once more as it reads with its escapes undone.
            if _names_file(content) or _FILES.search(json.dumps(content)):
                raise _bad(text)
            crs = CRS.from_json_dict(content)
        else:
            raise _bad(text)
    except (CRSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _bad(text) from error
    if not (crs.is_geographic or crs.is_projected):
        raise _bad(text)
    return crs


def _names_file(content: Any) -> bool:
    """Whether PROJJSON has a parameter whose value is no number: then it is the name of a file."""
    if isinstance(content, dict):
        return isinstance(content.get("value"), str) or any(map(_names_file, content.values()))
    return isinstance(content, list) and any(map(_names_file, content))


def _bad(text: str) -> Exception:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return refused(
        "bad_crs",
        f"Nobody knows the coordinate system {shown!r}. Give a code such as EPSG:4326, WKT or PROJJSON.",
        given=shown,
    )


def horizontal(crs: CRS) -> CRS:
    """The part that places a picture: of a compound system the horizontal one, of a bound system its source."""
    if crs.is_bound and crs.source_crs is not None:
        return horizontal(crs.source_crs)
    if crs.is_compound and crs.sub_crs_list:
        return horizontal(crs.sub_crs_list[0])
    return crs.to_2d() if len(crs.axis_info) == 3 else crs


def usable(crs: CRS | None) -> bool:
    """Whether a picture can be placed on Earth by this system; local and engineering systems cannot."""
    return crs is not None and (crs.is_geographic or crs.is_projected)


def from_gdal(crs: rasterio.crs.CRS | None) -> CRS | None:
    """A file's own system, as pyproj sees it; `None` if it has none, names a file, or PROJ cannot make sense of it."""
    if not crs:
        return None
    # Some systems can be written in one version of WKT only.
    for version in ("WKT2_2019", None):
        try:
            text = crs.to_wkt(version=version)
            return None if _FILES.search(text) else CRS.from_wkt(text)
        except (CRSError, GdalCRSError, ValueError):
            continue
    return None


def to_gdal(crs: CRS) -> rasterio.crs.CRS:
    """The same system for rasterio; by code where there is one, since GDAL then skips its guesses."""
    code = epsg(crs)
    return rasterio.crs.CRS.from_epsg(code) if code else rasterio.crs.CRS.from_wkt(crs.to_wkt(WktVersion.WKT2_2019))


@lru_cache(maxsize=64)
def transformer(source: CRS, target: CRS) -> Transformer:
    """From one system to the other, in traditional (east, north) order; kept, since PROJ takes 2 ms to find the way.

    Raises:
        ProjError: there is no way.
    """
    return Transformer.from_crs(source, target, always_xy=True)


def reachable(source: CRS, target: CRS) -> bool:
    """Whether points can go from one system to the other at all: not from another planet to Earth."""
    if same(source, target):
        return True  # without PROJ's database, which is slow to open
    try:
        transformer(source, target)
    except ProjError:
        return False
    return True


def areal_scales(crs: CRS, lons: NDArray[np.float64], lats: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many times larger than on the ground a system shows places given in degrees; infinite if nowhere."""
    found = np.abs(np.asarray(Proj(crs).get_factors(lons, lats, errcheck=False).areal_scale))
    return np.where(found < 1e29, found, np.inf)  # PROJ's infinity is 1e30


def epsg(crs: CRS) -> int | None:
    """The EPSG code if the system is exactly that one, else `None`."""
    authority = crs.to_authority(auth_name="EPSG", min_confidence=100)
    return int(authority[1]) if authority and authority[1].isdigit() else None


def same(one: CRS, other: CRS) -> bool:
    """Whether two systems give a point the same coordinates in traditional (east, north) order."""
    if one.equals(other, ignore_axis_order=True):
        return True
    # PROJ ignores the order of latitude and longitude only, not that of northing and easting.
    return one.is_projected and other.is_projected and _without_axes(one) == _without_axes(other) != ""


def _without_axes(crs: CRS) -> str:
    try:
        return crs.to_wkt(WktVersion.WKT1_GDAL, output_axis_rule=False)
    except CRSError:
        return ""


def latitude_first(crs: CRS) -> bool:
    """Whether the authority names latitude or northing before longitude or easting."""
    first = crs.axis_info[0].direction.lower() if crs.axis_info else ""
    return first in {"north", "south"} and len({axis.direction for axis in crs.axis_info[:2]}) == 2


def describe(crs: CRS | None) -> dict[str, Any] | None:
    """Name, EPSG code (or `None`), WKT2 and PROJJSON."""
    if crs is None:
        return None
    return {
        "name": crs.name,
        "epsg": epsg(crs),
        "wkt2": crs.to_wkt(WktVersion.WKT2_2019),
        "projjson": crs.to_json_dict(),
    }
