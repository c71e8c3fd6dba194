"""Looks for damage that GDAL reads without an error, after a failed self-check."""

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
from geoprocessing_worker.tiff.gate import BlockLayout
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import BLOCK_TAGS, COLOR_MAP, COMPRESSION, HEIGHT, WIDTH

DEFLATE = frozenset({8, 32946})
MAX_BYTES = 256 << 20  # decoded: a second or two
COLORS = 3


def damage(path: Path) -> JobError | None:
    """Return the error for a damaged file, or `None` if all checked pixels decode as the header declares.

    Only the first 256 MB of pixels are decoded again.
    """
    try:
        structure = TiffStructure.read(path)
        with structure.open() as reader:
            for ifd in structure.ifds:
                if not (ifd.nested or ifd.incomplete) and ifd.find(WIDTH) and ifd.find(HEIGHT):
                    layout = BlockLayout.read(reader, ifd)
                    _check_color_table(ifd, layout)
                    _check_blocks(reader, ifd, layout)
        if structure.error is not None:
            return structure.error
        _read_twice(path)
    except JobError as error:
        return error
    except (RasterioError, CPLE_BaseError) as error:
        return named(error)
    return None


def _check_color_table(ifd: Ifd, layout: BlockLayout) -> None:
    table = ifd.find(COLOR_MAP)
    if table is not None and table.count != COLORS << min(layout.bits, 16):
        raise malformed(f"its color table has {table.count} numbers, which does not fit pixels of {layout.bits} bits")


def _check_blocks(reader: TiffReader, ifd: Ifd, layout: BlockLayout) -> None:
    """Reject deflated blocks with more bytes than their pixels. libdeflate then leaves some pixels unwritten."""
    if not DEFLATE.intersection(reader.numbers(ifd.find(COMPRESSION)).tolist()):
        return
    left = MAX_BYTES
    for content in _blocks(reader, ifd):
        left -= layout.block_bytes
        if left < 0:
            return
        try:
            pixels = zlib.decompressobj().decompress(content, layout.block_bytes + 1)
        except zlib.error as error:
            raise corrupt(str(error)) from error
        if len(pixels) > layout.block_bytes:
            raise corrupt(f"a block holds more than the {layout.block_bytes} bytes of its pixels")


def _blocks(reader: TiffReader, ifd: Ifd) -> Iterator[bytes]:
    for tags in BLOCK_TAGS:
        starts, lengths = (reader.numbers(ifd.find(tag)).tolist() for tag in tags)
        for start, length in zip(starts, lengths, strict=False):
            if length:
                yield reader.part(start, min(length, MAX_BYTES))


def _read_twice(path: Path) -> None:
    """Reject pixels that differ when they are decoded again."""
    with open_source(path, own=True) as one, open_source(path, own=True) as other:
        left = MAX_BYTES
        for _, window in one.block_windows(1):
            pixels = one.read(window=window)
            left -= pixels.nbytes
            if left < 0:
                return
            if not np.array_equal(pixels, other.read(window=window), equal_nan=pixels.dtype.kind in "fc"):
                raise corrupt("a block reads differently each time")
