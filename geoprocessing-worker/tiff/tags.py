"""Tag numbers, field types, and byte layouts of classic TIFF and BigTIFF."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SUBFILE_TYPE, WIDTH, HEIGHT = 254, 256, 257
IS_REDUCED, IS_MASK = 1, 4  # bits of SUBFILE_TYPE
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
STRIP_OFFSETS, STRIP_BYTES = 273, 279
SAMPLES = 277
ROWS_PER_STRIP = 278
PLANAR_CONFIGURATION = 284
COLOR_MAP = 320
TILE_WIDTH, TILE_HEIGHT = 322, 323
TILE_OFFSETS, TILE_BYTES = 324, 325
EXTRA_SAMPLES = 338
IMAGE_DEPTH = 32997
TIE_POINTS = 33922  # six numbers each
GEO_KEYS, GEO_DOUBLES, GEO_TEXTS = 34735, 34736, 34737
METADATA, GDAL_NODATA = 42112, 42113

BLOCK_TAGS = ((TILE_OFFSETS, TILE_BYTES), (STRIP_OFFSETS, STRIP_BYTES))
SUB_IFDS = (330, 34665, 34853, 40965)  # SubIFDs, EXIF, GPS, interoperability
ASSOCIATED_ALPHA = 1
SEPARATED = 5  # inks
GRAY_SCALES = frozenset({0, 1})  # white is 0, black is 0
# libtiff reads no IFD in which one of these lies beyond the end of the file. 339 is SampleFormat.
# tests/hostile/test_pointers.py compares.
VITAL = frozenset({
    BITS_PER_SAMPLE, COMPRESSION, SAMPLES, PLANAR_CONFIGURATION, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, 339,
})  # fmt: skip

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Bytes per value, and NumPy's code for integers, by TIFF type.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
ASCII = 2
ONE_BYTE = frozenset({1, 2, 6, 7})
# Signed types are read as unsigned. libtiff accepts them for values that are not negative, and no tag here is signed.
INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 13: "u4", 16: "u8", 17: "u8", 18: "u8"}


@dataclass(frozen=True, slots=True)
class Format:
    """Byte order in `struct` notation, and whether the file is a BigTIFF. Sizes are in bytes."""

    order: str
    big: bool

    @property
    def word_size(self) -> int:
        """Size of an offset, and of the value slot of an entry."""
        return 8 if self.big else 4

    @property
    def counter_size(self) -> int:
        """Size of the number of entries at the start of an IFD."""
        return 8 if self.big else 2

    @property
    def entry_size(self) -> int:
        """Size of one entry: tag, type, count and value slot."""
        return 20 if self.big else 12

    @property
    def start(self) -> int:
        """Offset of the first byte after the file header."""
        return 16 if self.big else 8

    def word(self, number: int) -> bytes:
        """Return an encoded offset or count."""
        return struct.pack(self.order + ("Q" if self.big else "I"), number)

    def counter(self, number: int) -> bytes:
        """Return an encoded number of entries."""
        return struct.pack(self.order + ("Q" if self.big else "H"), number)


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of an IFD: tag, TIFF type, count, and the offset of its value in the file."""

    tag: int
    kind: int
    count: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the value. 0 for an unknown type, which is never read."""
        return SIZES.get(self.kind, 0) * self.count
