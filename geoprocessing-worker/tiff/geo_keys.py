"""Reads GeoTIFF keys from their tags, for the few that GDAL ignores."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from pyproj.crs import PrimeMeridian  # type: ignore[attr-defined]  # public in its documents
from pyproj.exceptions import CRSError

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.tiff.structure import TiffStructure
from geoprocessing_worker.tiff.tags import GEO_DOUBLES, GEO_KEYS, GEO_TEXTS

PROJECTED_CODE, GEOGRAPHIC_CODE, PROJECTION = 3072, 2048, 3074  # keys
ANGULAR_UNIT, ANGULAR_UNIT_SIZE, MERIDIAN, MERIDIAN_LONGITUDE = 2054, 2055, 2051, 2061
USER_DEFINED = 32767
MAX_KEYS = 1000


def read_geo_keys(structure: TiffStructure, number: int = 1) -> dict[int, float]:
    """Return the numeric keys of the IFD with this number: none of an unreadable one."""
    try:
        with structure.open() as reader:
            ifd = structure.ifd(number)
            fields = [None if ifd is None else ifd.find(tag) for tag in (GEO_KEYS, GEO_DOUBLES)]
            numbers = reader.numbers(fields[0]).tolist()
            doubles = b"" if fields[1] is None else reader.content(fields[1])
            order = reader.format.order
    except (OSError, JobError):
        return {}
    keys: dict[int, float] = {}
    for key, tag, count, value in zip(*(numbers[start : 4 * MAX_KEYS : 4] for start in range(4, 8)), strict=False):
        if tag == 0:
            keys[key] = value
        elif tag == GEO_DOUBLES and count == 1 and 8 * value + 8 <= len(doubles):
            keys[key] = struct.unpack_from(f"{order}d", doubles, 8 * value)[0]
    return keys


def read_geo_texts(structure: TiffStructure, number: int = 1) -> list[str]:
    """Return the texts of the geo keys of the IFD with this number, whole. GDAL (3.10) cuts some after 511 bytes."""
    try:
        with structure.open() as reader:
            ifd = structure.ifd(number)
            field = None if ifd is None else ifd.find(GEO_TEXTS)
            return [] if field is None else reader.content(field).decode(errors="replace").split("|")
    except (OSError, JobError):
        return []


def angular_unit(keys: Mapping[int, float]) -> float | None:
    """Return the size of a user-defined angular unit in radians, or `None`."""
    size = keys.get(ANGULAR_UNIT_SIZE, 0.0)
    return size if keys.get(ANGULAR_UNIT) == USER_DEFINED and 0.0 < size <= 1.0 else None


def has_own_projection(keys: Mapping[int, float]) -> bool:
    """Whether the file declares projection parameters instead of a code."""
    return keys.get(PROJECTION) == USER_DEFINED and keys.get(PROJECTED_CODE, USER_DEFINED) == USER_DEFINED


def meridian(keys: Mapping[int, float], radians: float) -> float | None:
    """Return the prime meridian in degrees east of Greenwich. `radians` is the size of its unit."""
    code = keys.get(MERIDIAN)
    if code == USER_DEFINED and MERIDIAN_LONGITUDE in keys:
        return math.degrees(keys[MERIDIAN_LONGITUDE] * radians)
    if code is None or code == USER_DEFINED:
        return None
    try:
        found = PrimeMeridian.from_authority("EPSG", int(code))
    except CRSError:
        return None
    return math.degrees(float(found.longitude) * float(found.unit_conversion_factor))


def unknown_code(keys: Mapping[int, float]) -> int | None:
    """Return the EPSG code that the file declares for its CRS, known to GDAL or not."""
    code = int(keys.get(PROJECTED_CODE) or keys.get(GEOGRAPHIC_CODE) or 0)
    return code if 0 < code < USER_DEFINED else None
