"""Turns, flips and reprojects a reduced raster; the source file is not touched any more."""

from __future__ import annotations

import numpy as np
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geoprocessing_worker.crs import to_gdal
from geoprocessing_worker.geometry import reduced_control
from geoprocessing_worker.header import SourceHeader
from geoprocessing_worker.plan import RenderPlan
from geoprocessing_worker.raster import Raster

THREADS = 2
# The array was averaged to the target's scale before, so what is left is to interpolate between its pixels.
KERNELS = {
    "nearest": Resampling.nearest,
    "bilinear": Resampling.bilinear,
    "cubic": Resampling.cubic,
    "average": Resampling.bilinear,
    "lanczos": Resampling.lanczos,
    "mode": Resampling.mode,
}


def place(raster: Raster, header: SourceHeader, plan: RenderPlan) -> Raster:
    """The raster on the plan's target grid."""
    layout = plan.layout
    if layout.warp:
        return _warp(raster, header, plan)
    rows = slice(None, None, -1) if layout.flip_rows else slice(None)
    columns = slice(None, None, -1) if layout.flip_columns else slice(None)
    alpha = None if raster.alpha is None else np.ascontiguousarray(raster.alpha[rows, columns])
    samples = np.ascontiguousarray(raster.samples[:, rows, columns])
    return Raster(samples, alpha, raster.meaning, raster.palette, layout.target)


def _warp(raster: Raster, header: SourceHeader, plan: RenderPlan) -> Raster:
    """GDAL weighs colour by the alpha band while it interpolates, so nothing bleeds in from hidden pixels."""
    target = plan.layout.target
    if raster.grid.crs is None or target.crs is None:
        raise ValueError("a raster without a coordinate system cannot be warped")
    _, height, width = raster.samples.shape
    opacity = np.full((height, width), 255, dtype=np.uint8) if raster.alpha is None else raster.alpha
    source = np.concatenate([raster.samples, opacity[None]])
    result = np.zeros((source.shape[0], target.height, target.width), dtype=np.uint8)
    reproject(
        source,
        result,
        **reduced_control(header, width, height),
        src_crs=to_gdal(raster.grid.crs),
        dst_crs=to_gdal(target.crs),
        dst_transform=target.transform,
        src_alpha=len(source),
        dst_alpha=len(source),
        resampling=KERNELS[plan.resampling],
        num_threads=THREADS,
    )
    samples, alpha = result[:-1], result[-1]
    return Raster(
        samples, None if alpha.all() and (alpha == 255).all() else alpha, raster.meaning, raster.palette, target
    )
