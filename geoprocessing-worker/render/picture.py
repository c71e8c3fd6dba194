"""Render a plan: read, warp, color. Hidden pixels are always zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.color.arrays import validity
from geoprocessing_worker.color.colormaps import color_table
from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.raster import U8, Grid, Picture, SampleKind, SourceHeader, WarpedImage, counts
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.render.reading import Tick, read_raster
from geoprocessing_worker.render.warp import place

MAX_ENTRIES = 256  # of a PNG's palette


def render(path: Path, header: SourceHeader, plan: RenderPlan, tick: Tick) -> Picture:
    """Render the file at `path`.

    Raises:
        JobError: `no_valid_pixels`.
        rasterio.errors.RasterioError: a block cannot be decoded (named by gdal_errors.py).
    """
    placed, has_data = _warped(path, header, plan, tick)
    fraction = 1.0 if placed.alpha is None else float(np.count_nonzero(placed.alpha)) / placed.alpha.size
    if fraction == 0.0 and has_data:
        raise invalid_input(
            "no_valid_pixels",
            "No pixel of this file is within the area of the requested coordinate system. "
            "Request another one, or native.",
        )
    if plan.sample_kind is SampleKind.INDEXED:
        picture = _indexed(placed, header.palette, plan.layout.target, fraction)
    else:
        picture = _colored(placed, plan, fraction)
    tick(1.0)
    return picture


def render_rgba(path: Path, header: SourceHeader, plan: RenderPlan) -> U8:
    """Return (height, width, 4) of the plan's target, in colors for any kind of sample. Hidden pixels are zero."""
    placed, _ = _warped(path, header, plan, lambda _part: None)
    samples, alpha = placed.samples, placed.alpha
    if plan.sample_kind is SampleKind.INDEXED:
        pixels: U8 = _whole(header.palette, samples.dtype)[samples[..., 0]]
        opacity = pixels[..., 3] if alpha is None else np.where(alpha < 128, np.uint8(0), pixels[..., 3])
        samples = pixels[..., :3]
    else:
        if plan.colormap is not None:
            samples = color_table(plan.colormap)[samples[..., 0]]
        opacity = np.full(samples.shape[:2], 255, dtype=np.uint8) if alpha is None else alpha
    found = np.empty((*opacity.shape, 4), dtype=np.uint8)
    for channel in range(3):
        found[..., channel] = samples[..., min(channel, samples.shape[2] - 1)] * (opacity != 0)
    found[..., 3] = opacity
    return found


def pack(rgba: U8, grid: Grid) -> Picture:
    """Return a picture of (height, width, 4) pixels, in the smallest lossless mode."""
    return _packed(rgba[..., :3], rgba[..., 3], grid, float(np.count_nonzero(rgba[..., 3])) / rgba[..., 3].size)


def _warped(path: Path, header: SourceHeader, plan: RenderPlan, tick: Tick) -> tuple[WarpedImage, bool]:
    """Return the pixels on the target's grid, and whether the file has a valid pixel, as far as known by then."""
    raster = read_raster(path, header, plan, lambda part: tick(part * 0.8))
    # A file without valid pixels gives an empty picture. One that becomes empty by warping is an error.
    has_data = not plan.nodata_when_placed and (raster.alpha is None or bool(raster.alpha.any()))
    placed = place(raster, header, plan)
    del raster  # the larger array
    if plan.nodata_when_placed:
        shown = validity(np.moveaxis(placed.samples, 2, 0), plan.nodata, placed.alpha)
        placed = WarpedImage(placed.samples, shown)
    return placed, has_data


def _colored(placed: WarpedImage, plan: RenderPlan, fraction: float) -> Picture:
    samples = placed.samples
    if plan.colormap is not None:
        samples = color_table(plan.colormap)[samples[..., 0]]
        if placed.alpha is not None:
            samples[placed.alpha == 0] = 0
    return _packed(samples, placed.alpha, plan.layout.target, fraction)


