"""The coordinate systems that most files are in, known by the very words in which GDAL writes them down.

GDAL makes a file's system of its three tags of geo keys. For that it opens PROJ's database anew in each process: 10 ms,
a sixth of the processor time that a small file takes. Where the tags hold to the byte what they held in a file that was
read before the process was forked, the system is the same and nobody needs to be asked.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from affine import Affine
from pyproj import CRS
from rasterio.io import MemoryFile

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import from_gdal, horizontal
from geoprocessing_worker.tiff.directory import Tiff

GLOBE = "EPSG:4326"
CODES = (GLOBE, "EPSG:3857")
GEO_KEYS = (34735, 34736, 34737)  # the keys, and the numbers and letters that they point to

_known: dict[tuple[Any, ...], CRS] = {}


def learn() -> list[CRS]:
    """Read a file in each of the systems; what GDAL tells of it is not word for word what its code stands for."""
    shape = {"width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    for code in CODES:
        for area_or_point in ("Area", "Point"):
            with MemoryFile() as memory:
                with memory.open(driver="GTiff", crs=code, transform=Affine.scale(1.0, -1.0), **shape) as written:
                    written.update_tags(AREA_OR_POINT=area_or_point)
                with memory.open() as dataset:
                    crs = from_gdal(dataset.crs)
                assert crs is not None  # noqa: S101  # a code of PROJ's own database
                _known[_words(BytesIO(memory.read()), 1)] = crs
    return list(dict.fromkeys(map(horizontal, _known.values())))


def find(path: Path, directory: int = 1) -> CRS | None:
    """The system of the directory with this 1-based number; `None` if GDAL has to be asked."""
    try:
        with path.open("rb") as file:
            return _known.get(_words(file, directory))
    except (OSError, JobError):
        return None


def _words(file: BinaryIO, directory: int) -> tuple[Any, ...]:
    tiff = Tiff(file)
    found = tiff.directory(directory)
    fields = [None if found is None else found.find(tag) for tag in GEO_KEYS]
    return tiff.format.order, *(field and (field.kind, tiff.content(field)) for field in fields)
