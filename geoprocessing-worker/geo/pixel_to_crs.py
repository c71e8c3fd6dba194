"""Transforms pixels to the file's CRS, by affine, ground control points or RPC, and on to any other CRS."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.transform import GCPTransformer, RPCTransformer

from geoprocessing_worker.geo.crs import per_degree, reachable, same, transformer, unshifted
from geoprocessing_worker.raster import SourceHeader

Points = NDArray[np.float64]
MERCATOR_LIMIT = 85.0511287798066  # degrees. The edge of Web Mercator's square
EARTH_GIRTH = 2 * math.pi * 6378137.0  # meters, in Web Mercator


def pixel_to_crs(header: SourceHeader) -> Callable[[Points, Points], tuple[Points, Points]]:
    """Return the function from (columns, rows) of pixel corners to x and y in the header's CRS."""
    if header.transform is not None:
        affine = header.transform
        return lambda columns, rows: (
            affine.a * columns + affine.b * rows + affine.c,
            affine.d * columns + affine.e * rows + affine.f,
        )

    control = transformer_of(header)

    def transformed(columns: Points, rows: Points) -> tuple[Points, Points]:
        xs, ys = control.xy(rows.tolist(), columns.tolist(), offset="ul")
        return np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)

    return transformed


def transformer_of(header: SourceHeader) -> Any:
    """Return GDAL's transformer by ground control points or RPC. It is freed with its last reference."""
    if header.gcps:
        return GCPTransformer(list(header.gcps), tps=header.gcp_spline)
    # GDAL's default height is 0, which can be far from the terrain that the polynomials were fitted to.
    return RPCTransformer(header.rpc, RPC_HEIGHT=header.rpc.height_off if header.rpc else 0.0)


def project(source: CRS, target: CRS, xs: Points, ys: Points) -> tuple[Points, Points]:
    """Transform points to another CRS, x first. Points that it cannot express are infinite."""
    if same(source, target):
        return xs, ys
    if source.is_geographic:
        # Global grids often end slightly past the pole, where PROJ returns infinity.
        pole = 90.0 * per_degree(source)
        ys = np.clip(ys, -pole, pole)
    if is_mercator(target):
        xs, ys = transformer(source, CRS.from_epsg(4326)).transform(xs, ys, errcheck=False)
        ys = np.clip(ys, -MERCATOR_LIMIT, MERCATOR_LIMIT, where=np.isfinite(ys), out=np.array(ys))
        source = CRS.from_epsg(4326)
    out_x, out_y = transformer(source, target).transform(xs, ys, errcheck=False)
    return np.asarray(out_x), np.asarray(out_y)


def is_mercator(crs: CRS) -> bool:
    """Whether a CRS is equatorial Mercator, where y is infinite at the poles."""
    operation = unshifted(crs).coordinate_operation
    name = operation.method_name.lower() if operation is not None else ""
    return "mercator" in name and "transverse" not in name and "oblique" not in name


def period(crs: CRS) -> float | None:
    """Return the distance in x after which a CRS repeats, in its units, or `None` if it does not."""
    if crs.is_geographic:
        return 360.0 * per_degree(crs)
    return _mercator_equator(crs) if is_mercator(crs) else None


@lru_cache(maxsize=16)
def _mercator_equator(crs: CRS) -> float:
    """Return the equator in units of a Mercator CRS. Its ellipsoid, scale and unit may differ from Web Mercator's."""
    base = unshifted(crs)
    if base.geodetic_crs is None or not reachable(base.geodetic_crs, base):
        return EARTH_GIRTH
    tenth = 36.0 * per_degree(base.geodetic_crs)
    xs, _ = transformer(base.geodetic_crs, base).transform(np.array([0.0, tenth, 2 * tenth]), np.zeros(3))
    return float(np.diff(xs).max()) * 10  # a step across the seam is negative
