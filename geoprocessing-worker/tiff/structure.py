"""The IFDs of a TIFF, found by arithmetic alone: classic and BigTIFF, either byte order, any damage.

The input is untrusted. No read goes beyond the end of the file, every walk ends, and each number is compared with the
file's size before use.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import JobError, malformed, too_large, truncated
from geoprocessing_worker.tiff.file_kinds import not_a_tiff
from geoprocessing_worker.tiff.letters import decode_wide
from geoprocessing_worker.tiff.tags import (
    ASCII,
    HEIGHT,
    INTEGERS,
    MAGIC,
    METADATA,
    SUB_IFDS,
    SUBFILE_TYPE,
    VITAL,
    WIDTH,
    Field,
    Format,
)

MAX_IFDS = 4096  # a day of pictures, one a minute, with an overview each
LIBTIFF_FIELDS = 4096  # libtiff rejects an IFD with more
MAX_FIELDS = 1024  # in an IFD. The specification has about 200, and libtiff sorts again for each unknown one
MAX_TOTAL_FIELDS = 128 * 1024  # of all IFDs. Ordinary files have about 20 per IFD
LARGEST_FIELD = 64 << 20  # bytes: the offsets of 8 million tiles
LARGEST_FIELDS = 256 << 20  # bytes, of all IFDs


@dataclass(frozen=True, slots=True)
class Ifd:
    """An image file directory: its offset, fields, subfile type, and image size in pixels.

    `nested` IFDs hang off another one and are not in the file's own chain. `entries` counts all fields. `fields` leaves
    out those with values beyond the end of the file.
    """

    offset: int
    fields: tuple[Field, ...]
    entries: int
    nested: bool = False
    subfile_type: int = 0
    width: int = 0
    height: int = 0

    @property
    def incomplete(self) -> bool:
        """Whether it is in the chain and lacks some of its fields. Never true of the first IFD."""
        return not self.nested and len(self.fields) < self.entries

    def find(self, tag: int) -> Field | None:
        """Return the first field with this tag."""
        return next((field for field in self.fields if field.tag == tag), None)


class TiffReader:
    """Reads IFDs and values of an open file.

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
            raise malformed("its BigTIFF header declares another offset size than 8 bytes")
        self._first = self._integer(8 if self._big else 4, self._word)
        self.remark: str | None = None
        """Set by `ifds` where the chain continues at an offset with no IFD, or with an incomplete one."""

    def ifds(self) -> Iterator[Ifd]:
        """Yield each IFD once: those of the chain in order, then nested ones.

        As in libtiff, the chain ends at a pointer to something else. Nothing after it is yielded, since GDAL does not
        read it either: tests/hostile/test_pointers.py compares both. Nested pointers to something else are skipped.
        Later IFDs of the chain may be `incomplete`. GDAL reads those, so the walk continues.

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
                    self.remark = _broken_chain(len(seen), place, back=place in seen)
                at = 0
                continue
            seen.add(place)
            entries = self._entry_count(place)
            count += entries
            if count > MAX_TOTAL_FIELDS:
                raise too_large("fields", count, MAX_TOTAL_FIELDS, "tags")
            if entries > MAX_FIELDS and not in_chain and not self._readable(place, picture=True):
                continue  # a pointer to something else: GDAL opens nested pictures only
            ifd = self._read_ifd(place, nested=not in_chain, first=not seen - {place})
            if ifd.incomplete and self.remark is None:
                self.remark = _INCOMPLETE_REMARK.format(before=len(seen) - 1)
            at = self.following(ifd) if in_chain else 0
            nested.extend(self._nested_offsets(ifd))
            size += sum(field.size for field in ifd.fields)
            for limit, found, allowed, words in (
                ("directories", len(seen) + len(nested), MAX_IFDS, "directories"),
                ("tags", size, LARGEST_FIELDS, "bytes of tags"),
            ):
                if found > allowed:
                    raise too_large(limit, found, allowed, words)
            yield ifd

    def following(self, ifd: Ifd) -> int:
        """Return the offset of the next IFD in the chain. As in libtiff, 0 if the file ends before its pointer."""
        at = self.following_at(ifd)
        return self._integer(at, self._word) if at + self._inline <= self.size else 0

    def following_at(self, ifd: Ifd | None) -> int:
        """Return the offset of the pointer to the next IFD in the chain, or to the first one for `None`."""
        if ifd is None:
            return self._inline
        return ifd.offset + self.format.counter_size + ifd.entries * self.format.entry_size

    def _nested_offsets(self, ifd: Ifd) -> Iterator[int]:
        for field in ifd.fields:
            if field.tag in SUB_IFDS:
                yield from self.numbers(field)[: MAX_IFDS + 1].tolist()

    def _readable(self, at: int, *, picture: bool) -> bool:
        """Whether libtiff would read an IFD at this offset. With `picture` it needs an image size too."""
        counter, size = self.format.counter_size, self.format.entry_size
        if at + counter > self.size:
            return False
        count = self._entry_count(at)
        if count not in range(1, LIBTIFF_FIELDS + 1) or at + counter + count * size > self.size:
            return False
        if not picture:
            return True
        sides: dict[int, Field] = {}
        for field in self._fields(at + counter, count):
            sides.setdefault(field.tag, field)  # libtiff uses the first of several
        if any(tag in sides and not self._is_inside(sides[tag]) for tag in VITAL):
            return False
        return all(tag in sides and self._is_side(sides[tag]) for tag in (WIDTH, HEIGHT))

    def _entry_count(self, at: int) -> int:
        return self._integer(at, "Q" if self._big else "H")

    def _is_side(self, field: Field) -> bool:
        whole = field.kind in INTEGERS and field.count == 1 and self._is_inside(field)
        return whole and any(self._bytes(field.offset, field.size))

    def _is_inside(self, field: Field) -> bool:
        return field.offset + field.size <= self.size

    def _fields(self, start: int, count: int) -> Iterator[Field]:
        """Yield the fields of a table. A value too large for its slot is at an offset, which may be anywhere."""
        size = self.format.entry_size
        table = self._bytes(start, count * size)
        for number, (tag, kind, values, value) in enumerate(
            struct.iter_unpack(f"{self._order}HH{self._word}{self._inline}s", table)
        ):
            field = Field(tag, kind, values, start + number * size + size - self._inline)
            if field.size > self._inline:
                field = Field(tag, kind, values, struct.unpack(self._order + self._word, value)[0])
            yield field

    def _read_ifd(self, at: int, *, nested: bool, first: bool) -> Ifd:
        count = self._entry_count(at)
        if count > MAX_FIELDS:
            raise too_large("fields", count, MAX_FIELDS, "tags in a directory")
        fields = tuple(self._fields(at + self.format.counter_size, count))
        if not first:
            fields = tuple(field for field in fields if self._is_inside(field))
        for field in fields:
            self._check_field(field)
        ifd = Ifd(at, fields, count, nested)
        kind, width, height = (self.first(ifd, tag) for tag in (SUBFILE_TYPE, WIDTH, HEIGHT))
        return replace(ifd, subfile_type=kind, width=width, height=height)

    def _check_field(self, field: Field) -> None:
        if field.size > LARGEST_FIELD:
            raise too_large("tag", field.size, LARGEST_FIELD, f"bytes in tag {field.tag}")
        if not self._is_inside(field):
            raise truncated(f"tag {field.tag} lies beyond its end", field.offset + field.size, self.size)

    def numbers(self, field: Field | None) -> NDArray[np.uint64]:
        """Return the integers of a field: none of a missing field or of another type."""
        if field is None or field.kind not in INTEGERS:
            return np.empty(0, dtype=np.uint64)
        raw = self._bytes(field.offset, field.size)
        return np.frombuffer(raw, dtype=self._order + INTEGERS[field.kind]).astype(np.uint64)

    def first(self, ifd: Ifd, tag: int, default: int = 0) -> int:
        """Return the first integer of a tag, or the default without one."""
        field = ifd.find(tag)
        numbers = self.numbers(field if field is None else replace(field, count=min(field.count, 1)))
        return int(numbers[0]) if numbers.size else default

    def content(self, field: Field) -> bytes:
        """Return a field's bytes: of an unknown type those of its slot in the table."""
        return self._bytes(field.offset, field.size or self._inline)

    def part(self, at: int, count: int) -> bytes:
        """Return this many bytes from an offset, or fewer at the end of the file."""
        self._file.seek(min(at, self.size))
        return self._file.read(count)

    def _integer(self, at: int, letter: str) -> int:
        return int(struct.unpack(self._order + letter, self._bytes(at, struct.calcsize(self._order + letter)))[0])

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count > self.size:
            raise truncated("a directory lies beyond its end", at + count, self.size)
        self._file.seek(at)
        return self._file.read(count)


