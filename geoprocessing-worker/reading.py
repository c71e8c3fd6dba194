"""Reads what the plan asks for, in bands of full rows, each coded and reduced as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geoprocessing_worker.bands import Colour
from geoprocessing_worker.header import Level, SourceHeader
from geoprocessing_worker.lab import lab_to_srgb
from geoprocessing_worker.pixels import (
    PICKING,
    Block,
    Samples,
    gathered,
    inks_to_light,
    reduced,
    to_byte,
)
from geoprocessing_worker.plan import RenderPlan
from geoprocessing_worker.raster import U8, Meaning, Raster
from geoprocessing_worker.sampling import open_level, read_window

STRIP_BYTES = 32 << 20  # raw bytes read at a time: large enough for two decoding threads, small beside the output
CACHE_BYTES = 64 << 20  # a row of tiles up to this size stays in GDAL's cache until the next band of rows needs it

Tick = Callable[[float], None]
"""Told the part that is done, 0 to 1."""


def read_raster(path: Path, header: SourceHeader, plan: RenderPlan, tick: Tick) -> Raster:
    """The shown bands, reduced to the plan's working size, in the file's own orientation and place.

    Memory: the result and one band of rows.
    """
    height, width, level = plan.work.height, plan.work.width, plan.level
    channels = 3 if plan.meaning is Meaning.RGB else 1
    samples = np.zeros((channels, height, width), dtype=_kept_type(header, plan))
    alpha: U8 | None = None
    nodata = (None,) * len(plan.nodata) if plan.nodata_when_placed else plan.nodata
    with open_level(path, header, level) as source:
        for (first, last), (top, bottom) in _strips(level, height, _rows_at_a_time(header, plan)):
            window = Window(level.left, level.top + top, level.width, bottom - top)
            block, opacity = read_window(source, header, plan.bands, nodata, window)
            coloured = _coloured(block, plan)
            if plan.gathers:
                part, part_alpha = gathered(coloured, opacity, (last - first, width), _picked(plan, samples.dtype))
            else:
                part, part_alpha = reduced(coloured, opacity, last - first, width, plan.resampling)
            samples[:, first:last] = part
            if part_alpha is not None:
                if alpha is None:
                    alpha = np.full((height, width), 255, dtype=np.uint8)
                alpha[first:last] = part_alpha
                if not part_alpha.all():
                    samples[:, first:last] *= part_alpha != 0
            tick(last / height)
    table = None if plan.coding is None else plan.coding.table(plan.stretch, plan.invert)
    return Raster(samples, alpha, table)


def _kept_type(header: SourceHeader, plan: RenderPlan) -> np.dtype[Any]:
    """What a sample is kept as: 16 bits for codes, and for the indexes of a colour table that are stored so."""
    wide = plan.meaning is Meaning.INDEXED and np.dtype(header.bands[0].dtype).itemsize > 1
    return np.dtype(np.uint16 if wide or plan.coding is not None else np.uint8)


def _picked(plan: RenderPlan, kept: np.dtype[Any]) -> int | None:
    """The sample that yields to all others where one is picked; -1 if none does, `None` if none is picked."""
    if plan.resampling not in PICKING:
        return None
    if plan.background is None:
        return -1
    if plan.meaning is Meaning.INDEXED:
        return plan.background & int(np.iinfo(kept).max)
    shown = int(to_byte(np.array([plan.background], dtype=np.float64), plan.stretch)[0])
    return 255 - shown if plan.invert else shown


def _coloured(block: Block, plan: RenderPlan) -> Samples:
    if plan.meaning is Meaning.INDEXED:
        return block.view(f"u{block.dtype.itemsize}")
    if plan.bands.colour is Colour.LAB:
        return lab_to_srgb(block)
    if plan.coding is not None:
        return plan.coding.encode(block)
    samples = to_byte(block, plan.stretch)
    if plan.invert:
        samples = np.uint8(255) - samples
    if plan.profile is not None:
        return plan.profile.to_srgb(samples)
    return inks_to_light(samples) if plan.bands.colour is Colour.CMYK else samples


def _rows_at_a_time(header: SourceHeader, plan: RenderPlan) -> int:
    """Whole rows of blocks where one fits the cache, since a row of tiles that is left half read is decoded twice."""
    level = plan.level
    shown = len(plan.bands.indexes) + (plan.bands.alpha is not None)
    # L*a*b* is reckoned with as floats.
    least = 4 if plan.bands.colour is Colour.LAB else 1
    row_bytes = level.width * shown * max(least, np.dtype(header.bands[0].dtype).itemsize)
    rows = max(1, STRIP_BYTES // row_bytes)
    if level.block_height * row_bytes <= CACHE_BYTES:
        rows = max(1, rows // level.block_height) * level.block_height
    return rows


def _strips(level: Level, height: int, rows: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """((first, last) output rows, (top, bottom) source rows), each pair half-open, together the whole picture.

    A border between two strips lies on the source row nearest to the border of an output row: at most half a source
    pixel off, and the error does not add up.
    """
    first = top = 0
    while first < height:
        last = max(first + 1, int((top + rows) * height / level.height))
        last = height if last >= height - 1 else last
        bottom = level.height if last == height else round(last * level.height / height)
        yield (first, last), (top, max(bottom, top + 1))
        first, top = last, bottom
