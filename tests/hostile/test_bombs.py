"""Decompression bombs are refused with a code. Legitimate extremes are rendered."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, convert
from geoprocessing_worker.tiff import structure
from geoprocessing_worker.tiff.gate import MAX_BY_KIND, admit
from tests.support.crafted import chained
from tests.support.rasters import DEGREES, Tiff, quarters
from tests.support.task_runs import perform_on
from tests.support.tiffs import LONG, LONG8, SHORT, UNDEFINED, RawTiff, gray

MEMORY = 2 << 30


def box() -> Sandbox[ConversionRequest, ConversionResult]:
    limits = Limits(memory_bytes=MEMORY, cpu_seconds=60)
    return Sandbox(convert, ConversionResult, preload=("geoprocessing_worker.tasks.preload",), limits=limits)


async def render(path: Path, *, validate_headers: bool = True) -> ConversionResult:
    """Render like the worker: in a child, with its limits and sandbox."""
    out = path.parent / "out"
    out.mkdir()
    request = ConversionRequest(
        source=path,
        output_folder=out,
        stem="a",
        options=RenderOptions(max_size=256),
        source_name="a.tif",
        validate_headers=validate_headers,
    )
    return await box().run(request, lambda *_: None, AllowedPaths((path,), (out,)))


def gigapixels(path: Path) -> None:
    RawTiff([gray(1_000_001, 1_000_001, t278=(LONG, [1]))]).write(path)


def one_listed_strip(path: Path) -> None:
    RawTiff([gray(1_000_000, 1_000_000, t278=(LONG, [1]), t279=(LONG, [10]))], data=bytes(100)).write(path)


def one_huge_strip(path: Path) -> None:
    RawTiff([gray(30_000, 30_000, t279=(LONG, [10]))], data=bytes(100)).write(path)


def one_huge_tile(path: Path) -> None:
    tile = {"t322": (LONG, [1 << 20]), "t323": (LONG, [1 << 20]), "t324": (LONG, [8]), "t325": (LONG, [100])}
    RawTiff([gray(16, 16, **tile)], data=bytes(100)).write(path)


def block_of_many_bands(path: Path) -> None:
    """4,000 interleaved bands of float64: each band of a tile has 2 MB, the tile 8 GB."""
    tags = {"t277": (SHORT, [4000]), "t258": (SHORT, [64] * 4000), "t339": (SHORT, [3] * 4000)}
    RawTiff([gray(512, 512, t279=(LONG, [100]), **tags)], data=bytes(100)).write(path)


def bands(path: Path) -> None:
    RawTiff([gray(16, 16, t277=(SHORT, [65535]), t258=(SHORT, [8] * 65535), t284=(SHORT, [2]))]).write(path)


def million_directories(path: Path) -> None:
    """Each has no tag, and points to the next."""
    head = struct.pack("<2sHI", b"II", 42, 8)
    links = b"".join(struct.pack("<HI", 0, 8 + 6 * (number + 1)) for number in range(1_000_000))
    path.write_bytes(head + links + bytes(6))


def directory_within_itself(path: Path) -> None:
    """By tag 330. A reader that recurses sees no loop. Read once it is harmless, and the file is rendered."""
    RawTiff([gray(t330=(LONG, [8]))], data=bytes(300)).write(path)


def many_sub_directories(path: Path) -> None:
    RawTiff([gray(t330=(LONG, list(range(8, 100_008))))], data=bytes(300)).write(path)


def long_tag(path: Path) -> None:
    RawTiff([gray(t50000=(UNDEFINED, [0] * 10))], counts={50000: 100_000_000}, places={50000: 300}).write(path)
    with path.open("r+b") as file:
        file.truncate(100_000_400)


def long_tag_in_many_directories(path: Path) -> None:
    tags = [gray(t50000=(UNDEFINED, [0] * 10)) for _ in range(40)]
    RawTiff(tags, counts={50000: 10_000_000}, places={50000: 300}).write(path)
    with path.open("r+b") as file:
        file.truncate(10_100_000)


def tag_beyond_the_end(path: Path) -> None:
    RawTiff([gray(t50000=(UNDEFINED, [0] * 10))], counts={50000: 2**20}, data=bytes(300)).write(path)


def many_tags(path: Path) -> None:
    """Cheap pixels, but libtiff would sort its table of tags 1,100 times."""
    RawTiff([gray() | dict.fromkeys(range(40_000, 41_100), (SHORT, [1]))], data=bytes(300)).write(path)


def many_tags_in_many_directories(path: Path) -> None:
    """150,000 in all."""
    tags = gray() | dict.fromkeys(range(40_000, 41_000), (SHORT, [1]))
    RawTiff([tags] * 150, data=bytes(300)).write(path)


def nested_directories_that_share_their_bytes(path: Path) -> None:
    """1,000 directories of 1,000 tags each, in 24 kB."""
    many, start = 1000, 1000 + 4 * 1000
    head = RawTiff([gray(t330=(LONG, [0] * 10))], counts={330: many}, places={330: 1000}).bytes().ljust(1000, b"\0")
    places = struct.pack(f"<{many}I", *range(start, start + 12 * many, 12))
    path.write_bytes(head + places + struct.pack("<HHII", many, LONG, 1, 1) * (2 * many + 2) + bytes(100))


def count_that_overflows(path: Path) -> None:
    RawTiff([gray(t50000=(LONG8, [1, 2, 3]))], counts={50000: 2**61 + 1}, data=bytes(300), big=True).write(path)


def strip_beyond_the_end(path: Path) -> None:
    RawTiff([gray(t273=(LONG, [2**31]))], data=bytes(300)).write(path)


def no_pixels(path: Path) -> None:
    RawTiff([gray(0, 16)], data=bytes(300)).write(path)


def many_control_points(path: Path) -> None:
    RawTiff([gray(t33922=(SHORT, [1] * 600_000))], data=bytes(300)).write(path)


def old_codec(path: Path) -> None:
    RawTiff([gray(t259=(SHORT, [6]))], data=bytes(300)).write(path)


def long_metadata(path: Path) -> None:
    RawTiff([gray(t42112=(UNDEFINED, list(b"<GDALMetadata>" + b" " * 2_000_000)))], data=bytes(300)).write(path)


BY_HEADER: list[tuple[Callable[[Path], None], str, str | None]] = [
    (gigapixels, "too_large", "side"),
    (one_listed_strip, "malformed_header", None),
    (one_huge_strip, "too_large", "block"),
    (one_huge_tile, "too_large", "block"),
    (block_of_many_bands, "too_large", "block"),
    (bands, "too_large", "bands"),
    (million_directories, "malformed_header", None),
    (many_sub_directories, "too_large", "directories"),
    (long_tag, "too_large", "tag"),
    (long_tag_in_many_directories, "too_large", "tags"),
    (many_tags, "too_large", "fields"),
    (many_tags_in_many_directories, "too_large", "fields"),
    (nested_directories_that_share_their_bytes, "too_large", "fields"),
    (tag_beyond_the_end, "truncated", None),
    (count_that_overflows, "too_large", "tag"),
    (strip_beyond_the_end, "truncated", None),
    (no_pixels, "malformed_header", None),
    (many_control_points, "too_large", "control points"),
    (old_codec, "unsupported_compression", None),
    (long_metadata, "too_large", "metadata"),
]


@pytest.mark.parametrize(("make", "code", "limit"), BY_HEADER, ids=lambda value: getattr(value, "__name__", None))
def test_a_bomb_in_the_header_is_refused_before_gdal_opens_it(
    make: Callable[[Path], None], code: str, limit: str | None, tmp_path: Path
) -> None:
    make(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        admit(tmp_path / "a.tif")
    assert (caught.value.code, caught.value.detail.get("limit")) == (code, limit)


def test_a_million_directories_are_not_walked_to_the_end(tmp_path: Path) -> None:
    """Each page is cheap. Their number is refused."""
    first = gray(1, 1)
    RawTiff([first] * 4200, data=bytes(100)).write(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        admit(tmp_path / "a.tif")
    assert (caught.value.code, caught.value.detail["limit"]) == ("too_large", "directories")


@pytest.mark.parametrize(("kind", "limit"), [(4, "masks"), (5, "masks"), (1, "overviews")])
def test_masks_and_overviews_are_bounded(kind: int, limit: str, tmp_path: Path) -> None:
    """GDAL takes 10 s to open a file with 4,000 masks, and each task type opens it several times."""
    chained(tmp_path / "a.tif", MAX_BY_KIND[limit] + 1, kind=kind)
    admit(tmp_path / "a.tif")
    chained(tmp_path / "a.tif", MAX_BY_KIND[limit] + 2, kind=kind)
    with pytest.raises(JobError) as caught:
        admit(tmp_path / "a.tif")
    assert (caught.value.code, caught.value.detail["limit"]) == ("too_large", limit)


def test_a_job_walks_the_chain_of_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk for each of 64 pages would cost 6 s in a file with 4,000."""
    walks = 0
    walk = structure.TiffReader.ifds

    def counted(reader: structure.TiffReader) -> Iterator[structure.Ifd]:
        nonlocal walks
        walks += 1
        return walk(reader)

    monkeypatch.setattr(structure.TiffReader, "ifds", counted)
    chained(tmp_path / "a.tif", 100)
    perform_on(GEOTIFF_INFO, tmp_path / "a.tif", tmp_path / "out")
    assert walks == 1


