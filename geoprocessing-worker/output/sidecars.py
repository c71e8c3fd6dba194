"""The small files beside a picture that place it in a GIS."""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np
from affine import Affine

from geoprocessing_worker.geo.crs import latitude_first
from geoprocessing_worker.geo.wkt import gdal_wkt
from geoprocessing_worker.raster import Grid
from geoprocessing_worker.render.options import OutputFormat

WORLD_EXTENSIONS = {OutputFormat.PNG: "pgw", OutputFormat.JPEG: "jgw", OutputFormat.WEBP: "wpw"}


def world_file(transform: Affine) -> str:
    """Return six lines: a, d, b, e, then x and y of the center of the upper left pixel."""
    x, y = transform @ (0.5, 0.5)
    return "".join(f"{shortest(value)}\n" for value in (transform.a, transform.d, transform.b, transform.e, x, y))


def read_world_file(text: str) -> Affine:
    """Return the affine of pixel corners from a world file's six lines."""
    a, d, b, e, x, y = (float(line) for line in text.split())
    return Affine(a, b, x - a / 2 - b / 2, d, e, y - d / 2 - e / 2)


def shortest(value: float) -> str:
    """Return the fewest digits that read back as the same double, without an exponent, which some readers reject."""
    return np.format_float_positional(value + 0.0, unique=True, trim="0")


def auxiliary_file(grid: Grid) -> str:
    """Return GDAL's `.aux.xml`, from which GDAL and QGIS read the coordinate system and the exact transform."""
    lines = ["<PAMDataset>"]
    if grid.crs is not None:
        mapping = "2,1" if latitude_first(grid.crs) else "1,2"
        lines.append(f'  <SRS dataAxisToSRSAxisMapping="{mapping}">{escape(gdal_wkt(grid.crs))}</SRS>')
    if grid.transform is not None:
        numbers = ", ".join(f"{value:.17g}" for value in grid.transform.to_gdal())
        lines.append(f"  <GeoTransform>{numbers}</GeoTransform>")
    return "\n".join([*lines, "</PAMDataset>", ""])


def read_auxiliary_transform(text: str) -> Affine | None:
    """Return the transform of an `.aux.xml` written by this module."""
    _, found, rest = text.partition("<GeoTransform>")
    return Affine.from_gdal(*(float(number) for number in rest.partition("<")[0].split(","))) if found else None
