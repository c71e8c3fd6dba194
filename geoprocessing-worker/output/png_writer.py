"""Write PNG in two threads, since Pillow and OpenCV compress in one.

Rows are filtered and compressed in parts that end on a whole byte. So the parts concatenated are one zlib stream, the
same for any number of threads. libdeflate searches faster for repetitions than zlib-ng, but can only end a stream. So
it compresses the second half of a picture, and zlib-ng the first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from deflate import deflate_compress
from zlib_ng import zlib_ng

from geoprocessing_worker.raster import U8
from geoprocessing_worker.render.threads import in_order

SIGNATURE = b"\x89PNG\r\n\x1a\n"
INDEXED = 3  # the color type of IHDR
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels
UP = 2
AVERAGE = 3  # the best filter for imagery: files are as small as with libpng's choice among all five

# Bytes of rows, with the numbers of their filters.
SMALL = 2 << 20  # a smaller picture is one part, since threads would not pay off
PART = 2 << 20
LARGEST_END = 64 << 20  # of libdeflate's part, which it compresses at once
BAND = 1 << 16  # filtered at once: fits the cache, and is small enough for malloc to reuse its memory
# Up to 16 samples of 64 kB choose the method. Of small pictures, they are a sixteenth.
SAMPLE, SAMPLES, SAMPLED = 1 << 16, 16, 16
SAVING = 0.97  # a slower method must save 3 %

ZLIB_HEADER = b"\x78\x9c"
ADLER = 65521  # the modulus of Adler-32

Fill = Callable[[int, U8], None]
"""Fill (rows, bytes) with the rows from `first` on as PNG filters them, each after its filter's number."""

Deflated = bytes | bytearray


@dataclass(frozen=True, slots=True)
class _Method:
    """A filter, and the levels of zlib-ng and libdeflate: the fastest ones with files of about GDAL's size.

    Without levels, only Huffman codes are used. Noise has no repetitions, and takes a third of the time then.
    """

    fill: Fill
    levels: tuple[int, int] | None

    def compress(self, rows: range, row_bytes: int, *, final: bool) -> tuple[int, list[Deflated]]:
        """Return the checksum of a part, and pieces of it as raw deflate."""
        level, strategy = (self.levels[0], zlib_ng.Z_DEFAULT_STRATEGY) if self.levels else (1, zlib_ng.Z_HUFFMAN_ONLY)
        if self.levels and final:
            content = np.empty((len(rows), row_bytes), dtype=np.uint8)
            for band in _split(rows, row_bytes, BAND):
                self.fill(band.start, content[band.start - rows.start : band.stop - rows.start])
            return zlib_ng.adler32(content), [deflate_compress(content, self.levels[1])]
        machine = zlib_ng.compressobj(level, zlib_ng.DEFLATED, -15, 9, strategy)
        checksum, pieces = 1, list[Deflated]()
        for band in _split(rows, row_bytes, BAND):
            content = np.empty((len(band), row_bytes), dtype=np.uint8)
            self.fill(band.start, content)
            checksum = zlib_ng.adler32(content, checksum)
            pieces.append(machine.compress(content))
        pieces.append(machine.flush(zlib_ng.Z_FINISH if final else zlib_ng.Z_SYNC_FLUSH))
        return checksum, pieces


def palette_png(indexes: U8, palette: U8) -> bytes:
    """Return the file for (height, width) indexes at the least depth, with (entries, 4) RGBA as PLTE and tRNS."""
    depth = next(bits for bits in (1, 2, 4, 8) if len(palette) <= 1 << bits)
    chunks = _chunk(b"PLTE", palette[:, :3].tobytes())
    transparent = np.flatnonzero(palette[:, 3] != 255)
    if transparent.size:
        chunks += _chunk(b"tRNS", palette[: transparent[-1] + 1, 3].tobytes())
    return _file(indexes.shape, depth, INDEXED, chunks, *_packings(indexes, depth))


def color_png(pixels: U8, depth: int = 8) -> bytes:
    """Return the file for (height, width, channels): 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.

    Gray values that are all multiples of 255 / (2 ** depth - 1) may have a `depth` of 1, 2 or 4 bits.
    """
    kind = COLOR_TYPES[pixels.shape[2]]
    if depth < 8:
        values = pixels[:, :, 0] // np.uint8(255 // ((1 << depth) - 1))
        return _file(values.shape, depth, kind, [], *_packings(values, depth))

    def average(first: int, rows: U8) -> None:
        _average(pixels, first, rows)

    return _file(pixels.shape, depth, kind, [], _Method(average, None), _Method(average, (3, 3)))


