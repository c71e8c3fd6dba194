"""TIFFs written tag by tag, for files that GDAL's writer refuses."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE = 1, 2, 3, 4, 5, 7, 12
LETTERS = {BYTE: "B", SHORT: "H", LONG: "I", UNDEFINED: "B", DOUBLE: "d"}

PIXEL_SCALE, TIE_POINT, TRANSFORMATION, GEO_KEYS = 33550, 33922, 34264, 34735
GEO_DOUBLES, GEO_LETTERS = 34736, 34737
NODATA, ICC_PROFILE, METADATA = 42113, 34675, 42112

WGS84_KEYS = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326)
"""GeoKeys of EPSG:4326, pixel is area."""

Tag = tuple[int, Sequence[float] | bytes]
"""A type and its values; bytes stand for themselves."""


def geo_tags(keys: Mapping[int, int | float | Sequence[float] | str]) -> dict[int, Tag]:
    """Return the tags of GeoTIFF keys: integers as codes, floats and sequences as doubles, text as ASCII."""
    directory, letters = [1, 1, 0, len(keys)], ""
    doubles: list[float] = []
    for key, value in sorted(keys.items()):
        if isinstance(value, int):
            directory += [key, 0, 1, value]
        elif isinstance(value, str):
            directory += [key, GEO_LETTERS, len(value) + 1, len(letters)]
            letters += f"{value}|"
        else:
            numbers = [value] if isinstance(value, float) else list(value)
            directory += [key, GEO_DOUBLES, len(numbers), len(doubles)]
            doubles += numbers
    tags: dict[int, Tag] = {GEO_KEYS: (SHORT, directory)}
    if doubles:
        tags[GEO_DOUBLES] = (DOUBLE, doubles)
    if letters:
        tags[GEO_LETTERS] = (ASCII, letters.encode() + b"\0")
    return tags


def placed(x: float, y: float, pixel: float) -> dict[int, Tag]:
    """Return the tags of a north-up place: upper left corner and pixel size."""
    return {PIXEL_SCALE: (DOUBLE, [pixel, pixel, 0]), TIE_POINT: (DOUBLE, [0, 0, 0, x, y, 0])}


def write_raw_tiff(
    path: Path, data: NDArray[np.generic], photometric: int = 1, tags: Mapping[int, Tag] | None = None
) -> Path:
    """Write one uncompressed strip, (rows, columns, bands), little-endian. `tags` override the usual ones."""
    rows, columns, bands = data.shape
    kind = {"u": 1, "i": 2, "f": 3}[data.dtype.kind]
    entries: dict[int, Tag] = {
        256: (LONG, [columns]),
        257: (LONG, [rows]),
        258: (SHORT, [data.dtype.itemsize * 8] * bands),
        259: (SHORT, [1]),
        262: (SHORT, [photometric]),
        273: (LONG, [8]),
        277: (SHORT, [bands]),
        278: (LONG, [rows]),
        279: (LONG, [data.nbytes]),
        339: (SHORT, [kind] * bands),
        **(tags or {}),
    }
    body = data.astype(data.dtype.newbyteorder("<")).tobytes()
    body += b"\0" * (len(body) % 2)
    directory_at = 8 + len(body)
    extra_at = directory_at + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack("<H", len(entries)), b""
    for tag, (code, values) in sorted(entries.items()):
        content = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{LETTERS[code]}", *values)
        directory += struct.pack("<HHI", tag, code, len(values))
        if len(content) <= 4:
            directory += content.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", extra_at + len(extra))
            extra += content + b"\0" * (len(content) % 2)
    path.write_bytes(b"II*\0" + struct.pack("<I", directory_at) + body + directory + b"\0\0\0\0" + extra)
    return path
