"""Small files with a high cost: huge blocks, many blocks, bands, tags and directories, and cycles of directories."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import rasterio
from affine import Affine

from geoprocessing_worker.source.gdal import gdal_environment
from tests.support.tiffs import ASCII, BYTE, DOUBLE, LONG, SHORT, UNDEFINED, RawTiff, Value, gray

Tags = dict[int, Value]
Maker = Callable[[Path], None]

PLACE: Tags = {
    33550: (DOUBLE, [0.0001, 0.0001, 0]),
    33922: (DOUBLE, [0, 0, 0, 44, 16, 0]),
    34735: (SHORT, [1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, 4326]),
}
"""A place in EPSG:4326, so that tiles can be made."""
NOTHING: Mapping[int, Value] = MappingProxyType({})
STRIPS = (273, 278, 279)
DEFLATE: Value = (SHORT, [8])
FIELD = 60_000_000  # bytes of a long field. A field may have 64 MiB


def packed(size: int) -> bytes:
    """Return this many zeros, deflated a thousandfold."""
    packer = zlib.compressobj(9)
    whole, rest = divmod(size, 1 << 24)
    parts = [packer.compress(bytes(1 << 24)) for _ in range(whole)]
    return b"".join([*parts, packer.compress(bytes(rest)), packer.flush()])


def write(path: Path, directories: Sequence[Mapping[int, Value]], data: bytes, start: int) -> None:
    """Write directories, and the data at byte `start`."""
    head = RawTiff(directories).bytes()
    if len(head) > start:
        raise ValueError(f"{len(head)} bytes of directories")
    path.write_bytes(head.ljust(start, b"\0") + data)


def one_strip(path: Path, side: int, codec: str = "deflate", dtype: str = "uint8") -> None:
    """A square of zeros in one compressed strip."""
    with (
        gdal_environment(),
        rasterio.open(
            path, "w", driver="GTiff", width=side, height=side, count=1, dtype=dtype, compress=codec, blockysize=side,
            crs="EPSG:4326", transform=Affine(1e-4, 0, 44, 0, -1e-4, 16),
        ) as dataset,
    ):  # fmt: skip
        dataset.write(np.zeros((1, side, side), dtype))


def same_tiles(path: Path, side: int, tile: int = 256, kinds: Sequence[int] = (), bands: int = 1) -> None:
    """A square picture, and more of the same size with these subfile types. All tiles share the same bytes."""
    data, blocks = packed(tile * tile * bands), (-(-side // tile)) ** 2
    start = 2000 + (1 + len(kinds)) * (1000 + 8 * blocks + 4 * bands)

    def picture(own: Tags) -> Tags:
        tags = gray(side, side) | PLACE
        tags |= {259: DEFLATE, 322: (LONG, [tile]), 323: (LONG, [tile])}
        tags |= {324: (LONG, [start] * blocks), 325: (LONG, [len(data)] * blocks)}
        tags |= {277: (SHORT, [bands]), 258: (SHORT, [8] * bands)}
        return {tag: value for tag, value in (tags | own).items() if tag not in STRIPS}

    write(path, [picture({}), *(picture({254: (LONG, [kind])}) for kind in kinds)], data, start)


def padded(path: Path, make: Maker, size: int) -> None:
    """A file followed by this many unused bytes."""
    make(path)
    with path.open("ab") as file:
        file.write(bytes(size))


def same_strips(path: Path, width: int, height: int) -> None:
    """Strips of one row that are all the same bytes of the file."""
    data, start = packed(width), 2000 + 8 * height
    where: Tags = {259: DEFLATE, 278: (LONG, [1]), 273: (LONG, [start] * height), 279: (LONG, [len(data)] * height)}
    write(path, [gray(width, height) | PLACE | where], data, start)


def many_bands(path: Path, bands: int, side: int, bits: int = 8, *, separate: bool = True) -> None:
    """All bands in one strip, or each in its own, with the same bytes for all."""
    data = packed(side * side * bits // 8 * (1 if separate else bands))
    strips, start = bands if separate else 1, 2000 + 20 * bands
    tags: Tags = {259: DEFLATE, 277: (SHORT, [bands]), 258: (SHORT, [bits] * bands), 284: (SHORT, [1 + separate])}
    where: Tags = {273: (LONG, [start] * strips), 279: (LONG, [len(data)] * strips)}
    write(path, [gray(side, side) | PLACE | tags | where], data, start)


def long_field(path: Path, tag: int, kind: int, content: bytes, others: Mapping[int, Value] = NOTHING) -> None:
    """A field of 60 MB that repeats this content."""
    values = FIELD // {ASCII: 1, BYTE: 1, UNDEFINED: 1, SHORT: 2, LONG: 4, DOUBLE: 8}[kind]
    tags = {**gray(), **others, tag: (kind, [1] * 10)}
    head = RawTiff([tags], counts={tag: values}, places={tag: 2000}).bytes().ljust(2000, b"\0")
    path.write_bytes(head + content * (FIELD // len(content)))


def metadata(path: Path, item: bytes, items: int) -> None:
    """This many items of GDAL's metadata."""
    text = b"<GDALMetadata>" + item * items + b"</GDALMetadata>\0"
    write(path, [gray() | PLACE | {42112: (ASCII, list(text))}], bytes(400), len(text) + 2000)


def nested(path: Path, many: int, tags: int) -> None:
    """This many SubIFDs that share their bytes."""
    start = 1000 + 4 * many
    head = RawTiff([gray(t330=(LONG, [0] * 10))], counts={330: many}, places={330: 1000}).bytes().ljust(1000, b"\0")
    places = struct.pack(f"<{many}I", *range(start, start + 12 * many, 12))
    path.write_bytes(head + places + struct.pack("<HHII", tags, LONG, 1, 1) * (many + tags + 2) + bytes(100))


