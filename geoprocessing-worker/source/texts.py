"""Texts of a TIFF that are not UTF-8, and stand-ins for such a file whose texts are.

rasterio decodes all texts as UTF-8. It raises for a description, a unit and the name of a coordinate system, and drops
other metadata. GDAL copies the bytes into a COG, which other programs then cannot read either.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.source.gdal import open_bytes
from geoprocessing_worker.tiff.directory import (
    GDAL_NODATA,
    LETTERS,
    METADATA,
    SUB_DIRECTORIES,
    Directory,
    Field,
    Tiff,
)
from geoprocessing_worker.tiff.letters import UNKNOWN, UTF_8, decode, decode_wide

GEO_KEYS, GEO_TEXTS = 34735, 34737
KEY = 4  # numbers of a geo key: its id, the tag of its value, count, and place in that
ONE_BYTE = frozenset({1, 2, 6, 7})  # TIFF's types
LARGEST_CLASSIC = 2**32 - 1

_NUMBER = re.compile(r"\s*[-+]?(\d|\.\d|nan|inf|1\.#)", re.IGNORECASE)
_BETWEEN_MARKUP = re.compile(rb"[^<>]+")


@dataclass
class Mender:
    """Decodes the texts of one directory; `encodings` are those it met besides UTF-8."""

    tiff: Tiff
    directory: Directory
    encodings: set[str] = field(default_factory=set)

    def contents(self) -> dict[int, bytes | None]:
        """New values by tag, for each field with a text that is not UTF-8; None for one to leave out."""
        found: dict[int, bytes | None] = {}
        for one in self.directory.fields:
            if one.tag == GEO_TEXTS or not self._is_text(one):
                continue
            content = self.tiff.content(one)
            text = content.partition(b"\0")[0]
            if one.tag != GDAL_NODATA and (wide := decode_wide(content)):
                self.encodings.add(str(wide.encoding))
                found[one.tag] = wide.text.encode(errors="replace") + b"\0"
                continue
            if one.tag == GDAL_NODATA and not says_a_number(text.decode("latin-1")):
                found[one.tag] = None  # GDAL would copy it as 0
            elif not _is_utf8(text):
                found[one.tag] = self._mended(text, markup=one.tag == METADATA) + b"\0"
        return found | self._geo_texts()

    def _is_text(self, one: Field) -> bool:
        return one.kind == LETTERS or (one.tag == METADATA and one.kind in ONE_BYTE)

    def _mended(self, text: bytes, *, markup: bool = False) -> bytes:
        if markup:
            return _BETWEEN_MARKUP.sub(lambda part: self._mended(part[0]), text)
        decoded = decode(text)
        if decoded.encoding is not None:
            self.encodings.add(decoded.encoding)
        return decoded.text.encode()

    def _geo_texts(self) -> dict[int, bytes | None]:
        """The texts of geo keys, and the keys, since they hold the place and length of each text."""
        keys, texts = self.directory.find(GEO_KEYS), self.directory.find(GEO_TEXTS)
        if keys is None or texts is None or _is_utf8(raw := self.tiff.content(texts)):
            return {}
        numbers = [int(number) for number in self.tiff.numbers(keys)]
        made = b""
        for at in range(KEY, len(numbers) - KEY + 1, KEY):
            if numbers[at + 1] == GEO_TEXTS:
                count, place = numbers[at + 2 : at + KEY]
                text = self._mended(raw[place : place + count])
                numbers[at + 2 : at + KEY] = [len(text), len(made)]
                made += text
        if len(made) >= 2**16:  # beyond what a key can point to
            return {}
        return {GEO_KEYS: struct.pack(f"{self.tiff.format.order}{len(numbers)}H", *numbers), GEO_TEXTS: made + b"\0"}


def says_a_number(nodata: str | None) -> bool:
    """Whether the file's words for no data can be a number: of "none" GDAL makes 0, and hides what is black."""
    return nodata is None or bool(_NUMBER.match(nodata))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def readable(dataset: Any, path: Path, directory: int) -> Iterator[tuple[Any, str | None]]:
    """A dataset to be asked for texts, place and metadata, and a remark where it is not the one given.

    Where a text of the directory (by its 1-based number) is not UTF-8, it is that directory alone with its texts
    in UTF-8.
    """
    alone = mender = None
    with suppress(OSError, JobError), path.open("rb") as file:  # GDAL may find more in a damaged file
        mender = _mender(Tiff(file), directory)
        if mender is not None and (contents := mender.contents()):
            alone = _alone(mender, contents)
    if alone is None or mender is None:
        yield dataset, None
        return
    with open_bytes(alone) as stand_in:
        yield stand_in, _remark(mender.encodings)


