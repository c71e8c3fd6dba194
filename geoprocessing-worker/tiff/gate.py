"""The gate before GDAL: decides from its IFDs whether a file may be opened, before anything in it is decoded.

`check_metadata` rejects files with metadata that could make GDAL open something else. It always runs. `check_structure`
rejects impossible and too costly structures. `VALIDATE_FILE_HEADERS` turns it off.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.errors import JobError, invalid_input, malformed, too_large, truncated
from geoprocessing_worker.tiff.compression import codec_of, unsupported
from geoprocessing_worker.tiff.letters import decode_wide
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import (
    ASCII,
    BITS_PER_SAMPLE,
    BLOCK_TAGS,
    GDAL_NODATA,
    IS_MASK,
    IS_REDUCED,
    METADATA,
    ONE_BYTE,
    PLANAR_CONFIGURATION,
    ROWS_PER_STRIP,
    SAMPLES,
    TIE_POINTS,
    TILE_HEIGHT,
    TILE_WIDTH,
)

MAX_SIDE = 1_000_000  # pixels. The widest ordinary mosaics stay below
MAX_BANDS = 4096  # hyperspectral cubes have a few hundred
MAX_BLOCK_BYTES = 768 << 20  # of one band. GDAL decodes a block whole, however little of it is needed
MAX_INTERLEAVED_BYTES = 1 << 30  # of all bands of a pixel-interleaved block
MAX_BLOCKS = 16_000_000  # a million pixels square in tiles of 256
# GDAL's opening time grows with the square of the masks, from 0.6 s for this limit to 10 s for 4,000. It grows linearly
# with overviews, but many are opened. A day of pictures, one a minute, has 1,440 of them.
MAX_BY_KIND = {"masks": 1024, "overviews": 2048}
MAX_CONTROL_POINTS = 10_000  # each becomes an object, and all of them an equation. Ordinary files have some hundred

LARGEST_METADATA = 1 << 20  # bytes
LARGEST_TEXT = 16 << 20  # bytes. Microscopes describe their pictures in megabytes of XML
LARGEST_NODATA = 4096  # bytes. One number
UTF_8_MARK = b"\xef\xbb\xbf".decode("latin-1")  # GDAL skips it

# Domains that programs write and that lead nowhere. OVERVIEWS, GEOLOCATION and any domain that a later GDAL may follow
# are rejected because they are not listed. TILING_SCHEME is in this worker's web-optimized COGs, which later jobs read.
# GDAL writes it from a creation option and never reads it.
HARMLESS_DOMAINS = frozenset({
    "", "IMAGE_STRUCTURE", "COLOR_PROFILE", "IMAGERY", "RPC", "EXIF", "TILING_SCHEME", "rio_creation_kwds",
    "rio_overview",
    # ArcGIS, in each file that it writes.
    "Esri", "ESRI", "xml:ESRI",
    # Copied by GDAL from sources in other formats (COPY_SRC_MDD), and never read again in a GeoTIFF.
    "IMD", "QUALITY", "ENVI", "ERS", "TRE", "xml:TRE", "NITF_METADATA", "NITF_DES", "xml:DES", "CGM", "TEXT", "IPTC",
    "json:ISIS3", "json:VICAR", "xml:ISIS3", "xml:PDS4", "xml:SENTINEL2", "xml:dimap",
    "xml:gml.root-instance", "xml:BAG",
})  # fmt: skip
# Made by GDAL's driver from other tags, or to list the pages.
DERIVED_DOMAINS = frozenset({"SUBDATASETS", "DERIVED_SUBDATASETS", "xml:XMP"})

# Only this grammar is accepted, so that no XML parser can find more in a text than this one. GDAL, for example, reads
# an element <domain> as the attribute of that name.
_ATTRIBUTES = r"""(?:\s++[\w:.-]++\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'))*+\s*+"""
_OPENING = re.compile(rf"\s*+(?:<\?xml[^<>?]*+\?>)?\s*+<GDALMetadata{_ATTRIBUTES}>", re.ASCII)
_EMPTY = re.compile(rf"\s*+(?:<\?xml[^<>?]*+\?>)?\s*+<GDALMetadata{_ATTRIBUTES}/>\s*+", re.ASCII)
_ITEM = re.compile(rf"\s*+<Item({_ATTRIBUTES})(?:/>|>[^<]*+</Item>)", re.ASCII)
_CLOSING = re.compile(r"\s*+</GDALMetadata\s*+>\s*+", re.ASCII)
_DOMAIN = re.compile(r"""\bdomain\s*=\s*["']([^"']*)["']""", re.IGNORECASE | re.ASCII)


def admit(path: Path, *, validate_headers: bool = True) -> TiffStructure:
    """Check every IFD of a file. Return its structure.

    Cached, since the child process checks each file before its handler does.

    Args:
        path: the file.
        validate_headers: check the structure too, not only the magic number and the metadata.

    Raises:
        JobError: `not_a_tiff`, `hostile_metadata`; with `validate_headers` also `malformed_header`, `truncated`,
            `too_large`, `unsupported_compression`.
    """
    stat = path.stat()
    return _admit_once(path, validate_headers, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)
def _admit_once(path: Path, validate_headers: bool, _version: tuple[int, ...]) -> TiffStructure:
    with path.open("rb") as file:
        reader = TiffReader(file)
        structure = TiffStructure.of(path, reader)
        try:
            _check_ifds(reader, structure, validate_headers=validate_headers)
        except JobError as error:
            # GDAL may read more of a damaged chain. Its domains and sizes are checked again once it is open.
            if validate_headers or error.code == "hostile_metadata":
                raise
    return structure


def _check_ifds(reader: TiffReader, structure: TiffStructure, *, validate_headers: bool) -> None:
    found = Counter[str]()
    for ifd in structure.ifds:
        check_metadata(reader, ifd)
        if validate_headers and (kind := _kind(ifd)):
            found[kind] += 1
            if found[kind] > MAX_BY_KIND[kind]:
                raise too_large(kind, found[kind], MAX_BY_KIND[kind], kind)
        if ifd.incomplete:
            _check_needless(reader, ifd, structure.ifds[0])
        elif validate_headers and (not ifd.nested or _is_version(ifd)):
            check_structure(reader, ifd)
    if structure.error is not None:
        raise structure.error


def _kind(ifd: Ifd) -> str | None:
    """Return the key in `MAX_BY_KIND` of an IFD that belongs to another one's picture."""
    return "masks" if ifd.subfile_type & IS_MASK else "overviews" if ifd.subfile_type & IS_REDUCED else None


def _check_needless(reader: TiffReader, ifd: Ifd, first: Ifd) -> None:
    """Reject a file if its picture cannot be shown without this incomplete IFD.

    Without its mask a picture would show hidden pixels. A page larger than the first one would be the page to show.

    Raises:
        JobError: `truncated`.
    """
    larger = ifd.width * ifd.height > first.width * first.height
    if not ifd.subfile_type & IS_REDUCED and (ifd.subfile_type & IS_MASK or larger):
        raise truncated("a page or mask has values beyond its end", reader.size + 1, reader.size)


def _is_version(ifd: Ifd) -> bool:
    """Whether GDAL opens a SubIFD. It ignores all but overviews and masks that have a size."""
    return bool(ifd.subfile_type & (IS_REDUCED | IS_MASK) and ifd.width and ifd.height)


def check_metadata(reader: TiffReader, ifd: Ifd) -> None:
    """Reject metadata in an unlisted domain, or in a form that parsers may read differently.

    Raises:
        JobError: `hostile_metadata`, `too_large`.
    """
    for field in ifd.fields:
        if field.tag != METADATA:
            continue
        if field.size > LARGEST_METADATA:
            raise too_large("metadata", field.size, LARGEST_METADATA, "bytes of metadata")
        # libtiff would also read wider numbers as letters.
        if field.kind not in ONE_BYTE:
            raise _unreadable(type=field.kind)
        # GDAL reads up to the first NUL, and no UTF-16 or UTF-32. `source/texts` decodes those for it.
        content = reader.content(field)
        wide = decode_wide(content)
        text = content.partition(b"\0")[0].decode("latin-1") if wide is None else wide.text
        for domain in _domains(text.removeprefix(UTF_8_MARK)):
            check_domain(domain)


def check_domain(domain: str) -> None:
    """Reject a domain that is not listed as harmless.

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
        "The file's metadata are not written the way GDAL writes them, so they may point to other files. "
        "Save it without.",
        **detail,
    )


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The size, samples and blocks of a picture as libtiff reads them. Sizes in pixels."""

    width: int
    height: int
    samples: int
    bits: int
    separate: bool
    block_width: int
    block_height: int

    @classmethod
    def read(cls, reader: TiffReader, ifd: Ifd) -> Self:
        """Return the layout that an IFD declares."""
        bits = reader.numbers(ifd.find(BITS_PER_SAMPLE))
        tiled = ifd.find(TILE_WIDTH) is not None
        rows = min(reader.first(ifd, ROWS_PER_STRIP, ifd.height), ifd.height)
        return cls(
            width=ifd.width,
            height=ifd.height,
            samples=reader.first(ifd, SAMPLES, 1),
            bits=int(bits.max()) if bits.size else 1,
            separate=reader.first(ifd, PLANAR_CONFIGURATION, 1) == 2,
            block_width=reader.first(ifd, TILE_WIDTH) if tiled else ifd.width,
            block_height=reader.first(ifd, TILE_HEIGHT) if tiled else rows,
        )

    @property
    def band_bytes(self) -> int:
        """Bytes of one band of a block."""
        return self.block_height * -(-self.block_width * self.bits // 8)

    @property
    def block_bytes(self) -> int:
        """Bytes of a stored block: of one band, or of all if they are interleaved."""
        samples = 1 if self.separate else self.samples
        return self.block_height * -(-self.block_width * self.bits * samples // 8)

    @property
    def blocks(self) -> int:
        """The number of strips or tiles, of all bands."""
        across = -(-self.width // self.block_width)
        down = -(-self.height // self.block_height)
        return across * down * (self.samples if self.separate else 1)


def check_structure(reader: TiffReader, ifd: Ifd) -> None:
    """Reject a picture that is impossible, unsupported or too costly.

    Raises:
        JobError: `malformed_header`, `too_large`, `unsupported_compression`, `truncated`.
    """
    layout = BlockLayout.read(reader, ifd)
    if not (layout.width and layout.height and layout.block_width and layout.block_height and layout.samples):
        raise malformed("a picture in it has no size", width=layout.width, height=layout.height)
    if layout.bits not in range(1, 129):
        raise malformed("its number of bits is none that a pixel can have", bits=layout.bits)
    codec = codec_of(reader, ifd)
    if not codec.read:
        raise unsupported(codec)
    _check_texts(ifd)
    (tile_starts, tile_bytes), (strip_starts, strip_bytes) = BLOCK_TAGS
    starts = reader.numbers(ifd.find(tile_starts) or ifd.find(strip_starts))
    lengths = reader.numbers(ifd.find(tile_bytes) or ifd.find(strip_bytes))
    tie_points = ifd.find(TIE_POINTS)
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
    # GDAL lists no blocks at all where none is stored.
    if any(0 < listed.size < layout.blocks for listed in (starts, lengths)):
        raise malformed("fewer strips or tiles are listed than its picture has", blocks=layout.blocks)
    _check_starts(reader, starts, lengths)


def _check_texts(ifd: Ifd) -> None:
    for field in ifd.fields:
        limit = LARGEST_NODATA if field.tag == GDAL_NODATA else LARGEST_TEXT
        if field.kind == ASCII and field.size > limit:
            raise too_large("text", field.size, limit, f"bytes of text in tag {field.tag}")


def _check_starts(reader: TiffReader, starts: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
    """Reject a stored block that begins beyond the end of the file. A missing end shows when the block is read."""
    if starts.size == lengths.size:
        starts = starts[lengths > 0]
    if starts.size and int(starts.max()) >= reader.size:
        raise truncated("a strip or tile lies beyond its end", int(starts.max()), reader.size)
