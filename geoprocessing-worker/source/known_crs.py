"""Recognizes the most frequent CRSs by the bytes of their geo keys, as GDAL writes them.

GDAL builds a CRS from three tags of geo keys. To do so it opens PROJ's database in each process, which takes 10 ms: a
sixth of the CPU time of a small file. Tags equal to those of a file read before the fork mean the same CRS.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import Any

from affine import Affine
from pyproj import CRS
from rasterio.io import MemoryFile

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import from_gdal, horizontal
from geoprocessing_worker.source.gdal import read_system
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import GEO_DOUBLES, GEO_KEYS, GEO_TEXTS

GLOBE = "EPSG:4326"
USUAL = (GLOBE, "EPSG:3857")
UTM = tuple(f"EPSG:{hemisphere + zone}" for hemisphere in (32600, 32700) for zone in range(1, 61))
CODES = (*USUAL, *UTM)

_known: dict[tuple[Any, ...], CRS] = {}


def learn() -> list[CRS]:
    """Learn the tags of each CRS from a written file. GDAL's reading is not identical to the CRS of the code."""
    shape = {"width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    for code in CODES:
        crs = None
        for area_or_point in ("Area", "Point"):
            with MemoryFile() as memory:
                with memory.open(driver="GTiff", crs=code, transform=Affine.scale(1.0, -1.0), **shape) as written:
                    written.update_tags(AREA_OR_POINT=area_or_point)
                if crs is None:  # the second key differs, its CRS does not
                    crs = from_gdal(read_system(memory.name, "GTiff"))
                assert crs is not None  # noqa: S101  # a code of PROJ's own database
                reader = TiffReader(BytesIO(memory.read()))
                _known[_geo_tags(reader, next(reader.ifds()))] = crs
    return list(dict.fromkeys(map(horizontal, _known.values())))


def find(structure: TiffStructure, number: int = 1) -> CRS | None:
    """Return the CRS of the IFD with this number, or `None` if GDAL has to read it."""
    with suppress(OSError, JobError), structure.open() as reader:
        ifd = structure.ifd(number)
        return None if ifd is None else _known.get(_geo_tags(reader, ifd))
    return None


def _geo_tags(reader: TiffReader, ifd: Ifd) -> tuple[Any, ...]:
    fields = (ifd.find(tag) for tag in (GEO_KEYS, GEO_DOUBLES, GEO_TEXTS))
    return reader.format.order, *(field and (field.kind, reader.content(field)) for field in fields)
