"""Find places that GDAL does not copy from GeoTIFF to GeoTIFF, and write a source that has its place.

GeoTIFF keys cannot hold some systems that GDAL reads from them, for example projected ones with ellipsoidal heights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import CRSError, RasterioError

from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.geo.crs import from_gdal, horizontal, per_degree, to_gdal, unshifted
from geoprocessing_worker.geo.crs import in_degrees as crs_in_degrees
from geoprocessing_worker.raster import Georeferencing, SourceHeader
from geoprocessing_worker.source.gdal import open_source
from geoprocessing_worker.tasks.cog.check import same_places

TEMPORARY = {"driver": "GTiff", "TILED": "YES", "COMPRESS": "ZSTD", "ZSTD_LEVEL": "1", "SPARSE_OK": "YES",
             "BIGTIFF": "IF_SAFER"}  # fmt: skip

MAX_BEND = 1.0  # pixels
HORIZONTAL_AXES = 2  # axes
UNNAMED = {"unknown", "unnamed", ""}


@contextmanager
def placed_source(source: Path, header: SourceHeader, folder: Path) -> Iterator[Any]:
    """Yield a copy of the source in `folder` with the header's place and the horizontal part of its system.

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
    """Return the name of the file's system, or its kind and datum if it has no name."""
    crs = header.full_crs or header.crs
    if crs is None:
        return "its coordinate system"
    crs = unshifted(crs)
    if crs.name.lower() not in UNNAMED:
        return crs.name[:80]
    datum = "" if crs.datum is None or crs.datum.name.lower() in UNNAMED else f" on {crs.datum.name[:60]}"
    kind = "geographic" if crs.is_geographic else "projected" if crs.is_projected else "local"
    return f"an unnamed {kind} system{datum}"


def note_of(header: SourceHeader) -> str:
    """Return the note about a system that the copy has in another form."""
    crs = header.full_crs or header.crs
    upright = crs is not None and (crs.is_compound or len(crs.axis_info) > HORIZONTAL_AXES)
    kept = "its horizontal part is kept" if upright else "the copy has an equivalent system"
    return f"GeoTIFF keys cannot hold {name_of(header)} as the file has it: {kept}"


def in_degrees(header: SourceHeader) -> SourceHeader:
    """Return the header with coordinates and prime meridian in degrees, the same one if they are."""
    crs = header.crs
    if crs is None or (unshifted(crs).geodetic_crs is None):
        return header
    system = crs_in_degrees(crs)
    if system == crs:
        return header
    smaller = Affine.scale(1 / per_degree(crs)) if crs.is_geographic else Affine.identity()
    gcps = []
    for point in header.gcps:
        x, y = smaller @ (point.x, point.y)
        gcps.append(GroundControlPoint(row=point.row, col=point.col, x=x, y=y, z=point.z))
    transform = None if header.transform is None else smaller @ header.transform
    return replace(header, crs=system, full_crs=system, transform=transform, gcps=tuple(gcps))


def placed_by_gdal(dataset: Any, header: SourceHeader) -> bool:
    """Whether GDAL can align the file with web tiles by its own reading of the system."""
    if header.georeferencing is Georeferencing.RPC or header.crs is None:
        return True
    found = from_gdal(dataset.crs)
    return found is not None and same_places(header, horizontal(found)) and in_degrees(header) is header


def is_bent(header: SourceHeader) -> bool:
    """Whether the polynomial by which GDAL places a file misses its control points."""
    polynomial = header.gcp_polynomial_residual
    return header.gcp_spline and (polynomial is None or polynomial > MAX_BEND)


def cannot_hold(header: SourceHeader) -> JobError:
    """Return a refusal that names the system."""
    helps = header.crs is not None and not is_bent(header)
    cure = "Reproject the file, or ask for webOptimized." if helps else "Reproject the file."
    return invalid_input(
        "unsupported_crs",
        f"GeoTIFF keys cannot hold the file's coordinate system ({name_of(header)}). {cure}",
        crs=name_of(header),
    )