def _packed(samples: U8, alpha: U8 | None, grid: Grid, fraction: float) -> Picture:
    """Return a picture in the smallest lossless mode."""
    if samples.shape[2] == 3 and _gray(samples):
        samples = samples[:, :, :1]
    if alpha is not None and (alpha != 255).any():
        samples = _with_alpha(samples, alpha)
    return Picture(samples, None, grid, fraction)


def _with_alpha(samples: U8, alpha: U8) -> U8:
    """Add alpha plane by plane, in a fifth of the time of `np.concatenate` for rows of three bytes."""
    pixels = np.empty((*alpha.shape, samples.shape[2] + 1), dtype=np.uint8)
    for channel in range(samples.shape[2]):
        pixels[..., channel] = samples[..., channel]
    pixels[..., -1] = alpha
    return pixels


def _gray(samples: U8) -> bool:
    """Whether red, green and blue are equal everywhere. Most color pictures differ in their first rows."""
    return all(
        np.array_equal(rows[..., 0], rows[..., 1]) and np.array_equal(rows[..., 1], rows[..., 2])
        for rows in np.array_split(samples, max(1, len(samples) // 64))
    )


def _indexed(placed: WarpedImage, table: U8 | None, grid: Grid, fraction: float) -> Picture:
    """Return a palette picture, or an RGBA one if hidden pixels would need an entry and none is free.

    Used entries of wide indexes are renumbered, if they fit a PNG's palette.
    """
    indexes, alpha = placed.samples[:, :, 0], placed.alpha
    palette = _whole(table, indexes.dtype)
    hidden = None if alpha is None else alpha < 128
    if len(palette) > MAX_ENTRIES:
        used = _used(indexes, hidden)
        if used.size > MAX_ENTRIES:
            return _looked_up(indexes, palette, hidden, grid, fraction)
        narrow = np.zeros(len(palette), dtype=np.uint8)
        narrow[used] = np.arange(used.size)
        indexes, palette = narrow[indexes], _whole(palette[used], np.dtype(np.uint8))
    if hidden is None or not hidden.any():
        return Picture(indexes[:, :, None], _trimmed(palette, indexes), grid, fraction)
    # Hidden pixels hold 0 here, which need not be a use of entry 0.
    used = counts(indexes)
    used[0] -= np.count_nonzero(hidden & (indexes == 0))
    free = np.flatnonzero(used == 0)
    if free.size == 0:
        return _looked_up(indexes, palette, hidden, grid, fraction)
    entry = int(free[0])
    palette[entry] = 0
    filled = np.where(hidden, np.uint8(entry), indexes)
    return Picture(filled[:, :, None], _trimmed(palette, filled), grid, fraction)


def _whole(table: U8 | None, indexes: np.dtype[Any]) -> U8:
    """Return (entries, 4) for all indexes of a type. Entries beyond the table are transparent."""
    palette = np.zeros((1 << 8 * indexes.itemsize, 4), dtype=np.uint8)
    if table is not None:
        entries = min(len(palette), len(table))
        palette[:entries] = table[:entries]
    return palette


def _used(indexes: NDArray[Any], hidden: NDArray[np.bool_] | None) -> NDArray[np.intp]:
    """Return the indexes of visible pixels, ascending."""
    seen = np.zeros(1 << 16, dtype=np.bool_)
    seen[indexes if hidden is None else indexes[~hidden]] = True
    return np.flatnonzero(seen)


def _looked_up(
    indexes: NDArray[Any], palette: U8, hidden: NDArray[np.bool_] | None, grid: Grid, fraction: float
) -> Picture:
    """Return RGB or RGBA, for more colors than a PNG's palette holds."""
    colors, opacity = palette[:, :3][indexes], palette[:, 3][indexes]
    if hidden is not None:
        colors[hidden] = opacity[hidden] = 0
    return _packed(colors, opacity, grid, fraction)


def _trimmed(palette: U8, indexes: U8) -> U8:
    """Drop entries after the last one used, which cost bytes and bits per pixel."""
    return palette[: int(indexes.max()) + 1]