# Visible only when decoded.


def jpeg_frame(path: Path, *, claims: int | None = None) -> None:
    """A tile of 16 x 16 that holds a JPEG of 512 x 512, or one that declares a larger size."""
    data = np.random.default_rng(0).integers(0, 255, (1, 512, 512), dtype=np.uint8)
    honest = Tiff(data, profile={"compress": "jpeg", "tiled": True, "blockxsize": 512, "blockysize": 512})
    content = honest.write(path).read_bytes()
    begin, end = content.index(b"\xff\xd8", 300), content.rindex(b"\xff\xd9") + 2
    begin = content.rindex(b"\xff\xd8", 0, begin + 4000)
    frame = bytearray(content[begin:end])
    if claims:
        at = frame.index(b"\xff\xc0") + 5
        frame[at : at + 4] = struct.pack(">HH", claims, claims)
    tile = {"t322": (LONG, [16]), "t323": (LONG, [16]), "t324": (LONG, [1000]), "t325": (LONG, [len(frame)])}
    raw = RawTiff([gray(16, 16, t259=(SHORT, [7]), **tile)])
    path.write_bytes(raw.bytes().ljust(1000, b"\0") + bytes(frame))


def jpeg_of_gigapixels(path: Path) -> None:
    jpeg_frame(path, claims=65000)


