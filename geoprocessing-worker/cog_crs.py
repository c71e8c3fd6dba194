"""Places that GDAL does not copy from GeoTIFF to GeoTIFF: finds them out, and makes a source that has its place.

GeoTIFF keys cannot hold some systems that GDAL reads from them, for example projected ones with ellipsoidal heights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
from rasterio.errors import CRSError, RasterioError

from geoprocessing_worker.crs import to_gdal
from geoprocessing_worker.errors import JobError, refused
from geoprocessing_worker.header import SourceHeader
from geoprocessing_worker.opening import open_source

TEMPORARY = {"driver": "GTiff", "TILED": "YES", "COMPRESS": "ZSTD", "ZSTD_LEVEL": "1", "SPARSE_OK": "YES",
             "BIGTIFF": "IF_SAFER"}  # fmt: skip


@contextmanager
def placed_source(source: Path, header: SourceHeader, folder: Path) -> Iterator[Any]:
    """A copy of the source in `folder`, placed by the header: by the horizontal part of its system.

    Raises:
        JobError: `unsupported_crs`: GeoTIFF keys cannot hold that either.
    """
    path = folder / ".placed.tif"
    try:
        with open_source(source, directory=header.directory) as dataset:
            rasterio.shutil.copy(dataset, str(path), **TEMPORARY)
        try:
            _place(path, header)
        except (RasterioError, CRSError) as error:
            raise cannot_hold(header) from error
        with open_source(path) as copy:
            yield copy
    finally:
        path.unlink(missing_ok=True)


def _place(path: Path, header: SourceHeader) -> None:
    with rasterio.open(path, "r+", driver="GTiff") as copy:
        crs = None if header.crs is None else to_gdal(header.crs)
        if header.gcps:
            copy.gcps = (list(header.gcps), crs)
            return
        copy.crs = crs
        if header.transform is not None:
            copy.transform = header.transform


def name_of(header: SourceHeader) -> str:
    """What the system of a file is called."""
    crs = header.full_crs or header.crs
    return "its coordinate system" if crs is None else crs.name[:80]


def cannot_hold(header: SourceHeader) -> JobError:
    """A refusal that names the system."""
    return refused(
        "unsupported_crs",
        f"GeoTIFF keys cannot hold the file's coordinate system ({name_of(header)}). Reproject the file, "
        "or ask for webOptimized.",
        crs=name_of(header),
    )
