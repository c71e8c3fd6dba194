"""Write PNG in two threads: libvips and Pillow compress in one, and libvips would quantize a given palette again.

Rows are filtered and compressed in parts. Each part has the 32 kB before it as its dictionary and ends on a
whole byte. So the parts concatenated are one zlib stream, the same for any number of threads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from zlib_ng import zlib_ng

from geoprocessing_worker.raster import U8
from geoprocessing_worker.render.threads import in_order

SIGNATURE = b"\x89PNG\r\n\x1a\n"
INDEXED = 3  # the color type of IHDR
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels
AVERAGE = 3  # the best filter for imagery: files are as small as with libpng's choice among all five

# zlib-ng's levels, the fastest ones with which files are no larger than GDAL's at its default.
PALETTE_LEVEL = 6
COLOR_LEVEL = 4
PART_BYTES = 1 << 20  # compressed by one thread at a time
# Bytes of a part that show whether a search for repetitions pays off: at most 64 kB, of small parts a sixteenth.
PROBE, PROBED = 1 << 16, 16
WINDOW = 1 << 15  # bytes that deflate can look back
ZLIB_HEADER = b"\x78\x9c"

Rows = Callable[[int, int], bytes]
"""From (first, last), half-open, to those rows as PNG filters them, each after its filter's number."""


def palette_png(indexes: U8, palette: U8) -> bytes:
    """Return the file for (height, width) indexes at the least depth, with (entries, 4) RGBA as PLTE and tRNS."""
    depth = next(bits for bits in (1, 2, 4, 8) if len(palette) <= 1 << bits)
    chunks = [_chunk(b"PLTE", palette[:, :3].tobytes())]
    transparent = np.flatnonzero(palette[:, 3] != 255)
    if transparent.size:
        chunks.append(_chunk(b"tRNS", palette[: transparent[-1] + 1, 3].tobytes()))
    return _file(indexes.shape, depth, INDEXED, chunks, lambda first, last: _packed(indexes[first:last], depth))


def color_png(pixels: U8, depth: int = 8) -> bytes:
    """Return the file for (height, width, channels): 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.

    Gray values that are all multiples of 255 / (2 ** depth - 1) may have a `depth` of 1, 2 or 4 bits.
    """
    if depth == 8:
        return _file(pixels.shape[:2], 8, COLOR_TYPES[pixels.shape[2]], [], lambda *rows: _averaged(pixels, *rows))
    step = np.uint8(255 // ((1 << depth) - 1))
    return _file(
        pixels.shape[:2],
        depth,
        COLOR_TYPES[1],
        [],
        lambda first, last: _packed(pixels[first:last, :, 0] // step, depth),
    )


def _file(shape: tuple[int, ...], depth: int, color_type: int, chunks: list[bytes], rows: Rows) -> bytes:
    height, width = shape
    row_bytes = len(rows(0, 1))
    each, back = max(1, PART_BYTES // row_bytes), -(-WINDOW // row_bytes)
    whole = color_type != INDEXED and depth == 8

    def part(first: int) -> tuple[bytes, bytes]:
        last = min(first + each, height)
        content = rows(first, last)
        before = [rows(max(0, first - back), first)[-WINDOW:]] if first else []
        strategy = _strategy(content) if whole else zlib_ng.Z_DEFAULT_STRATEGY
        # Raw deflate: the parts share one header and one checksum.
        machine = zlib_ng.compressobj(
            COLOR_LEVEL if whole else PALETTE_LEVEL, zlib_ng.DEFLATED, -15, 9, strategy, *before
        )
        body = machine.compress(content)
        return content, body + machine.flush(zlib_ng.Z_FINISH if last == height else zlib_ng.Z_SYNC_FLUSH)

    parts = [
        SIGNATURE,
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)),
        *chunks,
        _chunk(b"IDAT", ZLIB_HEADER),
    ]
    checksum = 1
    for content, body in in_order(part, range(0, height, each)):
        checksum = zlib_ng.adler32(content, checksum)
        parts.append(_chunk(b"IDAT", body))
    return b"".join([*parts, _chunk(b"IDAT", struct.pack(">I", checksum)), _chunk(b"IEND", b"")])


def _strategy(content: bytes) -> int:
    """Return the better strategy for a part. Without a search for repetitions, noise takes a quarter of the time."""
    size = min(PROBE, len(content) // PROBED)
    start = (len(content) - size) // 2
    probe = content[start : start + size]
    lengths = {}
    for strategy in (zlib_ng.Z_HUFFMAN_ONLY, zlib_ng.Z_DEFAULT_STRATEGY):
        machine = zlib_ng.compressobj(COLOR_LEVEL, zlib_ng.DEFLATED, -15, 9, strategy)
        lengths[strategy] = len(machine.compress(probe) + machine.flush())
    return min(lengths, key=lambda strategy: lengths[strategy])


def _averaged(pixels: U8, first: int, last: int) -> bytes:
    """Return each byte minus the mean, rounded down, of the one to its left and the one above."""
    channels = pixels.shape[2]
    here = pixels[first:last].reshape(last - first, -1)
    above = np.zeros_like(here)
    start = max(first, 1)  # above the first row there is 0
    above[start - first :] = pixels[start - 1 : last - 1].reshape(-1, here.shape[1])
    rows = np.empty((last - first, here.shape[1] + 1), dtype=np.uint8)
    rows[:, 0] = AVERAGE
    np.subtract(here[:, :channels], above[:, :channels] >> 1, out=rows[:, 1 : channels + 1])
    left, above = here[:, :-channels], above[:, channels:]
    mean = left ^ above  # the mean without its carry, which would not fit a byte
    mean >>= 1
    mean += left & above
    np.subtract(here[:, channels:], mean, out=rows[:, channels + 1 :])
    return rows.tobytes()


def _packed(values: U8, depth: int) -> bytes:
    """Return rows of packed values, each after a 0: filters do not help values that are names, not amounts."""
    height, width = values.shape
    each = 8 // depth
    packed_width = -(-width // each)
    padded = values
    if width % each:
        padded = np.zeros((height, packed_width * each), dtype=np.uint8)
        padded[:, :width] = values
    rows = np.zeros((height, packed_width + 1), dtype=np.uint8)
    for place in range(each):
        rows[:, 1:] |= padded[:, place::each] << np.uint8(8 - depth * (place + 1))
    return rows.tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib_ng.crc32(kind + content))
