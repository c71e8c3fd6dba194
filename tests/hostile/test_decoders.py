"""Attacks on decoders of pixels, colors and georeferences: a picture or an error code, within the limits."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import ImageCms

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.source.gdal import gdal_environment, open_source
from geoprocessing_worker.tiff.gate import admit
from geoprocessing_worker.tiff.structure import TiffReader
from tests.hostile.test_bombs import NAMED, render
from tests.support.tiffs import DOUBLE, LONG, SHORT, UNDEFINED, RawTiff, Value, gray

LARGE, SMALL = 2048, 16  # pixels on a side: of a block, and as declared in its directory


def block_of(codec: str, path: Path) -> tuple[dict[int, Value], bytes]:
    """The tags of the codec, and a tile of `LARGE` pixels on a side as written by GDAL."""
    count = 3 if codec == "webp" else 1
    with (
        gdal_environment(),
        rasterio.open(
            path, "w", driver="GTiff", width=LARGE, height=LARGE, count=count, dtype="uint8", compress=codec,
            tiled=True, blockxsize=LARGE, blockysize=LARGE, interleave="pixel",
        ) as dataset,
    ):  # fmt: skip
        dataset.write(np.full((count, LARGE, LARGE), 7, np.uint8))
    with path.open("rb") as file:
        reader = TiffReader(file)
        ifd = next(reader.ifds())
        start, length, compression = (reader.first(ifd, tag) for tag in (324, 325, 259))
        parameters = reader.numbers(ifd.find(50674))
    tags: dict[int, Value] = {259: (SHORT, [compression]), 277: (SHORT, [count]), 258: (SHORT, [8] * count)}
    if parameters.size:
        tags[50674] = (LONG, [int(number) for number in parameters])
    return tags, path.read_bytes()[start : start + length]


@pytest.mark.parametrize("codec", ["zstd", "lzma", "lerc", "lerc_zstd", "webp", "lzw", "packbits", "JPEG XL"])
async def test_a_block_that_unpacks_to_16384_times_its_pixels_ends_within_the_limits(
    codec: str, tmp_path: Path
) -> None:
    """By every installed decoder. The last codec is not installed, and is refused by name."""
    tags: dict[int, Value] = {259: (SHORT, [50002])}
    block = b"\xff\x0a" + bytes(300)
    if codec != "JPEG XL":
        tags, block = block_of(codec, tmp_path / "honest.tif")
    tile = {322: (LONG, [SMALL]), 323: (LONG, [SMALL]), 324: (LONG, [1000]), 325: (LONG, [len(block)])}
    strips = {273, 278, 279}
    plain = {tag: value for tag, value in gray(SMALL, SMALL).items() if tag not in strips}
    (tmp_path / "a.tif").write_bytes(RawTiff([plain | tile | tags]).bytes().ljust(1000, b"\0") + block)
    try:
        assert (await render(tmp_path / "a.tif")).outputs
    except JobError as error:
        assert error.code in NAMED | {"self_check_failed", "unsupported_compression"}, error  # noqa: PT017 - both outcomes are right


def rgb(**tags: Value) -> dict[int, Value]:
    kind: dict[str, Value] = {"t277": (SHORT, [3]), "t258": (SHORT, [8] * 3), "t262": (SHORT, [2])}
    return gray(SMALL, SMALL, **(kind | {"t279": (LONG, [SMALL * SMALL * 3])} | tags))


def profiles() -> dict[str, bytes]:
    whole = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "noise": bytes(range(256)) * 8,
        "cut off": whole[: len(whole) // 2],
        "nothing but a head": whole[:128],
        "tags without end": whole[:128] + b"\xff" * 4 + whole[132:],
        "tags beyond the end": whole[:136] + b"\xff" * 8 + whole[144:],
        "says it is larger": b"\x7f\xff\xff\xff" + whole[4:],
        "of other colors": whole[:16] + b"CMYK" + whole[20:],
        "empty": b"",
    }


@pytest.mark.parametrize("kind", profiles())
async def test_a_broken_color_profile_changes_no_color(kind: str, tmp_path: Path) -> None:
    profile = profiles()[kind] or b"\0"
    pixels = bytes(range(256)) * 3
    tags = rgb(t34675=(UNDEFINED, list(profile)), t273=(LONG, [20_000]))
    (tmp_path / "a.tif").write_bytes(RawTiff([tags]).bytes().ljust(20_000, b"\0") + pixels)
    assert (await render(tmp_path / "a.tif")).outputs


@pytest.mark.parametrize(("megabytes", "code"), [(50, None), (100, "too_large")])
async def test_a_color_profile_of_many_megabytes_is_not_used(megabytes: int, code: str | None, tmp_path: Path) -> None:
    tags = rgb(t34675=(UNDEFINED, [0] * 10), t273=(LONG, [8]))
    RawTiff([tags], counts={34675: megabytes * 10**6}, places={34675: 1000}).write(tmp_path / "a.tif")
    with (tmp_path / "a.tif").open("r+b") as file:
        file.truncate(megabytes * 10**6 + 2000)
    if code is None:
        assert (await render(tmp_path / "a.tif")).outputs
        return
    with pytest.raises(JobError) as caught:
        await render(tmp_path / "a.tif")
    assert caught.value.code == code


@pytest.mark.parametrize("number", [math.nan, math.inf, 0.0], ids=str)
async def test_a_camera_model_without_numbers_places_no_picture(number: float, tmp_path: Path) -> None:
    """Equal rational polynomial coefficients: an unplaced picture, or an error code."""
    RawTiff([gray(t50844=(DOUBLE, [number] * 92))], data=bytes(300)).write(tmp_path / "a.tif")
    try:
        assert (await render(tmp_path / "a.tif")).outputs
    except JobError as error:
        assert error.error_class == "invalid_input", error  # noqa: PT017 - both outcomes are right


def hundred_thousand_overviews(path: Path) -> None:
    """Each declares to be a smaller picture of the first."""
    one = RawTiff([gray(8, 8, t254=(LONG, [1]))]).bytes()[8:-4]
    step = len(one) + 4
    links = b"".join(one + struct.pack("<I", 8 + step * (number + 1)) for number in range(100_000))
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + links + one + bytes(400))


def million_control_points(path: Path) -> None:
    RawTiff([gray(t33922=(SHORT, [1] * 10))], counts={33922: 6_000_000}, places={33922: 1000}).write(path)
    with path.open("r+b") as file:
        file.truncate(12_002_000)


@pytest.mark.parametrize(
    ("make", "limit"), [(hundred_thousand_overviews, "overviews"), (million_control_points, "control points")]
)
def test_excessive_counts_are_refused_before_reading(make: Callable[[Path], None], limit: str, tmp_path: Path) -> None:
    make(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        admit(tmp_path / "a.tif")
    assert (caught.value.code, caught.value.detail["limit"]) == ("too_large", limit)


def with_nested(path: Path, kind: int, codec: int = 1, tags: Mapping[int, Value] | None = None) -> Path:
    """A picture with one SubIFD of this subfile type and codec."""
    start = 700
    own = gray(8, 8, t254=(LONG, [kind]), t259=(SHORT, [codec])) | dict(tags or {})
    nested = RawTiff([own]).bytes()[8:]
    head = RawTiff([gray(t330=(LONG, [start]))]).bytes().ljust(start, b"\0")
    path.write_bytes(head + nested + bytes(600))
    return path


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_an_unsupported_codec_is_refused_in_a_nested_overview_or_mask(kind: int, tmp_path: Path) -> None:
    """GDAL opens SubIFDs of these kinds, so it would run the decoder of ThunderScan."""
    with pytest.raises(JobError) as caught:
        admit(with_nested(tmp_path / "a.tif", kind, 32809))
    assert caught.value.code == "unsupported_compression"


@pytest.mark.parametrize("kind", [0, 2])
async def test_a_nested_picture_that_gdal_ignores_is_accepted(kind: int, tmp_path: Path) -> None:
    """For example, a raw picture inside a DNG may have any codec."""
    path = with_nested(tmp_path / "a.tif", kind, 32809)
    with gdal_environment(), open_source(path) as dataset:
        assert dataset.overviews(1) == []
    assert (await render(path)).outputs


@pytest.mark.parametrize(("tags", "limit"), [({256: (LONG, [2_000_000])}, "side"), ({277: (SHORT, [65_535])}, "bands")])
def test_the_limits_hold_for_a_nested_overview(tags: dict[int, Value], limit: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        admit(with_nested(tmp_path / "a.tif", 1, tags=tags))
    assert caught.value.detail["limit"] == limit
