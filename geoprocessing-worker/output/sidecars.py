"""The small files beside a picture that tell a GIS where it lies."""

from __future__ import annotations

import math
from functools import lru_cache
from xml.sax.saxutils import escape

import numpy as np
from affine import Affine
from pyproj import CRS
from pyproj.enums import WktVersion
from pyproj.exceptions import CRSError

from geoprocessing_worker.geo.crs import epsg, latitude_first, meridian_of, same, unshifted
from geoprocessing_worker.raster import Grid
from geoprocessing_worker.render.options import OutputFormat

SWEEP_X = "Geostationary Satellite (Sweep X)"
WORLD_EXTENSIONS = {OutputFormat.PNG: "pgw", OutputFormat.JPEG: "jgw", OutputFormat.WEBP: "wpw"}


def world_file(transform: Affine) -> str:
    """Six lines: a, d, b, e, then x and y of the centre of the upper left pixel."""
    x, y = transform @ (0.5, 0.5)
    return "".join(f"{shortest(value)}\n" for value in (transform.a, transform.d, transform.b, transform.e, x, y))


def read_world_file(text: str) -> Affine:
    """The affine of pixel corners that a world file's six lines stand for."""
    a, d, b, e, x, y = (float(line) for line in text.split())
    return Affine(a, b, x - a / 2 - b / 2, d, e, y - d / 2 - e / 2)


def shortest(value: float) -> str:
    """The fewest digits that read back to the same double, never with an exponent, which some readers refuse."""
    return np.format_float_positional(value + 0.0, unique=True, trim="0")


@lru_cache(maxsize=16)
def projection_file(crs: CRS) -> str | None:
    """Return ESRI's WKT1 in one line, as ArcGIS and GeoServer read it; `None` if it cannot express the projection.

    It cannot express a datum shift either, which only the `.aux.xml` has. Of a prime meridian in a system of other
    angular units than degrees, readers disagree about the unit.
    """
    operation = unshifted(crs).coordinate_operation
    if operation is not None and operation.method_name == SWEEP_X:
        return None  # PROJ drops the sweep without an error, and readers would sweep by y
    try:
        text: str = crs.to_wkt(WktVersion.WKT1_ESRI, pretty=False)
        return text if math.isclose(meridian_of(CRS.from_wkt(text)), meridian_of(crs), abs_tol=1e-9) else None
    except CRSError:
        return None


def projection_note(crs: CRS | None) -> str | None:
    """Return a sentence on what a `.prj` cannot hold of a system; `None` if it holds all."""
    if crs is None:
        return None
    if projection_file(crs) is None:
        return "there is no .prj, since ESRI's WKT cannot hold the coordinate system: the .aux.xml has it"
    return "the .prj cannot hold the datum shift (TOWGS84): the .aux.xml has it" if crs.is_bound else None


def auxiliary_file(grid: Grid) -> str:
    """GDAL's `.aux.xml`: from this GDAL and QGIS know the system, and the exact transform."""
    lines = ["<PAMDataset>"]
    if grid.crs is not None:
        mapping = "2,1" if latitude_first(grid.crs) else "1,2"
        lines.append(f'  <SRS dataAxisToSRSAxisMapping="{mapping}">{escape(_wkt(grid.crs))}</SRS>')
    if grid.transform is not None:
        numbers = ", ".join(f"{value:.17g}" for value in grid.transform.to_gdal())
        lines.append(f"  <GeoTransform>{numbers}</GeoTransform>")
    return "\n".join([*lines, "</PAMDataset>", ""])


def read_auxiliary_transform(text: str) -> Affine | None:
    """The transform that an `.aux.xml` written by this module holds."""
    _, found, rest = text.partition("<GeoTransform>")
    return Affine.from_gdal(*(float(number) for number in rest.partition("<")[0].split(","))) if found else None


@lru_cache(maxsize=16)
def _wkt(crs: CRS) -> str:
    """WKT1 as GDAL itself writes it, so that old readers follow; WKT2 for what WKT1 cannot say.

    PROJ 9.5 writes a prime meridian in degrees, and reads it in the system's own angular unit. It looks for
    transformations by the codes of datums, which systems read from files lack.
    """
    code = epsg(crs)
    crs = CRS.from_epsg(code) if code else crs
    try:
        # Without its axes a northing-first system would be read as easting-first, and then be swapped.
        axes = (crs.is_projected and latitude_first(crs)) or None
        text: str = crs.to_wkt(WktVersion.WKT1_GDAL, output_axis_rule=axes)
        if same(CRS.from_wkt(text), crs):
            return text
    except CRSError:
        pass
    return crs.to_wkt(WktVersion.WKT2_2019)