def deflate_of_much(path: Path) -> None:
    """A strip of 256 bytes that unpacks to 256 MB. The excess is ignored."""
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(bytes(1 << 24)) for _ in range(16)]) + packer.flush()
    RawTiff([gray(t259=(SHORT, [8]), t273=(LONG, [300]), t279=(LONG, [len(packed)]))]).write(path)
    path.write_bytes(path.read_bytes().ljust(300, b"\0") + packed)


def lerc_of_gigapixels(path: Path) -> None:
    """A LERC blob that declares a larger size than its tile."""
    Tiff(
        np.random.default_rng(0).random((1, 64, 64), dtype=np.float32),
        profile={"compress": "lerc", "tiled": True, "blockxsize": 64, "blockysize": 64},
    ).write(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"Lerc2 ") + 6 + 4 + 4
    content[at : at + 8] = struct.pack("<ii", 60_000, 60_000)
    path.write_bytes(bytes(content))


def lzma_with_a_dictionary_of_gigabytes(path: Path) -> None:
    """The dictionary's size is in the filter's flags, and memory is allocated for it first."""
    small = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096, "preset": 0}]
    packed = bytearray(lzma.compress(bytes(256), format=lzma.FORMAT_XZ, filters=small, check=lzma.CHECK_NONE))
    # Stream header 12 bytes. Block header: size, flags, filter id, length of properties, properties.
    assert packed[14:16] == b"\x21\x01"
    packed[16] = 39  # 3 GB
    size = (packed[12] + 1) * 4
    packed[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(bytes(packed[12 : 12 + size - 4])))
    RawTiff([gray(t259=(SHORT, [34925]), t273=(LONG, [300]), t279=(LONG, [len(packed)]))]).write(path)
    path.write_bytes(path.read_bytes().ljust(300, b"\0") + bytes(packed))


