"""The codecs of TIFF by name, and which of them are read here.

Measured with the GDAL 3.10.3 of rasterio's wheel; tests/worker/test_compression.py fails if another one reads more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.tiff.directory import BITS_PER_SAMPLE, COMPRESSION, PLACES, Directory, Tiff

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

# GDAL has decoders also for old JPEG, NeXT, ThunderScan and PixarLog. Hardly any file needs these, and nobody maintains
# them, so they are refused.
READ = frozenset({1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 34676, 34677, 34887, 34925, 50000, 50001})

# JPEG's processes by the marker of a frame: libjpeg-turbo reads the baseline, extended and progressive ones, Huffman or
# arithmetic, of 8 bits.
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
OTHER_FRAMES = {
    0xC3: "lossless JPEG", 0xCB: "lossless JPEG", 0xF7: "JPEG-LS",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical JPEG"),
}  # fmt: skip
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
SCAN, END = 0xDA, 0xD9
MOST_SEGMENTS = 256  # before a frame: profiles and previews in pieces of 64 kB
# What some programs store under JPEG's code.
OTHER_STREAMS = {b"\xffO\xffQ": "JPEG 2000", b"\0\0\0\x0c": "JPEG 2000", b"\xff\x0a": "JPEG XL", b"II\xbc": "JPEG XR"}


@dataclass(frozen=True, slots=True)
class Codec:
    """A way of compressing: TIFF's code for it, its name, and whether it is read here."""

    code: int
    name: str
    read: bool


def codec_of(tiff: Tiff, directory: Directory) -> Codec:
    """The codec of a directory's picture, for JPEG by the first block of it."""
    code = _first(tiff, directory, COMPRESSION, 1)
    if code == JPEG:
        other = _other_jpeg(tiff, directory)
        return Codec(code, other or NAMES[code], other is None)
    return Codec(code, NAMES.get(code, UNKNOWN), code in READ)


def codec_in(path: Path) -> Codec | None:
    """The first codec in the file that is not read here, else that of the first page; None if it has no directory."""
    found: list[Codec] = []
    with suppress(OSError, JobError), path.open("rb") as file:
        tiff = Tiff(file)
        read = (one for one in tiff.directories() if not (one.nested or one.incomplete))
        found.extend(codec_of(tiff, directory) for directory in read)
    return next((codec for codec in found if not codec.read), found[0] if found else None)


def unsupported(codec: Codec, **detail: str) -> JobError:
    """The refusal of a codec, by its code and name."""
    return invalid_input(
        "unsupported_compression",
        "The file is compressed in a way that cannot be read here. Save it with DEFLATE, LZW or ZSTD. "
        f"(It is {codec.name}, code {codec.code}.)",
        compression=codec.code,
        name=codec.name,
        **detail,
    )


def _first(tiff: Tiff, directory: Directory, tag: int, default: int) -> int:
    numbers = tiff.numbers(directory.find(tag))
    return int(numbers[0]) if numbers.size else default


def _other_jpeg(tiff: Tiff, directory: Directory) -> str | None:
    """The name of a JPEG that libjpeg does not read; None for one that it does, and for damage."""
    at = _first_block(tiff, directory)
    if at is not None:
        for magic, name in OTHER_STREAMS.items():
            if tiff.part(at, len(magic)) == magic:
                return name
        for marker, place in _segments(tiff, at):
            if marker in OTHER_FRAMES:
                return OTHER_FRAMES[marker]
            if marker in FRAMES:
                bits = tiff.part(place + 2, 1)
                return None if bits in {b"", b"\x08"} else f"{bits[0]}-bit JPEG"
    bits_said = _first(tiff, directory, BITS_PER_SAMPLE, 1)
    return f"{bits_said}-bit JPEG" if bits_said in {12, 16} else None


def _first_block(tiff: Tiff, directory: Directory) -> int | None:
    """Where the first strip or tile that is not empty begins."""
    for start_tag, length_tag in PLACES:
        starts = tiff.numbers(directory.find(start_tag))
        lengths = tiff.numbers(directory.find(length_tag))
        if starts.size:
            there = starts[lengths > 0] if lengths.size == starts.size else starts
            return int(there[0]) if there.size else None
    return None


def _segments(tiff: Tiff, at: int) -> Iterator[tuple[int, int]]:
    """JPEG's markers before the first scan, each with the place of what follows it."""
    if tiff.part(at, 2) != b"\xff\xd8":
        return
    at += 2
    for _ in range(MOST_SEGMENTS):
        head = tiff.part(at, 4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in {SCAN, END}:
            return
        if head[1] == 0xFF:  # filling
            at += 1
            continue
        yield head[1], at + 2
        at += 2 if head[1] in WITHOUT_LENGTH else 2 + int.from_bytes(head[2:4], "big")