def chained(path: Path, pictures: int, *, kind: int = 0, tags: int = 0, chain: int | None = None) -> None:
    """This many small pictures after a larger first one."""
    own = dict.fromkeys(range(40_000, 40_000 + tags), (SHORT, [1]))
    others = gray(20, 20, t254=(LONG, [kind])) | own
    RawTiff([gray(64, 64) | own, *[others] * (pictures - 1)], data=bytes(5000), chain=chain).write(path)


def within_itself(path: Path) -> None:
    """A directory that is its own SubIFD."""
    RawTiff([gray(t330=(LONG, [8] * 9))], data=bytes(400)).write(path)


def mask_larger_than_its_picture(path: Path) -> None:
    """A picture of 16 pixels a side with a mask of 40,000."""
    same_tiles(path, 40_000, kinds=(4,))
    content = bytearray(path.read_bytes())
    for tag in (256, 257):
        at = content.index(struct.pack("<HHI", tag, LONG, 1)) + 8
        content[at : at + 4] = struct.pack("<I", 16)
    path.write_bytes(content)


CRAFTED: dict[str, Maker] = {
    "one strip of 676 MB": partial(one_strip, side=26_000),
    "one strip of 4 MB": partial(one_strip, side=2000),
    "one strip, LZW": partial(one_strip, side=4000, codec="lzw"),
    "one strip, ZSTD": partial(one_strip, side=3000, codec="zstd"),
    "one strip, LERC": partial(one_strip, side=4000, codec="lerc"),
    "one strip, LZMA": partial(one_strip, side=4000, codec="lzma"),
    "one strip, PackBits": partial(one_strip, side=4000, codec="packbits"),
    "one strip of complex numbers": partial(one_strip, side=2000, dtype="complex128"),
    "25,000 pixels a side": partial(same_tiles, side=25_000),
    "25,000 pixels a side in 5 MB of places": partial(same_tiles, side=25_000, tile=32),
    "25,000 pixels a side before 10 MB of nothing": partial(
        padded, make=partial(same_tiles, side=25_000), size=10_000_000
    ),
    "tiles of 268 MB": partial(same_tiles, side=17_000, tile=16_384),
    "tiles of 16 pixels": partial(same_tiles, side=3000, tile=16),
    "tiles of 300 bands": partial(same_tiles, side=256, bands=300),
    "twelve overviews of the picture's size": partial(same_tiles, side=3000, kinds=(1,) * 12),
    "a mask of 5,000 pixels a side": partial(same_tiles, side=5000, kinds=(4,)),
    "a mask larger than its picture": mask_larger_than_its_picture,
    "30,000 strips of one row": partial(same_strips, width=400, height=30_000),
    "a million strips of one pixel": partial(same_strips, width=1, height=1_000_000),
    "4,096 bands": partial(many_bands, bands=4096, side=16),
    "4,096 bands of doubles": partial(many_bands, bands=4096, side=64, bits=64),
    "65,535 samples": partial(many_bands, bands=65_535, side=16),
    "4,096 bands pixel by pixel": partial(many_bands, bands=4096, side=64, separate=False),
    "SubIFDs that share their bytes": partial(nested, many=4000, tags=4000),
    "SubIFDs of few tags": partial(nested, many=4000, tags=30),
    "4,000 tags": partial(chained, pictures=1, tags=4000),
    "a thousand directories of a thousand tags": partial(chained, pictures=1000, tags=1000),
    "500 pages": partial(chained, pictures=500),
    "4,000 pages": partial(chained, pictures=4000),
    "64,000 pages": partial(chained, pictures=64_000),
    "500 overviews": partial(chained, pictures=500, kind=1),
    "4,000 overviews": partial(chained, pictures=4000, kind=1),
    "500 masks": partial(chained, pictures=500, kind=4),
    "4,000 masks": partial(chained, pictures=4000, kind=4),
    "a ring of directories": partial(chained, pictures=3, chain=-1),
    "a directory within itself": within_itself,
    "nodata of 60 MB": partial(long_field, tag=42113, kind=ASCII, content=b"9"),
    "a description of 60 MB": partial(long_field, tag=270, kind=ASCII, content=b"\xe9"),
    "names of systems of 60 MB": partial(long_field, tag=34737, kind=ASCII, content=b"x|", others=PLACE),
    "keys of 60 MB": partial(long_field, tag=34735, kind=SHORT, content=b"\1\0\1\0\0\0\xff\xff"),
    "doubles of 60 MB": partial(long_field, tag=34736, kind=DOUBLE, content=struct.pack("<d", 1.5), others=PLACE),
    "bits of 30 million samples": partial(long_field, tag=258, kind=SHORT, content=b"\x08\0"),
    "extra samples of 60 MB": partial(long_field, tag=338, kind=SHORT, content=b"\0\0"),
    "a color table of 60 MB": partial(long_field, tag=320, kind=SHORT, content=b"\x08\0", others={262: (SHORT, [3])}),
    "XMP of 60 MB": partial(long_field, tag=700, kind=BYTE, content=b"<a>"),
    "a camera model of 60 MB": partial(long_field, tag=50844, kind=DOUBLE, content=struct.pack("<d", 1.5)),
    "35,000 items of metadata": partial(metadata, item=b'<Item name="a"></Item>', items=35_000),
    "an item of metadata of 1 MB": partial(metadata, item=b'<Item name="a">' + b"&gt;" * 250_000 + b"</Item>", items=1),
}
