"""CRSs as text for other programs: ESRI's WKT for `.prj` files, GDAL's for `.aux.xml`."""

from __future__ import annotations

import math
from functools import lru_cache

from pyproj import CRS
from pyproj.enums import WktVersion
from pyproj.exceptions import CRSError

from geoprocessing_worker.geo.crs import epsg, latitude_first, meridian_of, same, unshifted

SWEEP_X = "Geostationary Satellite (Sweep X)"


@lru_cache(maxsize=16)
def esri_wkt(crs: CRS) -> str | None:
    """Return ESRI's WKT1 in one line, as ArcGIS and GeoServer read it, or `None` if it cannot express the projection.

    It cannot express a datum shift either, which only the `.aux.xml` has. Readers disagree about the unit of a prime
    meridian in a CRS with other angular units than degrees.
    """
    operation = unshifted(crs).coordinate_operation
    if operation is not None and operation.method_name == SWEEP_X:
        return None  # PROJ drops the sweep axis without an error, and readers would use y
    try:
        text: str = crs.to_wkt(WktVersion.WKT1_ESRI, pretty=False)
        return text if math.isclose(meridian_of(CRS.from_wkt(text)), meridian_of(crs), abs_tol=1e-9) else None
    except CRSError:
        return None


def esri_wkt_note(crs: CRS | None) -> str | None:
    """Return a sentence on the parts of a CRS that a `.prj` cannot express, or `None` if it expresses all."""
    if crs is None:
        return None
    if esri_wkt(crs) is None:
        return "there is no .prj, since ESRI's WKT cannot express the coordinate system: the .aux.xml has it"
    return "the .prj cannot express the datum shift (TOWGS84): the .aux.xml has it" if crs.is_bound else None


@lru_cache(maxsize=16)
def gdal_wkt(crs: CRS) -> str:
    """Return WKT1 as GDAL writes it, which old readers need, or WKT2 if WKT1 cannot express the CRS.

    PROJ 9.5 writes a prime meridian in degrees, and reads it in the CRS's own angular unit. It finds transformations by
    the codes of datums, which CRSs read from files lack.
    """
    code = epsg(crs)
    crs = CRS.from_epsg(code) if code else crs
    try:
        # Without its axes a northing-first CRS would be read as easting-first, and then be swapped.
        axes = (crs.is_projected and latitude_first(crs)) or None
        text: str = crs.to_wkt(WktVersion.WKT1_GDAL, output_axis_rule=axes)
        if same(CRS.from_wkt(text), crs):
            return text
    except CRSError:
        pass
    return crs.to_wkt(WktVersion.WKT2_2019)
