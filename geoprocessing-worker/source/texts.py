"""Re-encodes texts of a TIFF as UTF-8, in a small stand-in or in a copy of the file.

rasterio decodes all texts as UTF-8. It raises for a description, a unit and the name of a CRS, and drops other
metadata. GDAL copies the bytes into a COG, which other programs then cannot read either.
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
from geoprocessing_worker.tiff.letters import UNKNOWN, UTF_8, decode, decode_wide
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import ASCII, GDAL_NODATA, GEO_KEYS, GEO_TEXTS, METADATA, ONE_BYTE, SUB_IFDS, Field

KEY = 4  # numbers of a geo key: its id, the tag of its value, count, and position in that tag
LARGEST_CLASSIC = 2**32 - 1

_NUMBER = re.compile(r"\s*[-+]?(\d|\.\d|nan|inf|1\.#)", re.IGNORECASE)
_BETWEEN_MARKUP = re.compile(rb"[^<>]+")


@dataclass
class TextConverter:
    """Re-encodes the texts of one IFD as UTF-8. `encodings` collects the encodings found besides UTF-8."""

    reader: TiffReader
    ifd: Ifd
    encodings: set[str] = field(default_factory=set)

    def contents(self) -> dict[int, bytes | None]:
        """Return new values by tag, for each field with a text that is not UTF-8. `None` means to leave it out."""
        found: dict[int, bytes | None] = {}
        for entry in self.ifd.fields:
            tag = entry.tag
            if tag == GEO_TEXTS or not self._is_text(entry):
                continue
            content = self.reader.content(entry)
            text = content.partition(b"\0")[0]
            if tag != GDAL_NODATA and (wide := decode_wide(content)):
                self.encodings.add(str(wide.encoding))
                found[tag] = wide.text.encode(errors="replace") + b"\0"
                continue
            if tag == GDAL_NODATA and not is_number(text.decode("latin-1")):
                found[tag] = None  # GDAL would copy it as 0
            elif not _is_utf8(text):
                found[tag] = self._to_utf8(text, markup=tag == METADATA) + b"\0"
        return found | self._geo_texts()

    def _is_text(self, entry: Field) -> bool:
        return entry.kind == ASCII or (entry.tag == METADATA and entry.kind in ONE_BYTE)

    def _to_utf8(self, text: bytes, *, markup: bool = False) -> bytes:
        if markup:
            return _BETWEEN_MARKUP.sub(lambda part: self._to_utf8(part[0]), text)
        decoded = decode(text)
        if decoded.encoding is not None:
            self.encodings.add(decoded.encoding)
        return decoded.text.encode()

    def _geo_texts(self) -> dict[int, bytes | None]:
        """Return the texts of geo keys, and the keys, which hold the position and length of each text."""
        keys, texts = self.ifd.find(GEO_KEYS), self.ifd.find(GEO_TEXTS)
        if keys is None or texts is None or _is_utf8(raw := self.reader.content(texts)):
            return {}
        numbers = [int(number) for number in self.reader.numbers(keys)]
        joined = b""
        for at in range(KEY, len(numbers) - KEY + 1, KEY):
            if numbers[at + 1] == GEO_TEXTS:
                count, start = numbers[at + 2 : at + KEY]
                text = self._to_utf8(raw[start : start + count])
                numbers[at + 2 : at + KEY] = [len(text), len(joined)]
                joined += text
        if len(joined) >= 2**16:  # a key cannot point beyond
            return {}
        packed = struct.pack(f"{self.reader.format.order}{len(numbers)}H", *numbers)
        return {GEO_KEYS: packed, GEO_TEXTS: joined + b"\0"}


def is_number(nodata: str | None) -> bool:
    """Whether a nodata text is missing or a number. GDAL reads "none" as 0, and would hide black pixels."""
    return nodata is None or bool(_NUMBER.match(nodata))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def readable(dataset: Any, structure: TiffStructure, number: int) -> Iterator[tuple[Any, str | None]]:
    """Open a dataset for texts, georeference and metadata. Yield it, and a remark if it is a stand-in.

    The stand-in replaces an IFD with texts in another encoding than UTF-8. It holds that IFD alone, re-encoded.
    """
    alone = converter = None
    with suppress(OSError, JobError), structure.open() as reader:  # GDAL may read more of a damaged file
        converter = _converter(reader, structure, number)
        if converter is not None and (contents := converter.contents()):
            alone = _alone(converter, contents)
    if alone is None or converter is None:
        yield dataset, None
        return
    with open_bytes(alone) as stand_in:
        yield stand_in, _remark(converter.encodings)


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
def in_utf8(path: Path, directory: int, copy: Path) -> Iterator[Path]:
    """Yield the file, or a temporary copy of it with the texts of this IFD in UTF-8."""
    if not _write_converted(path, directory, copy):
        yield path
        return
    try:
        yield copy
    finally:
        copy.unlink()


def _write_converted(path: Path, number: int, copy: Path) -> bool:
    structure = TiffStructure.read(path)
    with structure.open() as reader:
        converter = _converter(reader, structure, number)
        contents = {} if converter is None else converter.contents()
        if converter is None or not contents:
            return False
        at = reader.size + reader.size % 2
        table = _table(converter, contents, at, reader.following(converter.ifd))
        pointer = reader.following_at(structure.ifd(number - 1) if number > 1 else None)
    if not reader.format.big and at + len(table) > LARGEST_CLASSIC:
        return False
    shutil.copyfile(path, copy)
    with copy.open("r+b") as file:
        file.seek(at)
        file.write(table)
        file.seek(pointer)
        file.write(reader.format.word(at))
    return True


def _converter(reader: TiffReader, structure: TiffStructure, number: int) -> TextConverter | None:
    ifd = structure.ifd(number)
    return None if ifd is None or ifd.nested else TextConverter(reader, ifd)


def _alone(converter: TextConverter, contents: dict[int, bytes | None]) -> bytes:
    """Return a file of this IFD alone. It has no pixels, and GDAL reads none from it.

    Nested IFDs are left out: their offsets would point to other bytes, which no gate has checked.
    """
    contents = contents | dict.fromkeys(SUB_IFDS)
    form = converter.reader.format
    head = {"<": b"II", ">": b"MM"}[form.order] + struct.pack(f"{form.order}H", 43 if form.big else 42)
    head += struct.pack(f"{form.order}HH", 8, 0) if form.big else b""
    return head + form.word(form.start) + _table(converter, contents, form.start, 0)


def _table(converter: TextConverter, contents: dict[int, bytes | None], at: int, following: int) -> bytes:
    """Encode the IFD for offset `at`, with these values instead of its own."""
    form = converter.reader.format
    fields = [entry for entry in converter.ifd.fields if contents.get(entry.tag, b"") is not None]
    table, values = form.counter(len(fields)), b""
    after = at + form.counter_size + len(fields) * form.entry_size + form.word_size
    for entry in fields:
        content, count = converter.reader.content(entry), entry.count
        if new := contents.get(entry.tag):
            content = new
            count = len(content) // (2 if entry.tag == GEO_KEYS else 1)
        if len(content) > form.word_size:
            offset = after + len(values)
            values += content + b"\0" * (len(content) % 2)
            content = form.word(offset)
        table += struct.pack(f"{form.order}HH", entry.tag, entry.kind) + form.word(count)
        table += content.ljust(form.word_size, b"\0")
    return table + form.word(following) + values
