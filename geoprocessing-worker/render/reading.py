"""Read the bands of a plan in chunks, each quantized and reduced as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

import numpy as np
from rasterio.windows import Window

from geoprocessing_worker.color.arrays import (
    PICKING,
    Block,
    Samples,
    downsample,
    downsample_sparse,
    inks_to_light,
    to_byte,
)
from geoprocessing_worker.color.bands import Color
from geoprocessing_worker.color.lab import lab_to_srgb
from geoprocessing_worker.raster import U8, Level, Raster, SampleKind, SourceHeader
from geoprocessing_worker.render.chunks import Chunk, divide
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.render.threads import THREADS, in_order
from geoprocessing_worker.source.gdal import gdal_options
from geoprocessing_worker.source.sampling import OpenLevel, open_level, read_window

Tick = Callable[[float], None]
"""Called with the share done, 0 to 1, by the reading threads, one at a time."""


def read_raster(path: Path, header: SourceHeader, plan: RenderPlan, tick: Tick) -> Raster:
    """Read the shown bands, reduced to the plan's `ReadSize`, in the file's own orientation and place.

    Memory: the result, and one chunk for each of two readers.
    """
    height, width = plan.read_size.height, plan.read_size.width
    channels = 3 if plan.sample_kind is SampleKind.RGB else 1
    samples = np.zeros((channels, height, width), dtype=_kept_type(header, plan))
    hidden = np.zeros((height, width), dtype=np.uint8)  # 255 - opacity: takes no memory where all is visible
    lock, done = Lock(), 0

    def read(source: OpenLevel, chunk: Chunk) -> None:
        nonlocal done
        part, alpha = _part(source, chunk, header, plan, samples.dtype)
        if alpha is not None:
            np.subtract(np.uint8(255), alpha, out=hidden[chunk.place])
        if alpha is None or alpha.all():
            samples[:, *chunk.place] = part
        else:
            np.multiply(part, alpha != 0, out=samples[:, *chunk.place])
        with lock:
            done += part[0].size
            tick(done / samples[0].size)

    _read_all(path, header, plan.level, divide(plan.level, plan.read_size, _pixel_bytes(header, plan)), read)
    table = None if plan.quantizer is None else plan.quantizer.table(plan.stretch, plan.invert)
    return Raster(samples, np.subtract(np.uint8(255), hidden, out=hidden) if hidden.any() else None, table)


def _read_all(
    path: Path,
    header: SourceHeader,
    level: Level,
    runs: Sequence[Sequence[Chunk]],
    read: Callable[[OpenLevel, Chunk], None],
) -> None:
    """Call `read` for every chunk, in two threads with a handle each.

    GDAL's own threads leave overviews to one of them. They also take twice the processor time for LZW and for strips
    of few rows.
    """
    free: SimpleQueue[OpenLevel] = SimpleQueue()
    failed = Event()
    with ExitStack() as opened:
        for number in range(min(THREADS, len(runs))):
            free.put(opened.enter_context(open_level(path, header, level, own=number > 0)))

        def read_run(run: Sequence[Chunk]) -> None:
            source = free.get_nowait()  # one per thread
            try:
                with gdal_options():
                    for chunk in run:
                        if failed.is_set():
                            return  # the other thread's error is raised
                        read(source, chunk)
            except BaseException:
                failed.set()
                raise
            finally:
                free.put(source)

        for _ in in_order(read_run, runs):
            pass


def _part(
    source: OpenLevel, chunk: Chunk, header: SourceHeader, plan: RenderPlan, kept: np.dtype[Any]
) -> tuple[Samples, U8 | None]:
    """Return (channels, rows, columns), quantized and downsampled, and its (rows, columns) opacity."""
    (first, last, top, bottom), (start, stop, left, right) = chunk
    window = Window(plan.level.left + left, plan.level.top + top, right - left, bottom - top)
    nodata = (None,) * len(plan.nodata) if plan.nodata_when_placed else plan.nodata
    size = last - first, stop - start
    stored = plan.level.stored
    if stored is not None and not stored.count_in(*_edges(window)):
        window = Window(window.col_off, window.row_off, 1, 1)  # all pixels of missing blocks are the same
        block, opacity = read_window(source, header, plan.bands, nodata, window)
        part = np.broadcast_to(_colored(block, plan), (len(block), *size))
        return part, None if opacity is None else np.broadcast_to(opacity, size)
    block, opacity = read_window(source, header, plan.bands, nodata, window)
    colored = _colored(block, plan)
    if plan.keep_sparse:
        return downsample_sparse(colored, opacity, size, _picked(plan, kept))
    return downsample(colored, opacity, *size, plan.resampling)


def _edges(window: Window) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom."""
    left, top = int(window.col_off), int(window.row_off)
    return left, top, left + int(window.width), top + int(window.height)


def _kept_type(header: SourceHeader, plan: RenderPlan) -> np.dtype[Any]:
    """Return 16 bits for quantized values and for wide indexes of a color table, else 8."""
    wide = plan.sample_kind is SampleKind.INDEXED and np.dtype(header.bands[0].dtype).itemsize > 1
    return np.dtype(np.uint16 if wide or plan.quantizer is not None else np.uint8)


def _picked(plan: RenderPlan, kept: np.dtype[Any]) -> int | None:
    """Return the sample that yields to all others when picking. -1 if none yields, `None` if nothing is picked."""
    if plan.resampling not in PICKING:
        return None
    if plan.background is None:
        return -1
    if plan.sample_kind is SampleKind.INDEXED:
        return plan.background & int(np.iinfo(kept).max)
    shown = int(to_byte(np.array([plan.background], dtype=np.float64), plan.stretch)[0])
    return 255 - shown if plan.invert else shown


def _colored(block: Block, plan: RenderPlan) -> Samples:
    if plan.sample_kind is SampleKind.INDEXED:
        return block.view(f"u{block.dtype.itemsize}")
    if plan.bands.color is Color.LAB:
        return lab_to_srgb(block)
    if plan.quantizer is not None:
        return plan.quantizer.encode(block)
    samples = to_byte(block, plan.stretch)
    if plan.invert:
        samples = np.uint8(255) - samples
    if plan.profile is not None:
        return plan.profile.to_srgb(samples)
    return inks_to_light(samples) if plan.bands.color is Color.CMYK else samples


def _pixel_bytes(header: SourceHeader, plan: RenderPlan) -> int:
    """Return the bytes of one source pixel in the shown bands."""
    shown = len(plan.bands.indexes) + (plan.bands.alpha is not None)
    # L*a*b* is computed in floats.
    least = 4 if plan.bands.color is Color.LAB else 1
    return shown * max(least, np.dtype(header.bands[0].dtype).itemsize)
