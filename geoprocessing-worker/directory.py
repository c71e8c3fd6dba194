"""Reads single tags of a TIFF where GDAL does not tell them: how alpha and gray are meant, which codec was used."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

COMPRESSION = 259
PHOTOMETRIC = 262
COLOR_MAP = 320
EXTRA_SAMPLES = 338
ASSOCIATED_ALPHA = 1
GRAY_SCALES = frozenset({0, 1})  # white is 0, black is 0
SHORT, LONG = 3, 4
SIZES = {SHORT: ("H", 2), LONG: ("I", 4)}
MOST_ENTRIES = 4096  # tags in a directory
MOST_VALUES = 64


def tag_values(path: Path, tag: int, directory: int = 1) -> tuple[int, ...]:
    """The whole numbers of a tag in the directory with this 1-based number; empty if it is not there or unreadable."""
    try:
        with path.open("rb") as file:
            return _Reader(file).values(tag, directory)
    except (struct.error, OSError, ValueError, OverflowError):
        return ()


def has_tag(path: Path, tag: int, directory: int = 1) -> bool:
    """Whether the directory with this 1-based number holds the tag."""
    try:
        with path.open("rb") as file:
            return _Reader(file).find(tag, directory)
    except (struct.error, OSError, ValueError, OverflowError):
        return False


class _Reader:
    """Classic TIFF and BigTIFF, either byte order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(4)
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = head[2:4] in {b"+\0", b"\0+"}
        self._word = "Q" if self._big else "I"
        file.seek(8 if self._big else 4)
        self._first = self._number(self._word)

    def values(self, tag: int, directory: int) -> tuple[int, ...]:
        if not self.find(tag, directory):
            return ()
        kind, count = self._number("H"), self._number(self._word)
        if kind not in SIZES or count > MOST_VALUES:
            return ()
        letter, size = SIZES[kind]
        if size * count > struct.calcsize(self._order + self._word):
            self._file.seek(self._number(self._word))
        return tuple(self._number(letter) for _ in range(count))

    def find(self, tag: int, directory: int) -> bool:
        """Whether the tag is there; the file then stands behind the tag's number."""
        at = self._first
        for number in range(1, directory + 1):
            self._file.seek(at)
            entries = min(self._number("Q" if self._big else "H"), MOST_ENTRIES)
            start = self._file.tell()
            if number == directory:
                return self._search(tag, start, entries)
            self._file.seek(start + entries * (20 if self._big else 12))
            at = self._number(self._word)
            if at == 0:
                return False
        return False

    def _search(self, tag: int, start: int, entries: int) -> bool:
        for entry in range(entries):
            self._file.seek(start + entry * (20 if self._big else 12))
            if self._number("H") == tag:
                return True
        return False

    def _number(self, letter: str) -> int:
        size = struct.calcsize(self._order + letter)
        return int(struct.unpack(self._order + letter, self._file.read(size))[0])
