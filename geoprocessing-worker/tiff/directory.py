"""Walks the directories of a TIFF with nothing but arithmetic: classic and BigTIFF, either byte order, any damage.

What stands in a file is a stranger's: nothing is read beyond the file's end, no walk goes on for ever, and no number
is believed before it is compared with the size of the file.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import JobError, malformed, too_large, truncated
from geoprocessing_worker.tiff.file_kinds import not_a_tiff
from geoprocessing_worker.tiff.letters import decode_wide

SUBFILE_TYPE, WIDTH, HEIGHT = 254, 256, 257
IS_REDUCED, IS_MASK = 1, 4  # of the subfile type's bits
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
COLOR_MAP = 320
TILE_WIDTH = 322
IMAGE_DEPTH = 32997
EXTRA_SAMPLES = 338
METADATA, GDAL_NODATA = 42112, 42113
PLACES = ((324, 325), (273, 279))  # offsets and lengths of tiles, of strips
SUB_DIRECTORIES = (330, 34665, 34853, 40965)  # SubIFDs, EXIF, GPS, interoperability
ASSOCIATED_ALPHA = 1
SEPARATED = 5  # inks
GRAY_SCALES = frozenset({0, 1})  # white is 0, black is 0
# libtiff reads no directory in which one of these stands beyond the file's end. Bits, compression, samples, planes,
# tiles, extra samples, sample format. tests/hostile/test_pointers.py compares.
VITAL = frozenset({BITS_PER_SAMPLE, COMPRESSION, 277, 284, TILE_WIDTH, 323, EXTRA_SAMPLES, 339})

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# TIFF's types: bytes of one value, and numpy's letter where the value is a whole number.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
LETTERS = 2
# Signed ones are taken as unsigned: libtiff takes those that are not negative, and none is here that may be.
WHOLE = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 13: "u4", 16: "u8", 17: "u8", 18: "u8"}

MOST_DIRECTORIES = 4096  # a day of pictures, one a minute, with an overview each
LIBTIFF_FIELDS = 4096  # in a directory; libtiff takes more for no directory
MOST_FIELDS = 1024  # in a directory; the specification names about 200. libtiff sorts anew for each unknown one
MOST_FIELDS_IN_ALL = 128 * 1024  # of all directories; honest ones have 20 each
LARGEST_FIELD = 64 << 20  # bytes; the places of 8 million tiles
LARGEST_FIELDS = 256 << 20  # bytes, of all directories


@dataclass(frozen=True, slots=True)
class Format:
    """Byte order, as struct writes it, and whether the file is a BigTIFF; the sizes are in bytes."""

    order: str
    big: bool

    @property
    def word_size(self) -> int:
        """Of an offset, and of the room for a value in an entry."""
        return 8 if self.big else 4

    @property
    def counter_size(self) -> int:
        """Of the number of entries, in front of them."""
        return 8 if self.big else 2

    @property
    def entry_size(self) -> int:
        """Of one tag with its type, count and value."""
        return 20 if self.big else 12

    @property
    def start(self) -> int:
        """The first byte after the file's header."""
        return 16 if self.big else 8

    def word(self, number: int) -> bytes:
        """An offset or a count."""
        return struct.pack(self.order + ("Q" if self.big else "I"), number)

    def counter(self, number: int) -> bytes:
        """A number of entries."""
        return struct.pack(self.order + ("Q" if self.big else "H"), number)


@dataclass(frozen=True, slots=True)
class Field:
    """One tag of a directory: its type and count, and where its `size` bytes stand in the file."""

    tag: int
    kind: int
    count: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the value; an unknown type has none, since nobody will read it."""
        return SIZES.get(self.kind, 0) * self.count


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory, where it stands, and whether it hangs off another one rather than in the file's own chain.

    `entries` counts all its fields. Those with values beyond the file's end are left out of `fields`.
    """

    offset: int
    fields: tuple[Field, ...]
    entries: int
    nested: bool = False

    @property
    def incomplete(self) -> bool:
        """Whether it belongs to the chain and lacks some of its fields. The first one never does."""
        return not self.nested and len(self.fields) < self.entries

    def find(self, tag: int) -> Field | None:
        """The first field with this tag."""
        return next((field for field in self.fields if field.tag == tag), None)