def _packings(values: U8, depth: int) -> tuple[_Method, _Method]:
    """Return the methods for packed values: without a filter, and with the difference to the row above."""

    def plain(first: int, rows: U8) -> None:
        rows[:, 0] = 0
        rows[:, 1:] = _packed(values[first : first + len(rows)], depth)

    def up(first: int, rows: U8) -> None:
        packed = _packed(values[max(first - 1, 0) : first + len(rows)], depth)
        rows[:, 0] = UP
        rows[:, 1:] = packed[-len(rows) :]
        rows[1 - len(packed) :, 1:] -= packed[:-1]

    return _Method(plain, (5, 4)), _Method(up, (5, 4))


def _file(shape: tuple[int, ...], depth: int, color_type: int, chunks: list[Deflated], *methods: _Method) -> bytes:
    height, width = shape[:2]
    row_bytes = 1 + -(-width * depth * math.prod(shape[2:]) // 8)
    method = _best(methods, height, row_bytes)

    def compress(part: range) -> tuple[int, list[Deflated]]:
        return method.compress(part, row_bytes, final=part.stop == height)

    parts = _parts(range(height), row_bytes, method)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    written = [SIGNATURE, *_chunk(b"IHDR", header), *chunks, *_chunk(b"IDAT", ZLIB_HEADER)]
    checksum = 1
    # The last part can be the largest, so it is the first to begin.
    done = list(in_order(compress, parts[::-1]))[::-1]
    for part, (own, pieces) in zip(parts, done, strict=True):
        checksum = _joined(checksum, own, len(part) * row_bytes)
        written += _chunk(b"IDAT", *pieces)
    return b"".join([*written, *_chunk(b"IDAT", struct.pack(">I", checksum)), *_chunk(b"IEND", b"")])


def _parts(rows: range, row_bytes: int, method: _Method) -> list[range]:
    if len(rows) * row_bytes < SMALL:
        return [rows]
    end = min(len(rows) // 2, LARGEST_END // row_bytes) if method.levels else 0
    whole = len(rows) - end
    return [*_split(rows[:whole], row_bytes, PART), *([rows[whole:]] if end else [])]


def _split(rows: range, row_bytes: int, most: int) -> list[range]:
    each = max(1, most // row_bytes)
    return [rows[first : first + each] for first in range(0, len(rows), each)]


def _best(methods: tuple[_Method, ...], height: int, row_bytes: int) -> _Method:
    """Return the first method, or the second one if samples from all heights show that it pays off."""
    size = min(SAMPLES * SAMPLE, height * row_bytes // SAMPLED)
    count = max(1, size // SAMPLE)
    rows = max(1, size // count // row_bytes)
    lengths = [0] * len(methods)
    for first in np.linspace(0, height - rows, count + 2).astype(int)[1:-1].tolist():
        for index, method in enumerate(methods):
            _, pieces = method.compress(range(first, first + rows), row_bytes, final=True)
            lengths[index] += sum(map(len, pieces))
    return methods[lengths[1] < SAVING * lengths[0]]


def _joined(first: int, second: int, length: int) -> int:
    """Return the Adler-32 checksum of two parts from theirs and the second's length."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = (first >> 16) + (second >> 16) + length * ((first & 0xFFFF) - 1)
    return high % ADLER << 16 | low % ADLER


def _average(pixels: U8, first: int, rows: U8) -> None:
    """Fill with each byte minus the mean, rounded down, of the one to its left and the one above."""
    channels = pixels.shape[2]
    here = pixels[first : first + len(rows)].reshape(len(rows), -1)
    above = np.zeros_like(here)
    start = 0 if first else 1  # above the first row there is 0
    above[start:] = pixels[first + start - 1 : first + len(rows) - 1].reshape(-1, here.shape[1])
    rows[:, 0] = AVERAGE
    np.subtract(here[:, :channels], above[:, :channels] >> 1, out=rows[:, 1 : channels + 1])
    left, above = here[:, :-channels], above[:, channels:]
    mean = left ^ above  # the mean without its carry, which would not fit a byte
    mean >>= 1
    mean += left & above
    np.subtract(here[:, channels:], mean, out=rows[:, channels + 1 :])


def _packed(values: U8, depth: int) -> U8:
    height, width = values.shape
    each = 8 // depth
    packed_width = -(-width // each)
    padded = values
    if width % each:
        padded = np.zeros((height, packed_width * each), dtype=np.uint8)
        padded[:, :width] = values
    packed = np.zeros((height, packed_width), dtype=np.uint8)
    for place in range(each):
        packed |= padded[:, place::each] << np.uint8(8 - depth * (place + 1))
    return packed


def _chunk(kind: bytes, *pieces: Deflated) -> list[Deflated]:
    checksum = zlib_ng.crc32(kind)
    for piece in pieces:
        checksum = zlib_ng.crc32(piece, checksum)
    return [struct.pack(">I", sum(map(len, pieces))), kind, *pieces, struct.pack(">I", checksum)]
