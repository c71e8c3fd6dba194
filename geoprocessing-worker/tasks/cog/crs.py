"""Find places that GDAL does not copy from GeoTIFF to GeoTIFF, and write a source that has its place.

GeoTIFF keys cannot hold some systems that GDAL reads from them, for example projected ones with ellipsoidal heights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from pyproj import CRS
from pyproj.crs import BoundCRS
from pyproj.crs.coordinate_operation import ToWGS84Transformation
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import CRSError, RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.geo.crs import in_degrees as crs_in_degrees
from geoprocessing_worker.geo.crs import parts, per_degree, to_gdal, transformer, unshifted
from geoprocessing_worker.geo.pixel_to_crs import EARTH_GIRTH, pixel_to_crs, project
from geoprocessing_worker.raster import Georeferencing, SourceHeader
from geoprocessing_worker.source.gdal import open_source

TEMPORARY = {"driver": "GTiff", "TILED": "YES", "COMPRESS": "ZSTD", "ZSTD_LEVEL": "1", "SPARSE_OK": "YES",
             "BIGTIFF": "IF_SAFER"}  # fmt: skip

MAX_BEND = 1.0  # pixels
HORIZONTAL_AXES = 2  # axes
GIVE_ANOTHER = "Give the file another coordinate system, with QGIS or gdal_edit.py -a_srs."
CHECKED_PLACES = 8  # along each side, none in the middle. Near a pole and the antimeridian GDAL gives no exact answer
WITHIN = 0.95  # of Web Mercator's square
MAX_MISALIGNMENT = 0.5  # pixels
WEB_TILES = "EPSG:3857"
KEEP_SHIFT = {"GTIFF_WRITE_TOWGS84": "YES", "OSR_STRIP_TOWGS84": "NO"}  # of systems with a code too
# The sense of rotations, compared with TOWGS84's, by the beginning of EPSG's names of methods.
SHIFTS = {"Geocentric translations": 1.0, "Position Vector": 1.0, "Coordinate Frame": -1.0}
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
        with rasterio.Env(**KEEP_SHIFT), open_source(path) as copy:
            yield copy
    finally:
        path.unlink(missing_ok=True)


def _place(path: Path, header: SourceHeader) -> None:
    with rasterio.Env(**KEEP_SHIFT), rasterio.open(path, "r+", driver="GTiff") as copy:
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


def with_shift(header: SourceHeader) -> SourceHeader:
    """Return the header with PROJ's datum shift for the middle of the file in its system, the same one if it has none.

    GDAL follows such a shift, and chooses no other.
    """
    if header.crs is None or header.crs.is_bound or header.crs.geodetic_crs is None:
        return header
    way = transformer(header.crs, CRS.from_epsg(4326))
    way.transform(*pixel_to_crs(header)(np.array([header.width / 2]), np.array([header.height / 2])), errcheck=False)
    whole = header.crs.to_json_dict()
    for part in parts(whole):
        part.pop("id", None)  # GDAL prefers the shifts of a code
    system = CRS.from_json_dict(whole)
    for step in way.transformer.get_last_used_operation().operations or ():
        for method, sense in SHIFTS.items():
            if step.method_name.startswith(method):
                numbers = [float(each.value) for each in step.params]
                numbers[3:6] = [sense * number for number in numbers[3:6]]
                shift = ToWGS84Transformation(system.geodetic_crs, *numbers)
                bound = BoundCRS(system, CRS.from_epsg(4326), shift)
                return replace(header, crs=bound, full_crs=bound)
    return header


def aligned_by_gdal(dataset: Any, placed: SourceHeader, header: SourceHeader) -> bool:
    """Whether GDAL's warp to web tiles places a dataset where PROJ places the file. Tried with four of its pixels.

    GDAL chooses one datum shift for a whole dataset, and none where it takes that to be elsewhere. GDAL 3.10 does so
    for prime meridians other than Greenwich.

    Args:
        dataset: the file, or a copy with another place.
        placed: the header with the place of `dataset`.
        header: the file's.
    """
    if header.georeferencing is Georeferencing.RPC or header.crs is None or placed.crs is None:
        return True
    crs = dataset.gcps[1] if placed.gcps else dataset.crs
    if crs is None or not (crs.is_projected or crs.is_geographic):
        return False  # an ESRI string that GDAL does not parse
    if placed.crs.is_geographic and per_degree(placed.crs) != 1.0:
        return False  # GDAL's warp takes other angles for degrees
    web = CRS.from_epsg(3857)
    size = per_degree(header.crs) / per_degree(placed.crs) if header.crs.is_geographic else 1.0
    steps = np.linspace(0.0, 1.0, CHECKED_PLACES + 2)[1:-1]
    for column, row in sorted(product(steps, steps), key=lambda part: math.dist(part, (0.5, 0.5))):
        columns, rows = header.width * column + np.array([-1, 1, -1, 1]), header.height * row + np.array([-1, -1, 1, 1])
        xs, ys = pixel_to_crs(placed)(columns, rows)
        west, south, east, north = box = xs.min(), ys.min(), xs.max(), ys.max()
        there_x, there_y = project(
            header.crs, web, np.array([west, east] * 2) * size, np.array([south] * 2 + [north] * 2) * size
        )
        if not max(np.abs(there_x).max(), np.abs(there_y).max()) < WITHIN * EARTH_GIRTH / 2:
            continue
        found = _corner_by_gdal(crs, *box)
        off = math.inf if found is None else math.hypot(found[0] - there_x.min(), found[1] - there_y.max())
        return bool(off <= MAX_MISALIGNMENT * math.hypot(np.ptp(there_x), np.ptp(there_y)) / 2)
    return True


def _corner_by_gdal(crs: Any, west: float, south: float, east: float, north: float) -> tuple[float, float] | None:
    """Return the upper left corner in Web Mercator of two by two pixels in a box, or `None` if GDAL cannot."""
    place = Affine((east - west) / 2, 0, west, 0, (south - north) / 2, north)
    try:
        with rasterio.Env(**KEEP_SHIFT), MemoryFile() as memory:
            with memory.open(driver="GTiff", crs=crs, transform=place, width=2, height=2, count=1, dtype="uint8"):
                pass
            with memory.open() as box, WarpedVRT(box, crs=WEB_TILES) as warped:
                return float(warped.transform.c), float(warped.transform.f)
    except (RasterioError, CRSError, CPLE_BaseError):
        return None


def is_bent(header: SourceHeader) -> bool:
    """Whether the polynomial by which GDAL places a file misses its control points."""
    polynomial = header.gcp_polynomial_residual
    return header.gcp_spline and (polynomial is None or polynomial > MAX_BEND)


def not_aligned(header: SourceHeader) -> JobError:
    """Return the refusal of a file that GDAL cannot align with web tiles."""
    return invalid_input(
        "unsupported_crs",
        f"GDAL cannot align {name_of(header)} with web tiles by the datum shift for the file's place. "
        "Omit webOptimized, or reproject the file.",
        crs=name_of(header),
    )


def cannot_hold(header: SourceHeader) -> JobError:
    """Return a refusal that names the system."""
    if header.crs is None and header.displaced is not None:
        return invalid_input("unsupported_crs", f"A copy would have another place: {header.displaced}. {GIVE_ANOTHER}")
    helps = header.crs is not None and not is_bent(header)
    cure = "Reproject the file, or ask for webOptimized." if helps else "Reproject the file."
    return invalid_input(
        "unsupported_crs",
        f"GeoTIFF keys cannot hold the file's coordinate system ({name_of(header)}). {cure}",
        crs=name_of(header),
    )