def _remark(encodings: set[str]) -> str | None:
    if not encodings:
        return None
    known = sorted(encodings - {UNKNOWN, UTF_8})
    read = f"are read as {' and '.join(known)}" if known else "cannot be read"
    rest = ""
    if len(encodings) > len(known):
        rest = "; letters in other encodings are replaced" if known else ": their letters are replaced"
    return f"texts in the file that are not UTF-8 {read}{rest}"


@contextmanager
def mended(path: Path, directory: int, copy: Path) -> Iterator[Path]:
    """The file, or for the block a copy of it in which this directory's texts are UTF-8."""
    if not _write_mended(path, directory, copy):
        yield path
        return
    try:
        yield copy
    finally:
        copy.unlink()


def _write_mended(path: Path, number: int, copy: Path) -> bool:
    with path.open("rb") as file:
        tiff = Tiff(file)
        mender = _mender(tiff, number)
        contents = {} if mender is None else mender.contents()
        if mender is None or not contents:
            return False
        at = tiff.size + tiff.size % 2
        table = _table(mender, contents, at, tiff.following(mender.directory))
        pointer = tiff.following_at(tiff.directory(number - 1) if number > 1 else None)
    if not tiff.format.big and at + len(table) > LARGEST_CLASSIC:
        return False
    shutil.copyfile(path, copy)
    with copy.open("r+b") as made:
        made.seek(at)
        made.write(table)
        made.seek(pointer)
        made.write(tiff.format.word(at))
    return True


def _mender(tiff: Tiff, number: int) -> Mender | None:
    directory = tiff.directory(number)
    return None if directory is None or directory.nested else Mender(tiff, directory)


def _alone(mender: Mender, contents: dict[int, bytes | None]) -> bytes:
    """A file of the directory and nothing else: GDAL reads pixels only when it is asked for some.

    Nested directories are left out: at their offset stands something else in this file, which no gate has seen.
    """
    contents = contents | dict.fromkeys(SUB_DIRECTORIES)
    form = mender.tiff.format
    head = {"<": b"II", ">": b"MM"}[form.order] + struct.pack(f"{form.order}H", 43 if form.big else 42)
    head += struct.pack(f"{form.order}HH", 8, 0) if form.big else b""
    return head + form.word(form.start) + _table(mender, contents, form.start, 0)


def _table(mender: Mender, contents: dict[int, bytes | None], at: int, following: int) -> bytes:
    """The directory as it stands at byte `at`, with these values instead of its own."""
    form = mender.tiff.format
    fields = [one for one in mender.directory.fields if contents.get(one.tag, b"") is not None]
    table, values = form.counter(len(fields)), b""
    after = at + form.counter_size + len(fields) * form.entry_size + form.word_size
    for one in fields:
        content, count = mender.tiff.content(one), one.count
        if new := contents.get(one.tag):
            content = new
            count = len(content) // (2 if one.tag == GEO_KEYS else 1)
        if len(content) > form.word_size:
            place = after + len(values)
            values += content + b"\0" * (len(content) % 2)
            content = form.word(place)
        table += struct.pack(f"{form.order}HH", one.tag, one.kind) + form.word(count)
        table += content.ljust(form.word_size, b"\0")
    return table + form.word(following) + values