class Tiff:
    """An open file's structure.

    Args:
        file: opened for reading, in binary.

    Raises:
        JobError: `not_a_tiff`, `truncated`, `malformed_header`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        head = self._bytes(0, min(16, self.size))
        if head[:4] not in MAGIC:
            raise not_a_tiff(file)
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = b"+" in head[2:4]
        self.format = Format(self._order, self._big)
        self._word, self._inline = ("Q", 8) if self._big else ("I", 4)
        if self._big and head[4:8] != struct.pack(self._order + "HH", 8, 0):
            raise malformed("its BigTIFF header does not say 8 bytes for each offset")
        self._first = self._whole(8 if self._big else 4, self._word)
        self.remark: str | None = None
        """Set by `directories` where the chain goes on to a place that holds no directory, or only a part of one."""

    def directories(self) -> Iterator[Directory]:
        """All directories, each once: first those of the chain in order, then those that hang off them.

        As in libtiff, the chain ends at a pointer to no directory. Nothing behind it is yielded, since GDAL does not
        read it either: tests/hostile/test_pointers.py compares both. Nested directories that are none are skipped.
        Directories of the chain behind the first may be `incomplete`: GDAL reads those, so the walk goes on.

        Raises:
            JobError: `truncated`, `malformed_header`, `too_large`.
        """
        seen: set[int] = set()
        nested: deque[int] = deque()
        size = count = 0
        at = self._first
        if at == 0:
            raise malformed("it has no directory")
        while at or nested:
            in_chain = bool(at)
            place = at or nested.popleft()
            if seen and (place in seen or not self._readable(place, picture=in_chain)):
                if in_chain and self.remark is None:
                    self.remark = _points_nowhere(len(seen), place, back=place in seen)
                at = 0
                continue
            seen.add(place)
            entries = self._counted(place)
            count += entries
            if count > MOST_FIELDS_IN_ALL:
                raise too_large("fields", count, MOST_FIELDS_IN_ALL, "tags")
            if entries > MOST_FIELDS and not in_chain and not self._readable(place, picture=True):
                continue  # a pointer to something else: GDAL opens nested pictures only
            directory = self._directory(place, nested=not in_chain, first=not seen - {place})
            if directory.incomplete and self.remark is None:
                self.remark = _IN_PART.format(before=len(seen) - 1)
            at = self.following(directory) if in_chain else 0
            nested.extend(self._hanging_off(directory))
            size += sum(field.size for field in directory.fields)
            for limit, found, allowed, words in (
                ("directories", len(seen) + len(nested), MOST_DIRECTORIES, "directories"),
                ("tags", size, LARGEST_FIELDS, "bytes of tags"),
            ):
                if found > allowed:
                    raise too_large(limit, found, allowed, words)
            yield directory

    def directory(self, number: int) -> Directory | None:
        """The directory with this 1-based number, `None` if there are fewer.

        Raises:
            JobError: as `directories`.
        """
        name = getattr(self._file, "name", None)
        if name is None:  # a file in memory
            places, error = _places(self)
        else:
            found = os.fstat(self._file.fileno())
            places, error = _places_in(Path(name), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
        if number > len(places):
            if error is not None:
                raise error
            return None
        at, nested = places[number - 1]
        return self._directory(at, nested=nested, first=number == 1)

    def following(self, directory: Directory) -> int:
        """Where the directory after this one of the chain stands; 0, as in libtiff, where the file ends before that."""
        at = self.following_at(directory)
        return self._whole(at, self._word) if at + self._inline <= self.size else 0

    def following_at(self, directory: Directory | None) -> int:
        """Where the file points to the directory after this one of the chain; after none, to the first."""
        if directory is None:
            return self._inline
        return directory.offset + self.format.counter_size + directory.entries * self.format.entry_size

    def _hanging_off(self, directory: Directory) -> Iterator[int]:
        for field in directory.fields:
            if field.tag in SUB_DIRECTORIES:
                yield from self.numbers(field)[: MOST_DIRECTORIES + 1].tolist()

    def _readable(self, at: int, *, picture: bool) -> bool:
        """Whether libtiff would read a directory here; with `picture` it needs a size, too."""
        counter, size = self.format.counter_size, self.format.entry_size
        if at + counter > self.size:
            return False
        count = self._counted(at)
        if count not in range(1, LIBTIFF_FIELDS + 1) or at + counter + count * size > self.size:
            return False
        if not picture:
            return True
        sides: dict[int, Field] = {}
        for field in self._fields(at + counter, count):
            sides.setdefault(field.tag, field)  # of several libtiff takes the first
        if any(tag in sides and not self._is_inside(sides[tag]) for tag in VITAL):
            return False
        return all(tag in sides and self._is_side(sides[tag]) for tag in (WIDTH, HEIGHT))

    def _counted(self, at: int) -> int:
        """The number of entries of the directory here."""
        return self._whole(at, "Q" if self._big else "H")

    def _is_side(self, field: Field) -> bool:
        whole = field.kind in WHOLE and field.count == 1 and self._is_inside(field)
        return whole and any(self._bytes(field.offset, field.size))

    def _is_inside(self, field: Field) -> bool:
        return field.offset + field.size <= self.size

    def _fields(self, start: int, count: int) -> Iterator[Field]:
        """The fields of a table; values that do not fit into it stand at an offset, which may lie anywhere."""
        size = self.format.entry_size
        table = self._bytes(start, count * size)
        for number, (tag, kind, values, value) in enumerate(
            struct.iter_unpack(f"{self._order}HH{self._word}{self._inline}s", table)
        ):
            field = Field(tag, kind, values, start + number * size + size - self._inline)
            if field.size > self._inline:
                field = Field(tag, kind, values, struct.unpack(self._order + self._word, value)[0])
            yield field

    def _directory(self, at: int, *, nested: bool, first: bool) -> Directory:
        count = self._counted(at)
        if count > MOST_FIELDS:
            raise too_large("fields", count, MOST_FIELDS, "tags in a directory")
        fields = tuple(self._fields(at + self.format.counter_size, count))
        if not first:
            fields = tuple(field for field in fields if self._is_inside(field))
        for field in fields:
            self._check_place(field)
        return Directory(at, fields, count, nested)

    def _check_place(self, field: Field) -> None:
        if field.size > LARGEST_FIELD:
            raise too_large("tag", field.size, LARGEST_FIELD, f"bytes in tag {field.tag}")
        if not self._is_inside(field):
            raise truncated(f"tag {field.tag} stands beyond its end", field.offset + field.size, self.size)

    def numbers(self, field: Field | None) -> NDArray[np.uint64]:
        """The whole numbers of a field; none where it is missing or holds no such numbers."""
        if field is None or field.kind not in WHOLE:
            return np.empty(0, dtype=np.uint64)
        raw = self._bytes(field.offset, field.size)
        return np.frombuffer(raw, dtype=self._order + WHOLE[field.kind]).astype(np.uint64)

    def content(self, field: Field) -> bytes:
        """A field's bytes; of an unknown type those in the table."""
        return self._bytes(field.offset, field.size or self._inline)

    def part(self, at: int, count: int) -> bytes:
        """So many bytes from there, or as many as the file has."""
        self._file.seek(min(at, self.size))
        return self._file.read(count)

    def _whole(self, at: int, letter: str) -> int:
        return int(struct.unpack(self._order + letter, self._bytes(at, struct.calcsize(self._order + letter)))[0])

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count > self.size:
            raise truncated("a directory stands beyond its end", at + count, self.size)
        self._file.seek(at)
        return self._file.read(count)


