"""Read the finished picture as a GIS would, and compare its place with the source's before the upload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.errors import RasterioError

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.geo.approx_transform import source_positions
from geoprocessing_worker.geo.crs import from_gdal, same
from geoprocessing_worker.geo.layout import Layout
from geoprocessing_worker.geo.pixel_to_crs import Points, period, pixel_to_crs, project
from geoprocessing_worker.output.sidecars import read_auxiliary_transform, read_world_file
from geoprocessing_worker.raster import Grid, SourceHeader
from geoprocessing_worker.source.gdal import gdal_environment, read_system

DRIVERS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
PLACES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
HALF_A_PIXEL = 0.5


def verify(picture: Path, world: Path | None, header: SourceHeader, grid: Grid) -> float | None:
    """Return the largest distance in output pixels between five points of the source and of the sidecars.

    `None` where the source has no place on Earth.

    Raises:
        JobError: `self_check_failed`, class internal: the files contradict each other or the source.
    """
    try:
        transform, crs = _reopened(picture, grid)
    except RasterioError as error:
        raise failed("GDAL cannot open it", picture) from error
    if grid.transform is None:
        return None
    if world is not None and not _close(read_world_file(world.read_text("ascii")), grid.transform, grid):
        raise failed("the world file is not the picture's", picture)
    # GDAL's PNG driver prefers the world file's transform, so the other one is read here.
    auxiliary = read_auxiliary_transform(picture.with_name(picture.name + ".aux.xml").read_text("utf-8"))
    if auxiliary is None or not _close(auxiliary, grid.transform, grid):
        raise failed("the transform in the aux file is not the picture's", picture)
    if transform is None or not _close(transform, grid.transform, grid):
        raise failed("the transform that GDAL reads back is not the picture's", picture)
    if grid.crs is None:
        return None
    if crs is None or not same(crs, grid.crs):
        raise failed("the coordinate system read back is another one", picture)
    distance, leeway = _distance(picture, header, grid, transform)
    if distance > HALF_A_PIXEL + leeway:
        raise failed(f"five points are up to {distance:.2f} pixels away from where the source has them", picture)
    return distance


def _reopened(picture: Path, grid: Grid) -> tuple[Affine | None, CRS | None]:
    """Read the picture and its sidecars with GDAL."""
    with (
        gdal_environment(GDAL_PAM_ENABLED="YES", GDAL_DISABLE_READDIR_ON_OPEN="FALSE"),
        rasterio.open(str(picture), driver=DRIVERS[picture.suffix], sharing=False) as dataset,
    ):
        if (dataset.width, dataset.height) != (grid.width, grid.height):
            raise failed(f"its size is {dataset.width} x {dataset.height}", picture)
        crs = from_gdal(read_system(str(picture), dataset.driver))
        return (None if dataset.transform.is_identity else dataset.transform), crs


def _close(one: Affine, other: Affine, grid: Grid) -> bool:
    """Whether two affines put every corner within a thousandth of a pixel."""
    between = ~other @ one
    corners = ((0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height))
    return all(np.hypot(*np.subtract(between @ corner, corner)) < 1e-3 for corner in corners)


def _distance(picture: Path, header: SourceHeader, grid: Grid, transform: Affine) -> tuple[float, float]:
    """Return the error of picture pixel → source pixel → CRS → picture pixel, and the file's own, in output pixels.

    The first step is the renderer's. The way back uses the source's own georeference and the files' transform as GDAL
    reads it. So a picture that shows another place than its files declare does not come back.
    """
    if grid.crs is None or header.crs is None:
        return 0.0, 0.0
    columns = np.array([x * grid.width for x, _ in PLACES])
    rows = np.array([y * grid.height for _, y in PLACES])
    layout = Layout(grid, header.width, header.height, True, False, False, "")
    way_out = source_positions(header, layout, header.width, header.height)
    source_x, source_y = way_out(columns, rows)
    inside = _inside(header, source_x, source_y)
    if not inside.any():
        columns, rows = _seen(header, grid, transform)
        source_x, source_y = way_out(columns, rows)
        inside = _inside(header, source_x, source_y)
    if not inside.any():
        raise failed("none of five points is inside the source", picture)
    xs, ys = project(header.crs, grid.crs, *pixel_to_crs(header)(source_x[inside], source_y[inside]))
    turn = period(grid.crs)
    if turn is not None:
        # The same meridian has many longitudes. The one nearest to the picture's counts.
        expected = transform.a * columns[inside] + transform.b * rows[inside] + transform.c
        xs = xs - np.round((xs - expected) / turn) * turn
    back = ~transform
    off_x = back.a * xs + back.b * ys + back.c - columns[inside]
    off_y = back.d * xs + back.e * ys + back.f - rows[inside]
    off = np.hypot(off_x, off_y)
    leeway = _leeway(header, source_x[inside], source_y[inside])
    scale = max(grid.width / header.width, grid.height / header.height)
    return float(off[np.isfinite(off)].max(initial=0.0)), leeway * scale


def _inside(header: SourceHeader, columns: Points, rows: Points) -> NDArray[np.bool_]:
    within: NDArray[np.bool_] = (columns >= 0) & (columns <= header.width) & (rows >= 0) & (rows <= header.height)
    return within


def _seen(header: SourceHeader, grid: Grid, transform: Affine) -> tuple[Points, Points]:
    """Return points of the picture that the source covers, for one with little in it, perhaps at its edges."""
    if grid.crs is None or header.crs is None:
        return np.zeros(0), np.zeros(0)
    across, down = np.meshgrid(np.linspace(0.01, 0.99, 99) * header.width, np.linspace(0.01, 0.99, 99) * header.height)
    xs, ys = project(header.crs, grid.crs, *pixel_to_crs(header)(across.ravel(), down.ravel()))
    back = ~transform
    columns, rows = back.a * xs + back.b * ys + back.c, back.d * xs + back.e * ys + back.f
    with np.errstate(invalid="ignore"):
        seen = (columns >= 0) & (columns <= grid.width) & (rows >= 0) & (rows <= grid.height)
    return columns[seen], rows[seen]


def _leeway(header: SourceHeader, columns: Points, rows: Points) -> float:
    """Return the round trip error of the file's own transforms, in source pixels.

    GDAL fits one polynomial for each direction to ground control points. Where the points contradict each other, as
    the four corners of an oblique photograph can, the two are not inverse.
    """
    if header.transform is not None:
        return 0.0
    own = Layout(Grid(1, 1, Affine.identity(), header.crs), 1, 1, True, False, False, "")
    back_x, back_y = source_positions(header, own, header.width, header.height)(*pixel_to_crs(header)(columns, rows))
    off = np.hypot(back_x - columns, back_y - rows)
    return float(off[np.isfinite(off)].max(initial=0.0))


def failed(words: str, picture: Path) -> JobError:
    """Return the error for a picture that must not be uploaded, for the reason `words`."""
    return JobError(
        "self_check_failed",
        f"The finished picture did not pass the check before upload: {words}. This is a fault of the worker.",
        ErrorClass.INTERNAL,
        {"picture": picture.name},
    )
