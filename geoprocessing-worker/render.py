"""From a plan to a picture: read, place, colour. What a hidden pixel holds is always zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geoprocessing_worker import colormaps
from geoprocessing_worker.errors import refused
from geoprocessing_worker.header import SourceHeader
from geoprocessing_worker.plan import RenderPlan
from geoprocessing_worker.raster import U8, Grid, Meaning, Picture, Raster
from geoprocessing_worker.reading import Tick, read_raster
from geoprocessing_worker.warp import place


def render(path: Path, header: SourceHeader, plan: RenderPlan, tick: Tick) -> Picture:
    """The picture of the file at `path`.

    Raises:
        JobError: `no_valid_pixels`.
        rasterio.errors.RasterioError: a block cannot be decoded (named by refusals.py).
    """
    raster = read_raster(path, header, plan, lambda part: tick(part * 0.8))
    raster = place(raster, header, plan)
    fraction = 1.0 if raster.alpha is None else float(np.count_nonzero(raster.alpha)) / raster.alpha.size
    if fraction == 0.0:
        raise refused(
            "no_valid_pixels",
            "Every pixel of this file is marked as having no data, so there is nothing to show. "
            "Check its nodata value, or give another one in the options.",
            nodata=[value for value in plan.nodata if value is not None and np.isfinite(value)],
        )
    picture = _indexed(raster, fraction) if raster.meaning is Meaning.INDEXED else _coloured(raster, plan, fraction)
    tick(1.0)
    return picture


def _coloured(raster: Raster, plan: RenderPlan, fraction: float) -> Picture:
    samples = raster.samples
    if plan.colormap is not None:
        samples = np.moveaxis(colormaps.table(plan.colormap)[samples[0]], 2, 0)
    return _packed(samples, raster.alpha, raster.grid, fraction)


def _packed(samples: U8, alpha: U8 | None, grid: Grid, fraction: float) -> Picture:
    """The smallest mode that loses nothing."""
    planes = [np.array(plane) for plane in samples]
    if len(planes) == 3 and np.array_equal(planes[0], planes[1]) and np.array_equal(planes[1], planes[2]):
        planes = planes[:1]
    if alpha is not None and (alpha != 255).any():
        hidden = alpha == 0
        for plane in planes:
            plane[hidden] = 0
        planes.append(alpha)
    return Picture(np.stack(planes, axis=2), None, grid, fraction)


def _indexed(raster: Raster, fraction: float) -> Picture:
    """A palette picture; hidden pixels take an entry that nothing uses, and only without one does it become RGBA."""
    indexes, alpha = raster.samples[0], raster.alpha
    palette = np.zeros((256, 4), dtype=np.uint8)
    if raster.palette is not None:
        entries = min(256, len(raster.palette))
        palette[:entries] = raster.palette[:entries]
    hidden = None if alpha is None else alpha < 128
    if hidden is None or not hidden.any():
        return Picture(indexes[:, :, None], _trimmed(palette, indexes), raster.grid, fraction)
    used = np.bincount(indexes[~hidden].ravel(), minlength=256) > 0
    free = np.flatnonzero(~used)
    if free.size == 0:
        colours = np.moveaxis(palette[indexes], 2, 0)
        opacity = np.where(hidden, np.uint8(0), colours[3])
        return _packed(colours[:3], opacity, raster.grid, fraction)
    entry = int(free[0])
    palette[entry] = 0
    filled = np.where(hidden, np.uint8(entry), indexes)
    return Picture(filled[:, :, None], _trimmed(palette, filled), raster.grid, fraction)


def _trimmed(palette: U8, indexes: U8) -> U8:
    """Entries after the last one used cost bytes and bits per pixel."""
    return palette[: int(indexes.max()) + 1]