_INCOMPLETE_REMARK = (
    "after {before} of its directories the file points to one with values beyond the end of the file: ignored with "
    "all overviews"
)


def _broken_chain(before: int, at: int, *, back: bool) -> str:
    where = "back to an earlier one" if back else f"to byte {at:,}, where there is none"
    return f"after {before} of its directories the file points {where}: ignored, as GDAL does"


@dataclass(frozen=True, slots=True)
class Tags:
    """Some tags of one IFD: integers by tag, and texts by tag up to the first NUL."""

    numbers: Mapping[int, tuple[int, ...]]
    texts: Mapping[int, str]

    def first(self, tag: int) -> int | None:
        """Return the first number of a tag, or `None` without it."""
        return next(iter(self.numbers.get(tag, ())), None)


@dataclass(frozen=True, slots=True)
class TiffStructure:
    """All IFDs of a file, each once: those of the chain in order, then nested ones. Numbers of IFDs are 1-based.

    `error` is the damage that ended the walk. `remark` describes oddities that GDAL ignores too.
    """

    path: Path
    ifds: tuple[Ifd, ...]
    remark: str | None = None
    error: JobError | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Walk the IFDs of a file.

        Raises:
            JobError: `not_a_tiff`, `truncated`, `malformed_header`, each for the file header alone.
        """
        with path.open("rb") as file:
            return cls.of(path, TiffReader(file))

    @classmethod
    def of(cls, path: Path, reader: TiffReader) -> Self:
        """Walk the IFDs of an open file."""
        ifds: list[Ifd] = []
        error = None
        try:
            ifds.extend(reader.ifds())
        except JobError as damage:
            error = damage.with_traceback(None)
        return cls(path, tuple(ifds), reader.remark, error)

    @contextmanager
    def open(self) -> Iterator[TiffReader]:
        """Open the file to read values of fields."""
        with self.path.open("rb") as file:
            yield TiffReader(file)

    def ifd(self, number: int) -> Ifd | None:
        """Return the IFD with this number, or `None` if there are fewer.

        Raises:
            JobError: the walk ended before it.
        """
        if number <= len(self.ifds):
            return self.ifds[number - 1]
        if self.error is not None:
            raise self.error
        return None

    def tags(self, wanted: Iterable[int], number: int = 1) -> Tags:
        """Return these tags of an IFD. Missing and unreadable ones are left out: GDAL reports the damage."""
        numbers: dict[int, tuple[int, ...]] = {}
        texts: dict[int, str] = {}
        with suppress(OSError, JobError), self.open() as reader:
            ifd = self.ifd(number)
            for field in [] if ifd is None else [field for tag in wanted if (field := ifd.find(tag))]:
                if field.kind == ASCII:
                    content = reader.content(field)
                    wide = decode_wide(content) if field.tag == METADATA else None
                    texts[field.tag] = wide.text if wide else content.partition(b"\0")[0].decode("latin-1")
                else:
                    numbers[field.tag] = tuple(reader.numbers(field).tolist())
        return Tags(numbers, texts)
