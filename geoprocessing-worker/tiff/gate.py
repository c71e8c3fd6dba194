"""Decides whether GDAL may see a file at all: by its directories, before anything of it is decoded.

Two gates. `check_metadata` keeps out files through whose own metadata GDAL would open something else; it always
stands. `check_structure` keeps out what would cost too much or cannot be; `VALIDATE_FILE_HEADERS` turns it off.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import JobError, invalid_input, malformed, too_large, truncated
from geoprocessing_worker.tiff.compression import Codec, codec_of, unsupported
from geoprocessing_worker.tiff.directory import (
    BITS_PER_SAMPLE,
    GDAL_NODATA,
    HEIGHT,
    IS_MASK,
    IS_REDUCED,
    LETTERS,
    METADATA,
    SUBFILE_TYPE,
    WIDTH,
    Directory,
    Field,
    Tiff,
)
from geoprocessing_worker.tiff.letters import decode_wide

MAX_SIDE = 1_000_000  # pixels; the widest honest mosaics stay below
MAX_BANDS = 4096  # hyperspectral cubes have a few hundred
MAX_BLOCK_BYTES = 768 << 20  # of one band; one block is decoded whole, whatever is asked of it
MAX_INTERLEAVED_BYTES = 1 << 30  # of all bands of a block, where they are stored pixel by pixel
MAX_BLOCKS = 16_000_000  # a million pixels square in tiles of 256
# GDAL's time to open a file grows with the square of the masks, from 0.6 s for these to 10 s for 4,000. With overviews
# it grows evenly, but many are opened: a day of pictures, one a minute, has 1,440.
MOST_OF_KIND = {"masks": 1024, "overviews": 2048}
MAX_CONTROL_POINTS = 10_000  # each becomes an object, and all of them an equation; honest files have some hundred

TIE_POINTS = 33922  # six numbers each
LARGEST_METADATA = 1 << 20  # bytes
LARGEST_TEXT = 16 << 20  # bytes; microscopes describe their pictures in megabytes of XML
LARGEST_NODATA = 4096  # bytes; one number
UTF_8_MARK = b"\xef\xbb\xbf".decode("latin-1")  # GDAL skips it
BYTES = frozenset({1, 2, 6, 7})  # TIFF's types of one byte

# Domains that programs write of themselves and that lead nowhere. OVERVIEWS, GEOLOCATION and whatever a later GDAL may
# follow are kept out by not being here. TILING_SCHEME is in our own web-optimized results, which later jobs take; GDAL
# writes it from an option of the one who calls, and never reads it.
HARMLESS_DOMAINS = frozenset({
    "", "IMAGE_STRUCTURE", "COLOR_PROFILE", "IMAGERY", "RPC", "EXIF", "TILING_SCHEME", "rio_creation_kwds",
    "rio_overview",
    # ArcGIS, in each file that it writes.
    "Esri", "ESRI", "xml:ESRI",
    # What GDAL copies of sources in other formats (COPY_SRC_MDD): none of it is looked at again in a GeoTIFF.
    "IMD", "QUALITY", "ENVI", "ERS", "TRE", "xml:TRE", "NITF_METADATA", "NITF_DES", "xml:DES", "CGM", "TEXT", "IPTC",
    "json:ISIS3", "json:VICAR", "xml:ISIS3", "xml:PDS4", "xml:SENTINEL2", "xml:dimap",
    "xml:gml.root-instance", "xml:BAG",
})  # fmt: skip
# What GDAL's driver makes by itself, from other tags or to list the pages.
DERIVED_DOMAINS = frozenset({"SUBDATASETS", "DERIVED_SUBDATASETS", "xml:XMP"})

# Nothing but this is taken, so that no other reader of XML can see more in a text than was seen here. GDAL for one
# takes an element <domain> for the attribute of that name.
_ATTRIBUTES = r"""(?:\s++[\w:.-]++\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'))*+\s*+"""
_OPENING = re.compile(rf"\s*+(?:<\?xml[^<>?]*+\?>)?\s*+<GDALMetadata{_ATTRIBUTES}>", re.ASCII)
_EMPTY = re.compile(rf"\s*+(?:<\?xml[^<>?]*+\?>)?\s*+<GDALMetadata{_ATTRIBUTES}/>\s*+", re.ASCII)
_ITEM = re.compile(rf"\s*+<Item({_ATTRIBUTES})(?:/>|>[^<]*+</Item>)", re.ASCII)
_CLOSING = re.compile(r"\s*+</GDALMetadata\s*+>\s*+", re.ASCII)
_DOMAIN = re.compile(r"""\bdomain\s*=\s*["']([^"']*)["']""", re.IGNORECASE | re.ASCII)


def admit(path: Path, *, validate_headers: bool = True) -> tuple[str, ...]:
    """Look at every directory of the file. Return a remark for each oddity that does no harm.

    Args:
        path: the file.
        validate_headers: check the structure too, not only the magic number and the metadata.

    Raises:
        JobError: `not_a_tiff`, `hostile_metadata`; with `validate_headers` also `malformed_header`, `truncated`,
            `too_large`, `unsupported_compression`.
    """
    found = path.stat()
    return _admit_once(path, validate_headers, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4)
def _admit_once(path: Path, validate_headers: bool, _version: tuple[int, ...]) -> tuple[str, ...]:
    """A file that was let in is not looked at again; one that was refused is refused again."""
    with path.open("rb") as file:
        tiff, found = Tiff(file), Counter[str]()
        try:
            first = 0
            for directory in tiff.directories():
                check_metadata(tiff, directory)
                if validate_headers and (kind := _kind(tiff, directory)):
                    found[kind] += 1
                    if found[kind] > MOST_OF_KIND[kind]:
                        raise too_large(kind, found[kind], MOST_OF_KIND[kind], kind)
                first = first or _pixels(tiff, directory)
                if directory.incomplete:
                    _check_needless(tiff, directory, first)
                elif validate_headers and (not directory.nested or _is_version(tiff, directory)):
                    check_structure(tiff, directory)
        except JobError as error:
            # GDAL may find its way through a damaged chain; what it finds there is looked at once it is open.
            if validate_headers or error.code == "hostile_metadata":
                raise
        return () if tiff.remark is None else (tiff.remark,)


def _kind(tiff: Tiff, directory: Directory) -> str | None:
    """The kind of a directory that belongs to another one's picture: a key of `MOST_OF_KIND`."""
    found = tiff.numbers(directory.find(SUBFILE_TYPE))
    bits = int(found[0]) if found.size else 0
    return "masks" if bits & IS_MASK else "overviews" if bits & IS_REDUCED else None


def _pixels(tiff: Tiff, directory: Directory) -> int:
    return math.prod(int(number) for tag in (WIDTH, HEIGHT) for number in tiff.numbers(directory.find(tag))[:1])


def _check_needless(tiff: Tiff, directory: Directory, first: int) -> None:
    """Refuse a file whose picture cannot be shown without this incomplete directory.

    Without its mask a picture would show hidden pixels. A page larger than the first one (of so many pixels) would be
    the one that is shown.

    Raises:
        JobError: `truncated`.
    """
    kind = tiff.numbers(directory.find(SUBFILE_TYPE))
    bits = int(kind[0]) if kind.size else 0
    if not bits & IS_REDUCED and (bits & IS_MASK or _pixels(tiff, directory) > first):
        raise truncated("a page or mask has values beyond its end", tiff.size + 1, tiff.size)


def _is_version(tiff: Tiff, directory: Directory) -> bool:
    """Whether GDAL opens a SubIFD: it has a size, and it is an overview or a mask. GDAL ignores all others."""
    kind, width, height = (tiff.numbers(directory.find(tag)) for tag in (SUBFILE_TYPE, WIDTH, HEIGHT))
    return bool(kind.size and int(kind[0]) & (IS_REDUCED | IS_MASK) and width.any() and height.any())


def check_metadata(tiff: Tiff, directory: Directory) -> None:
    """Refuse metadata in a domain that is not known to be harmless, or written so that readers may disagree about it.

    Raises:
        JobError: `hostile_metadata`, `too_large`.
    """
    for field in directory.fields:
        if field.tag != METADATA:
            continue
        if field.size > LARGEST_METADATA:
            raise too_large("metadata", field.size, LARGEST_METADATA, "bytes of metadata")
        # libtiff would also take wider numbers for letters.
        if field.kind not in BYTES:
            raise _unreadable(type=field.kind)
        # GDAL reads up to the first NUL, and nothing of wide letters. `texts` decodes those for it.
        content = tiff.content(field)
        wide = decode_wide(content)
        text = content.partition(b"\0")[0].decode("latin-1") if wide is None else wide.text
        for domain in _domains(text.removeprefix(UTF_8_MARK)):
            check_domain(domain)


def check_domain(domain: str) -> None:
    """Refuse a domain that is not known to be harmless.

    Raises:
        JobError: `hostile_metadata`.
    """
    if domain not in HARMLESS_DOMAINS | DERIVED_DOMAINS:
        raise invalid_input(
            "hostile_metadata",
            f"The file's metadata domain {domain[:80]!r} may point to other files, which are not followed. "
            "Save it without.",
            domain=domain[:80],
        )


def _domains(text: str) -> set[str]:
    if not text.strip() or _EMPTY.fullmatch(text):
        return set()
    found = set()
    begin = _OPENING.match(text)
    at = begin.end() if begin else 0
    while item := _ITEM.match(text, at):
        found |= set(_DOMAIN.findall(item[1]))
        at = item.end()
    if begin is None or not _CLOSING.fullmatch(text, at):
        raise _unreadable(at=at)
    return found


def _unreadable(**detail: int) -> JobError:
    return invalid_input(
        "hostile_metadata",
        "The file's metadata are not written the way GDAL writes them, so what they lead to cannot be told. "
        "Save it without.",
        **detail,
    )


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """A directory's picture as libtiff would take it. Sizes in pixels."""

    width: int
    height: int
    samples: int
    bits: int
    separate: bool
    block_width: int
    block_height: int

    @classmethod
    def read(cls, tiff: Tiff, directory: Directory) -> Self:
        """The layout that a directory declares."""

        def number(tag: int, default: int) -> int:
            values = tiff.numbers(directory.find(tag))
            return int(values[0]) if values.size else default

        width, height = number(256, 0), number(257, 0)
        bits = tiff.numbers(directory.find(BITS_PER_SAMPLE))
        tiled = directory.find(322) is not None
        return cls(
            width=width,
            height=height,
            samples=number(277, 1),
            bits=int(bits.max()) if bits.size else 1,
            separate=number(284, 1) == 2,
            block_width=number(322, 0) if tiled else width,
            block_height=number(323, 0) if tiled else min(number(278, height), height),
        )

    @property
    def band_bytes(self) -> int:
        """Of one band of a block."""
        return self.block_height * -(-self.block_width * self.bits // 8)

    @property
    def block_bytes(self) -> int:
        """Of a block as it is stored: of one band, or of all."""
        samples = 1 if self.separate else self.samples
        return self.block_height * -(-self.block_width * self.bits * samples // 8)

    @property
    def blocks(self) -> int:
        """The number of strips or tiles, of all bands."""
        across = -(-self.width // self.block_width)
        down = -(-self.height // self.block_height)
        return across * down * (self.samples if self.separate else 1)


def check_structure(tiff: Tiff, directory: Directory) -> None:
    """Refuse a picture that cannot be, that is stored in a way which is not read here, or that would cost too much.

    Raises:
        JobError: `malformed_header`, `too_large`, `unsupported_compression`, `truncated`.
    """
    layout = BlockLayout.read(tiff, directory)
    if not (layout.width and layout.height and layout.block_width and layout.block_height and layout.samples):
        raise malformed("a picture in it has no size", width=layout.width, height=layout.height)
    if layout.bits not in range(1, 129):
        raise malformed("its number of bits is none that a pixel can have", bits=layout.bits)
    _check_codec(codec_of(tiff, directory))
    _check_texts(directory)
    starts, lengths = (_places(tiff, directory, strip, tile) for strip, tile in ((273, 324), (279, 325)))
    tie_points = directory.find(TIE_POINTS)
    for limit, found, allowed, words in (
        ("side", max(layout.width, layout.height), MAX_SIDE, "pixels on a side"),
        ("bands", layout.samples, MAX_BANDS, "bands"),
        ("block", layout.band_bytes, MAX_BLOCK_BYTES, "bytes in one strip or tile"),
        ("block", layout.block_bytes, MAX_INTERLEAVED_BYTES, "bytes in all bands of one strip or tile"),
        ("blocks", layout.blocks, MAX_BLOCKS, "strips or tiles"),
        ("control points", tie_points.count // 6 if tie_points else 0, MAX_CONTROL_POINTS, "control points"),
    ):
        if found > allowed:
            raise too_large(limit, found, allowed, words)
    # GDAL writes none at all where no block is there.
    if any(0 < places.size < layout.blocks for places in (starts, lengths)):
        raise malformed("fewer strips or tiles are listed than its picture has", blocks=layout.blocks)
    _check_starts(tiff, starts, lengths)


def _check_texts(directory: Directory) -> None:
    for field in directory.fields:
        most = LARGEST_NODATA if field.tag == GDAL_NODATA else LARGEST_TEXT
        if field.kind == LETTERS and field.size > most:
            raise too_large("text", field.size, most, f"bytes of text in tag {field.tag}")


def _check_codec(codec: Codec) -> None:
    if not codec.read:
        raise unsupported(codec)


def _places(tiff: Tiff, directory: Directory, strip: int, tile: int) -> NDArray[np.uint64]:
    field: Field | None = directory.find(tile) or directory.find(strip)
    return tiff.numbers(field)


def _check_starts(
    tiff: Tiff,
    starts: NDArray[np.uint64],
    lengths: NDArray[np.uint64],
) -> None:
    """A block that is there begins inside the file; one whose end is missing shows when it is read, or never."""
    if starts.size == lengths.size:
        starts = starts[lengths > 0]
    if starts.size and int(starts.max()) >= tiff.size:
        raise truncated("a strip or tile stands beyond its end", int(starts.max()), tiff.size)
