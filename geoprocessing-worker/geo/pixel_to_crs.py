"""From a file's pixels to the ground and on to any other system, by whatever the file says of its place."""

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
MERCATOR_LIMIT = 85.0511287798066  # degrees; where the square of Web Mercator ends
EARTH_GIRTH = 2 * math.pi * 6378137.0  # metres round the equator of Web Mercator


def pixel_to_crs(header: SourceHeader) -> Callable[[Points, Points], tuple[Points, Points]]:
    """From (columns, rows) of pixel corners to x and y in the header's system, by whatever the file has."""
    if header.transform is not None:
        affine = header.transform
        return lambda columns, rows: (
            affine.a * columns + affine.b * rows + affine.c,
            affine.d * columns + affine.e * rows + affine.f,
        )

    to_ground = transformer_of(header)

    def transformed(columns: Points, rows: Points) -> tuple[Points, Points]:
        xs, ys = to_ground.xy(rows.tolist(), columns.tolist(), offset="ul")
        return np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)

    return transformed


def transformer_of(header: SourceHeader) -> Any:
    """Return GDAL's transformer by ground control points or RPC. It is freed with its last reference."""
    if header.gcps:
        return GCPTransformer(list(header.gcps), tps=header.gcp_spline)
    # GDAL's default height is 0, which can lie far from the ground that the polynomials were made for.
    return RPCTransformer(header.rpc, RPC_HEIGHT=header.rpc.height_off if header.rpc else 0.0)


def project(source: CRS, target: CRS, xs: Points, ys: Points) -> tuple[Points, Points]:
    """Points in another system, x first; what cannot be expressed there is infinite."""
    if same(source, target):
        return xs, ys
    if source.is_geographic:
        # Global grids often end a hair past the pole, where PROJ finds nothing.
        pole = 90.0 * per_degree(source)
        ys = np.clip(ys, -pole, pole)
    if is_mercator(target):
        xs, ys = transformer(source, CRS.from_epsg(4326)).transform(xs, ys, errcheck=False)
        ys = np.clip(ys, -MERCATOR_LIMIT, MERCATOR_LIMIT, where=np.isfinite(ys), out=np.array(ys))
        source = CRS.from_epsg(4326)
    out_x, out_y = transformer(source, target).transform(xs, ys, errcheck=False)
    return np.asarray(out_x), np.asarray(out_y)


def is_mercator(crs: CRS) -> bool:
    """Whether a system is Mercator round the equator, whose y grows beyond all bounds at the poles."""
    operation = unshifted(crs).coordinate_operation
    name = operation.method_name.lower() if operation is not None else ""
    return "mercator" in name and "transverse" not in name and "oblique" not in name


def period(crs: CRS) -> float | None:
    """Return the distance in x between two names of the same place, in units of the system; `None` if there is none."""
    if crs.is_geographic:
        return 360.0 * per_degree(crs)
    return _mercator_girth(crs) if is_mercator(crs) else None


@lru_cache(maxsize=16)
def _mercator_girth(crs: CRS) -> float:
    """The equator in units of a Mercator system, whose ellipsoid, scale and unit may differ from Web Mercator's."""
    base = unshifted(crs)
    if base.geodetic_crs is None or not reachable(base.geodetic_crs, base):
        return EARTH_GIRTH
    tenth = 36.0 * per_degree(base.geodetic_crs)
    xs, _ = transformer(base.geodetic_crs, base).transform(np.array([0.0, tenth, 2 * tenth]), np.zeros(3))
    return float(np.diff(xs).max()) * 10  # a step across the seam is negative