Places = tuple[list[tuple[int, bool]], JobError | None]
"""The offset of each directory, whether it is nested, and the error that ended the walk."""


def _places(tiff: Tiff) -> Places:
    places: list[tuple[int, bool]] = []
    try:
        places.extend((directory.offset, directory.nested) for directory in tiff.directories())
    except JobError as error:
        return places, error
    return places, None


@lru_cache(maxsize=4)
def _places_in(path: Path, _version: tuple[int, ...]) -> Places:
    """Kept, since each page of a file with thousands is asked for by its number several times."""
    with path.open("rb") as file:
        return _places(Tiff(file))


_IN_PART = (
    "after {before} of its directories the file points to one with values beyond the end of the file: ignored with "
    "all overviews"
)


def _points_nowhere(before: int, at: int, *, back: bool) -> str:
    where = "back to an earlier one" if back else f"to byte {at:,}, where there is none"
    return f"after {before} of its directories the file points {where}: ignored, as GDAL does"


@dataclass(frozen=True, slots=True)
class Tags:
    """Some tags of one directory: whole numbers by tag, and the letters of those that hold any, up to the first NUL."""

    numbers: Mapping[int, tuple[int, ...]]
    texts: Mapping[int, str]

    def first(self, tag: int) -> int | None:
        """The first number of a tag, `None` without it."""
        return next(iter(self.numbers.get(tag, ())), None)


def read_tags(path: Path, wanted: Iterable[int], directory: int = 1) -> Tags:
    """These tags of the directory with this 1-based number; what is not there or unreadable is left out."""
    numbers: dict[int, tuple[int, ...]] = {}
    texts: dict[int, str] = {}
    try:
        with path.open("rb") as file:
            tiff = Tiff(file)
            found = tiff.directory(directory)
            fields = [] if found is None else [field for tag in wanted if (field := found.find(tag))]
            for field in fields:
                if field.kind == LETTERS:
                    content = tiff.content(field)
                    wide = decode_wide(content) if field.tag == METADATA else None
                    texts[field.tag] = wide.text if wide else content.partition(b"\0")[0].decode("latin-1")
                else:
                    numbers[field.tag] = tuple(tiff.numbers(field).tolist())
    except (OSError, JobError):
        pass  # GDAL may find more in a damaged file, and says what is wrong with it
    return Tags(numbers, texts)
