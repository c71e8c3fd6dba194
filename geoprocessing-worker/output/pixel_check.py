"""Compare a few pixels of the finished picture with the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from geoprocessing_worker.color.arrays import Block, inks_to_light, scale_to_byte
from geoprocessing_worker.color.bands import Color
from geoprocessing_worker.color.lab import lab_to_srgb
from geoprocessing_worker.geo.approx_transform import source_positions
from geoprocessing_worker.output.verify import failed
from geoprocessing_worker.raster import Picture, SampleKind, SourceHeader
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.source.sampling import OpenLevel, open_level, read_window

POINTS_PER_SIDE = 4  # points along each side: none in the middle, where a mirrored picture is right
REACH = 2.0  # output pixels around a point that averaging and interpolation can mix into its color
MARGIN = 3  # source pixels more, for interpolation without downsampling
MAX_WINDOW = 512  # pixels a side. Points with a larger source window are skipped.
MAX_BLOCK_BYTES = 64 << 20  # of all points. Larger blocks are skipped: the check would cost as much as the picture
ROUNDING = 4  # gray levels
OVERSHOOT = 0.3  # of the range around a point, by which cubic and lanczos may exceed it
MAX_WHOLE_PIXELS = 1 << 19  # pixels: a level up to this size is read at once
MAX_UNLIKE_SHARE = 0.25  # of the points: a wrong picture differs in nearly all that are not flat

Samples = tuple[Block, NDArray[np.uint8] | None]
"""(bands, rows, columns) raw values of the shown bands, and the (rows, columns) opacity."""
ReadWindow = Callable[[Window], Samples]


@dataclass(frozen=True, slots=True)
class PixelMatches:
    """The number of compared points, and how many of them match the source."""

    compared: int
    matching: int


def check_pixels(
    path: Path, header: SourceHeader, plan: RenderPlan, picture: Picture, *, leeway: int = ROUNDING
) -> PixelMatches:
    """Compare at most sixteen points. `leeway`: gray levels that a picture may be off by.

    Raises:
        JobError: `self_check_failed`, class internal: the picture shows something else than the file.
        rasterio.errors.RasterioError: a block cannot be decoded.
    """
    verdicts: list[bool] = []
    with open_level(path, header, plan.level) as source:
        read = _window_reader(source, header, plan)
        for column, row, window in _places(header, plan):
            verdicts.append(_matches(_pixel(picture, column, row), read(window), header, plan, leeway))
    found = PixelMatches(len(verdicts), sum(verdicts))
    if found.compared - found.matching > max(1, found.compared * MAX_UNLIKE_SHARE):
        raise failed(f"in {found.compared - found.matching} of {found.compared} places it shows something else", path)
    return found


def _window_reader(source: OpenLevel, header: SourceHeader, plan: RenderPlan) -> ReadWindow:
    """Read windows one by one, or a small level at once, since each call costs 1 ms at any size."""
    level = plan.level
    if level.width * level.height > MAX_WHOLE_PIXELS:
        return lambda window: read_window(source, header, plan.bands, plan.nodata, window)
    whole = Window(0, 0, level.width, level.height)
    pixels, shown = read_window(source, header, plan.bands, plan.nodata, whole)

    def cut(window: Window) -> Samples:
        rows, columns = window.toslices()
        return pixels[:, rows, columns], None if shown is None else shown[rows, columns]

    return cut


def _places(header: SourceHeader, plan: RenderPlan) -> Iterator[tuple[int, int, Window]]:
    """Yield (column, row) of the picture and the window of the level around it, if it is wholly inside of the file."""
    level, target = plan.level, plan.layout.target
    block_bytes = level.block_width * level.block_height * len(header.bands)
    if block_bytes * np.dtype(header.bands[0].dtype).itemsize * POINTS_PER_SIDE**2 > MAX_BLOCK_BYTES:
        return
    inverse = source_positions(header, plan.layout, level.width, level.height)
    parts = (np.arange(POINTS_PER_SIDE) + 0.5) / POINTS_PER_SIDE
    columns, rows = np.meshgrid((parts * target.width).astype(int), (parts * target.height).astype(int), indexing="ij")
    reach = np.array([-REACH, 0.0, REACH])
    across, down = (side.ravel() + 0.5 for side in np.meshgrid(reach, reach))
    # All at once: each call takes 0.1 ms for any number of points.
    around = inverse(columns.reshape(-1, 1) + across, rows.reshape(-1, 1) + down)
    for column, row, xs, ys in zip(columns.flat, rows.flat, *around, strict=True):
        if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
            continue
        left, top = int(xs.min()) - MARGIN, int(ys.min()) - MARGIN
        right, bottom = int(xs.max()) + MARGIN + 1, int(ys.max()) + MARGIN + 1
        inside = left >= 0 and top >= 0 and right <= level.width and bottom <= level.height
        if inside and right - left <= MAX_WINDOW and bottom - top <= MAX_WINDOW:
            yield int(column), int(row), Window(left, top, right - left, bottom - top)


def _pixel(picture: Picture, column: int, row: int) -> NDArray[np.int_]:
    """Return (4,) red, green, blue, alpha."""
    found = picture.pixels[row, column]
    if picture.palette is not None:
        return np.array(picture.palette[found[0]], dtype=int)
    color = found[:3] if len(found) >= 3 else np.repeat(found[:1], 3)
    alpha = found[-1] if len(found) in {2, 4} else 255
    return np.array([*color, alpha], dtype=int)


def _matches(pixel: NDArray[np.int_], samples: Samples, header: SourceHeader, plan: RenderPlan, leeway: int) -> bool:
    """Whether a pixel can result from the source pixels around it."""
    block, opacity = samples
    shown = np.full(block.shape[1:], 255, dtype=np.uint8) if opacity is None else opacity
    if not shown.any():
        return bool(pixel[3] == 0)
    if pixel[3] == 0:
        return not shown.all()
    if opacity is not None and plan.sample_kind is SampleKind.INDEXED and not shown.all():
        return True  # at the edge of hidden pixels either may be picked
    colors = _colors(block[:, shown > 0], header, plan)
    if colors is None:
        return True
    low, high = colors.min(axis=1).astype(int), colors.max(axis=1).astype(int)
    leave = leeway + ((high - low) * OVERSHOOT if plan.resampling in {"cubic", "lanczos"} else 0)
    found = pixel[: len(low)]
    return bool((found >= low - leave).all() and (found <= high + leave).all())


def _colors(values: Any, header: SourceHeader, plan: RenderPlan) -> Any:
    """Return (channels, pixels) bytes as the picture shows them. `None` if colors have no order."""
    if plan.bands.color is Color.PALETTE:
        if header.palette is None:
            return None
        indexes = values[0].view(np.uint8) if values.dtype.itemsize == 1 else values[0]
        return header.palette[np.clip(indexes, 0, len(header.palette) - 1)].T[:3]
    if plan.colormap is not None:
        return None
    if plan.bands.color is Color.LAB:
        return lab_to_srgb(values)
    samples = scale_to_byte(values.astype(np.float64), plan.stretch)
    if plan.profile is not None:
        samples = plan.profile.to_srgb(samples)
    elif plan.bands.color is Color.CMYK:
        samples = inks_to_light(samples)
    return np.uint8(255) - samples if plan.invert else samples