NAMED = {"corrupt_block", "truncated", "out_of_memory", "unsupported_data_type", "malformed_header", "too_large"}


@pytest.mark.parametrize(
    "make", [jpeg_frame, jpeg_of_gigapixels, lerc_of_gigapixels, lzma_with_a_dictionary_of_gigabytes]
)
@pytest.mark.parametrize("validate_headers", [True, False])
async def test_a_bomb_in_a_block_ends_in_an_error_code(
    make: Callable[[Path], None], validate_headers: bool, tmp_path: Path
) -> None:
    """Within a child's memory, and without a crash."""
    make(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        await render(tmp_path / "a.tif", validate_headers=validate_headers)
    assert caught.value.code in NAMED, caught.value


async def test_a_block_is_not_unpacked_beyond_its_size(tmp_path: Path) -> None:
    """libdeflate leaves bytes of such a block unwritten, so two readings may give different pictures."""
    deflate_of_much(tmp_path / "a.tif")
    try:
        assert (await render(tmp_path / "a.tif")).outputs
    except JobError as error:
        assert error.code == "self_check_failed"  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize("make", [one_huge_strip, one_huge_tile, bands, gigapixels])
async def test_the_limits_of_the_process_hold_without_the_header_check(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        await render(tmp_path / "a.tif", validate_headers=False)
    assert caught.value.error_class in {"invalid_input", "resource"}, caught.value


# Legitimate files at the limits.


def sparse(path: Path) -> None:
    """More than a gigapixel, with one stored tile."""
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": True}
    with (
        gdal_environment(),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=40_000,
            height=40_000,
            count=1,
            dtype="uint8",
            crs="EPSG:4326",
            transform=Affine(1e-4, 0, 0, 0, -1e-4, 10),
            **profile,
        ) as dataset,
    ):
        dataset.write(np.full((1, 512, 512), 9, np.uint8), window=((0, 512), (0, 512)))


def highly_compressed(path: Path) -> None:
    """144 megapixels in one strip of 140 kB."""
    packed = zlib.compress(bytes(12_000 * 12_000), 9)
    tags = gray(12_000, 12_000, t259=(SHORT, [8]), t273=(LONG, [300]), t279=(LONG, [len(packed)]))
    path.write_bytes(RawTiff([tags]).bytes().ljust(300, b"\0") + packed)


def many_bands(path: Path) -> None:
    Tiff(np.full((300, 32, 32), 5, np.uint16), transform=DEGREES).write(path)


def many_pages(path: Path) -> None:
    RawTiff([gray(t273=(LONG, [8]))] * 200, data=bytes(300), big=True, order=">").write(path)


def overviews(path: Path) -> None:
    Tiff(quarters(600), overviews=(2, 4, 8), mask=np.full((600, 600), 255, np.uint8)).write(path)


@pytest.mark.parametrize(
    "make", [sparse, highly_compressed, many_bands, many_pages, overviews, directory_within_itself]
)
async def test_a_legitimate_extreme_is_rendered(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.tif")
    assert (await render(tmp_path / "a.tif")).outputs


async def test_unwritten_bytes_of_a_decoder_show_no_earlier_memory(tmp_path: Path) -> None:
    """libtiff accepts a block that unpacks to too much. The block's end keeps earlier memory."""
    side, many = 16, 64
    packed = zlib.compress(bytes(side * side + 1))
    tags = {
        "t259": (SHORT, [8]),
        "t322": (LONG, [side]),
        "t323": (LONG, [side]),
        "t324": (LONG, [2000] * many),
        "t325": (LONG, [len(packed)] * many),
    }
    file = RawTiff([gray(side * many, side, **tags)]).bytes().ljust(2000, b"\0") + packed
    (tmp_path / "a.tif").write_bytes(file)
    await render(tmp_path / "a.tif")
    with gdal_environment(), rasterio.open(tmp_path / "out" / "a.png") as picture:
        assert not picture.read(1).any()
