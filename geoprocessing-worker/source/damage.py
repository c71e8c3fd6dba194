"""Whether a failed self-check is the file's fault: damage that GDAL reads without an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from geoprocessing_worker.errors import JobError, malformed
from geoprocessing_worker.source.gdal import open_source
from geoprocessing_worker.source.gdal_errors import corrupt, named
from geoprocessing_worker.tiff.directory import COLOR_MAP, COMPRESSION, HEIGHT, PLACES, WIDTH, Directory, Tiff
from geoprocessing_worker.tiff.gate import BlockLayout

DEFLATE = frozenset({8, 32946})
MOST_BYTES = 256 << 20  # decoded; a second or two
COLORS = 3


def damage(path: Path) -> JobError | None:
    """Return the refusal of a damaged file, or `None` if all that is looked at decodes as its header says.

    Of large files only the first 256 MB of pixels are decoded again.
    """
    try:
        with path.open("rb") as file:
            tiff = Tiff(file)
            for directory in tiff.directories():
                if not (directory.nested or directory.incomplete) and directory.find(WIDTH) and directory.find(HEIGHT):
                    layout = BlockLayout.read(tiff, directory)
                    _check_color_table(directory, layout)
                    _check_blocks(tiff, directory, layout)
        _read_twice(path)
    except JobError as error:
        return error
    except (RasterioError, CPLE_BaseError) as error:
        return named(error)
    return None


def _check_color_table(directory: Directory, layout: BlockLayout) -> None:
    table = directory.find(COLOR_MAP)
    if table is not None and table.count != COLORS << min(layout.bits, 16):
        raise malformed(f"its color table has {table.count} numbers, which does not fit pixels of {layout.bits} bits")


def _check_blocks(tiff: Tiff, directory: Directory, layout: BlockLayout) -> None:
    """Refuse deflated blocks that hold more than their pixels: libdeflate then leaves some pixels unwritten."""
    if not DEFLATE.intersection(tiff.numbers(directory.find(COMPRESSION)).tolist()):
        return
    left = MOST_BYTES
    for content in _blocks(tiff, directory):
        left -= layout.block_bytes
        if left < 0:
            return
        try:
            pixels = zlib.decompressobj().decompress(content, layout.block_bytes + 1)
        except zlib.error as error:
            raise corrupt(str(error)) from error
        if len(pixels) > layout.block_bytes:
            raise corrupt(f"a block holds more than the {layout.block_bytes} bytes of its pixels")


def _blocks(tiff: Tiff, directory: Directory) -> Iterator[bytes]:
    for starts, lengths in PLACES:
        places = (tiff.numbers(directory.find(tag)).tolist() for tag in (starts, lengths))
        for start, length in zip(*places, strict=False):
            if length:
                yield tiff.part(start, min(length, MOST_BYTES))


def _read_twice(path: Path) -> None:
    """Refuse pixels that are others when they are decoded again."""
    with open_source(path, own=True) as one, open_source(path, own=True) as other:
        left = MOST_BYTES
        for _, window in one.block_windows(1):
            pixels = one.read(window=window)
            left -= pixels.nbytes
            if left < 0:
                return
            if not np.array_equal(pixels, other.read(window=window), equal_nan=pixels.dtype.kind in "fc"):
                raise corrupt("a block reads differently each time")
