"""The codecs of TIFF by name, and the supported ones.

Measured with the GDAL 3.10.3 of rasterio's wheel; tests/worker/test_compression.py fails if another version reads more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.tiff.structure import Ifd, TiffReader, TiffStructure
from geoprocessing_worker.tiff.tags import BITS_PER_SAMPLE, BLOCK_TAGS, COMPRESSION

# From libtiff, Adobe's and other vendors' registrations, and tifffile.
NAMES = {
    1: "none", 2: "CCITT RLE", 3: "CCITT Group 3", 4: "CCITT Group 4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "DEFLATE", 9: "JBIG T.85", 10: "JBIG T.43", 99: "JPEG 99", 103: "ImpactJ", 262: "Kodak 262",
    22610: "JPEG XR", 32766: "NeXT", 32767: "Sony ARW", 32769: "packed raw", 32770: "Samsung SRW",
    32771: "CCITT RLE/W", 32772: "Samsung SRW 2", 32773: "PackBits", 32809: "ThunderScan", 32895: "IT8 CT",
    32896: "IT8 LW", 32897: "IT8 MP", 32898: "IT8 BL", 32908: "PixarFilm", 32909: "PixarLog", 32946: "DEFLATE",
    32947: "Kodak DCS", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 33007: "Aperio JPEG",
    34661: "JBIG", 34676: "SGILOG", 34677: "SGILOG24", 34692: "LuraDocument", 34712: "JPEG 2000", 34713: "Nikon NEF",
    34715: "JBIG2", 34718: "Microsoft Document Imaging", 34719: "Microsoft Document Imaging",
    34720: "Microsoft Document Imaging", 34887: "LERC", 34892: "lossy JPEG of DNG", 34925: "LZMA", 34926: "old ZSTD",
    34927: "old WEBP", 34933: "PNG", 34934: "JPEG XR", 48124: "Jetraw", 50000: "ZSTD", 50001: "WEBP",
    50002: "JPEG XL", 50013: "PixTIFF", 52546: "JPEG XL", 65000: "Kodak DCR or EER", 65001: "EER", 65002: "EER",
    65535: "Pentax PEF",
}  # fmt: skip
UNKNOWN = "unknown"
JPEG = 7

# GDAL also has decoders for old JPEG, NeXT, ThunderScan and PixarLog. They are rejected: they are unmaintained, and
# hardly any file needs them.
READ = frozenset({1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 34676, 34677, 34887, 34925, 50000, 50001})

# JPEG processes by frame marker. libjpeg-turbo reads baseline, extended and progressive frames of 8 bits, with Huffman
# or arithmetic coding.
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
OTHER_FRAMES = {
    0xC3: "lossless JPEG", 0xCB: "lossless JPEG", 0xF7: "JPEG-LS",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical JPEG"),
}  # fmt: skip
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
SCAN, END = 0xDA, 0xD9
MAX_SEGMENTS = 256  # before a frame: profiles and previews in segments of 64 kB
# Other formats that some programs store under JPEG's code.
OTHER_STREAMS = {b"\xffO\xffQ": "JPEG 2000", b"\0\0\0\x0c": "JPEG 2000", b"\xff\x0a": "JPEG XL", b"II\xbc": "JPEG XR"}


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec: its TIFF code, its name, and whether it is supported."""

    code: int
    name: str
    read: bool


def codec_of(reader: TiffReader, ifd: Ifd) -> Codec:
    """Return the codec of a picture, for JPEG by its first block."""
    code = reader.first(ifd, COMPRESSION, 1)
    if code == JPEG:
        other = _unsupported_jpeg(reader, ifd)
        return Codec(code, other or NAMES[code], other is None)
    return Codec(code, NAMES.get(code, UNKNOWN), code in READ)


def codec_in(path: Path) -> Codec | None:
    """Return the first unsupported codec in a file, else that of the first page, or `None` without an IFD."""
    found: list[Codec] = []
    with suppress(OSError, JobError):
        structure = TiffStructure.read(path)
        with structure.open() as reader:
            found.extend(codec_of(reader, ifd) for ifd in structure.ifds if not (ifd.nested or ifd.incomplete))
    return next((codec for codec in found if not codec.read), found[0] if found else None)


def unsupported(codec: Codec, **detail: str) -> JobError:
    """Return the error for a codec, with its code and name."""
    return invalid_input(
        "unsupported_compression",
        "The file is compressed in a way that cannot be read here. Save it with DEFLATE, LZW or ZSTD. "
        f"(It is {codec.name}, code {codec.code}.)",
        compression=codec.code,
        name=codec.name,
        **detail,
    )


def _unsupported_jpeg(reader: TiffReader, ifd: Ifd) -> str | None:
    """Return the name of a JPEG variant that libjpeg does not read. `None` for supported ones, and for damage."""
    at = _first_block(reader, ifd)
    if at is not None:
        for magic, name in OTHER_STREAMS.items():
            if reader.part(at, len(magic)) == magic:
                return name
        for marker, start in _segments(reader, at):
            if marker in OTHER_FRAMES:
                return OTHER_FRAMES[marker]
            if marker in FRAMES:
                bits = reader.part(start + 2, 1)
                return None if bits in {b"", b"\x08"} else f"{bits[0]}-bit JPEG"
    declared = reader.first(ifd, BITS_PER_SAMPLE, 1)
    return f"{declared}-bit JPEG" if declared in {12, 16} else None


def _first_block(reader: TiffReader, ifd: Ifd) -> int | None:
    """Return the offset of the first strip or tile that is not empty."""
    for start_tag, length_tag in BLOCK_TAGS:
        starts = reader.numbers(ifd.find(start_tag))
        lengths = reader.numbers(ifd.find(length_tag))
        if starts.size:
            stored = starts[lengths > 0] if lengths.size == starts.size else starts
            return int(stored[0]) if stored.size else None
    return None


def _segments(reader: TiffReader, at: int) -> Iterator[tuple[int, int]]:
    """Yield JPEG's markers before the first scan, each with the offset after it."""
    if reader.part(at, 2) != b"\xff\xd8":
        return
    at += 2
    for _ in range(MAX_SEGMENTS):
        head = reader.part(at, 4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in {SCAN, END}:
            return
        if head[1] == 0xFF:  # fill byte
            at += 1
            continue
        yield head[1], at + 2
        at += 2 if head[1] in WITHOUT_LENGTH else 2 + int.from_bytes(head[2:4], "big")
