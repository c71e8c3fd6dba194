"""PNG with a given palette: libvips quantises anew and Pillow compresses in one thread, so the few chunks are ours.

The rows are compressed in pieces by two threads: each piece knows the 32 kB before it as its dictionary and ends on a
whole byte, so that the pieces laid end to end are one zlib stream.
"""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from geoprocessing_worker.raster import U8

SIGNATURE = b"\x89PNG\r\n\x1a\n"
INDEXED = 3  # the colour type of IHDR
LEVEL = 7  # indexes hold few values: beyond this, time multiplies and little is gained
PIECE = 1 << 20  # bytes compressed by one thread at a time
WINDOW = 1 << 15  # bytes that deflate can look back
THREADS = 2
ZLIB_HEADER = b"\x78\x9c"


def palette_png(indexes: U8, palette: U8) -> bytes:
    """The whole file: (height, width) indexes at the least depth, (entries, 4) RGBA as PLTE and tRNS."""
    height, width = indexes.shape
    depth = next(bits for bits in (1, 2, 4, 8) if len(palette) <= 1 << bits)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, INDEXED, 0, 0, 0)),
        (b"PLTE", palette[:, :3].tobytes()),
    ]
    transparent = np.flatnonzero(palette[:, 3] != 255)
    if transparent.size:
        chunks.append((b"tRNS", palette[: transparent[-1] + 1, 3].tobytes()))
    chunks += [(b"IDAT", deflated(_rows(indexes, depth))), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def deflated(content: bytes) -> bytes:
    """A zlib stream, the same bytes whatever the number of threads."""
    starts = range(0, len(content), PIECE)

    def piece(start: int) -> bytes:
        before = content[max(0, start - WINDOW) : start]
        # Raw deflate: the pieces share one header and one checksum.
        machine = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, *([before] if before else []))
        last = start + PIECE >= len(content)
        body = machine.compress(content[start : start + PIECE])
        return body + machine.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)

    with ThreadPoolExecutor(THREADS) as pool:
        return b"".join([ZLIB_HEADER, *pool.map(piece, starts), struct.pack(">I", zlib.adler32(content))])


def _rows(indexes: U8, depth: int) -> bytes:
    """Rows of packed indexes, each after a 0: no filter helps where neighbours are names, not amounts."""
    height, width = indexes.shape
    each = 8 // depth
    packed_width = -(-width // each)
    padded = indexes
    if width % each:
        padded = np.zeros((height, packed_width * each), dtype=np.uint8)
        padded[:, :width] = indexes
    rows = np.zeros((height, packed_width + 1), dtype=np.uint8)
    for place in range(each):
        rows[:, 1:] |= padded[:, place::each] << np.uint8(8 - depth * (place + 1))
    return rows.tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
