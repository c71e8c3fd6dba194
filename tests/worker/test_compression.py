"""Every codec of TIFF is read, or refused by its code and name: never as damage, nor as a fault of the worker."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rasterio.errors import RasterioIOError

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.source.gdal import gdal_environment, open_source
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO, GEOTIFF_TO_COG, GEOTIFF_TO_PNG, GEOTIFF_TO_TILES
from geoprocessing_worker.tiff.compression import FRAMES, NAMES, OTHER_FRAMES, READ, codec_in
from geoprocessing_worker.tiff.gate import admit
from tests.support.rasters import Tiff, ramp, run
from tests.support.raw_tiff import SHORT, write_raw_tiff
from tests.support.task_runs import perform_on
from tests.support.tiffs import LONG, RawTiff, gray

MAINTAINED_BY_NOBODY = {32766, 32809, 32909}  # GDAL has their decoders, and old JPEG's, which wants more than a code
STRANGE = (0, 11, 4711, 50003, 65534)  # unregistered codes


def compressed(path: Path, code: int) -> Path:
    return write_raw_tiff(path / "a.tif", np.zeros((16, 16, 1), np.uint8), tags={259: (SHORT, [code])})


def refusal(path: Path, folder: Path, **options: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        run(path, folder, **options)
    return caught.value


@pytest.mark.parametrize("validate_headers", [True, False])
@pytest.mark.parametrize("code", sorted({*NAMES, *STRANGE} - READ))
def test_a_codec_that_is_not_read_is_refused_by_code_and_name(
    code: int, validate_headers: bool, tmp_path: Path
) -> None:
    """With the gate and without: where GDAL meets it first, its own words decide nothing."""
    if code in MAINTAINED_BY_NOBODY and not validate_headers:
        pytest.skip("GDAL has its decoder")
    error = refusal(compressed(tmp_path, code), tmp_path / "out", validate_headers=validate_headers)
    name = NAMES.get(code, "unknown")
    assert (error.code, error.detail["compression"], error.detail["name"]) == ("unsupported_compression", code, name)
    assert f"It is {name}, code {code}." in error.message


@pytest.mark.parametrize("handler", [GEOTIFF_TO_PNG, GEOTIFF_TO_COG, GEOTIFF_TO_TILES, GEOTIFF_INFO])
@pytest.mark.parametrize("validate_headers", [True, False])
def test_each_task_type_refuses_an_unsupported_codec(handler: Any, validate_headers: bool, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        perform_on(handler, compressed(tmp_path, 50002), tmp_path / "out", validate_headers=validate_headers)
    assert (caught.value.code, caught.value.detail["name"]) == ("unsupported_compression", "JPEG XL")


@pytest.mark.parametrize("code", sorted(set(NAMES) - {6}))
def test_the_list_of_codecs_that_are_read_is_gdals(code: int, tmp_path: Path) -> None:
    """A GDAL that lacks one of them, or has a new one, is noticed here."""
    path = compressed(tmp_path, code)
    with gdal_environment():
        if code in READ | MAINTAINED_BY_NOBODY:
            with open_source(path):
                return
        with pytest.raises(RasterioIOError, match="missing codec"), open_source(path):
            pass


@pytest.mark.parametrize(
    ("codec", "code"),
    [
        ("none", 1), ("ccittrle", 2), ("ccittfax3", 3), ("ccittfax4", 4), ("lzw", 5), ("jpeg", 7), ("deflate", 8),
        ("packbits", 32773), ("lerc", 34887), ("lerc_deflate", 34887), ("lerc_zstd", 34887), ("lzma", 34925),
        ("zstd", 50000), ("webp", 50001),
    ],
)  # fmt: skip
def test_the_codecs_of_gdals_own_files_are_read(codec: str, code: int, tmp_path: Path) -> None:
    profile = {} if codec == "none" else {"compress": codec}
    data = ramp(64, 64)
    if codec == "webp":
        data = np.repeat(data, 3, axis=0)
    if codec.startswith("ccitt"):
        data, profile["nbits"] = data // 128, "1"
    source = Tiff(data, profile=profile).write(tmp_path / "a.tif")
    found = codec_in(source)
    assert found is not None
    assert (found.code, found.read) == (code, True)
    assert run(source, tmp_path / "out").metadata["validFraction"] == 1.0


def stream(frame: int = 0xC0, bits: int = 8, **options: Any) -> bytes:
    """A JPEG with a frame of this process, and samples of so many bits."""
    with BytesIO() as made:
        Image.linear_gradient("L").resize((48, 48)).save(made, "JPEG", **options)
        content = bytearray(made.getvalue())
    at = content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    content[at + 1], content[at + 4] = frame, bits
    return bytes(content)


def jpeg_tiff(content: bytes, path: Path, bits: int = 8, *, tiled: bool = False) -> Path:
    """A picture of 48 by 48 in one strip, or in one tile behind an empty one."""
    tags = gray(48, 48, t258=(SHORT, [bits]), t259=(SHORT, [7]), t273=(LONG, [1000]), t279=(LONG, [len(content)]))
    if tiled:
        tags = {tag: value for tag, value in tags.items() if tag not in {273, 278, 279}}
        tags |= {256: (LONG, [96]), 322: (LONG, [48]), 323: (LONG, [48])}
        tags |= {324: (LONG, [0, 1000]), 325: (LONG, [0, len(content)])}
    path.write_bytes(RawTiff([tags]).bytes().ljust(1000, b"\0") + content)
    return path


@pytest.mark.parametrize("validate_headers", [True, False])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    ("frame", "bits", "name"),
    [
        *((frame, 8, name) for frame, name in OTHER_FRAMES.items()),
        (0xC3, 16, "lossless JPEG"),
        (0xC0, 12, "12-bit JPEG"),
        (0xC1, 12, "12-bit JPEG"),
        (0xC2, 12, "12-bit JPEG"),
        (0xC9, 12, "12-bit JPEG"),
        (0xC1, 16, "16-bit JPEG"),
    ],
)
def test_a_kind_of_jpeg_that_is_not_read_is_refused_by_its_name(
    frame: int, bits: int, name: str, tiled: bool, validate_headers: bool, tmp_path: Path
) -> None:
    """All have code 7. Only the stream has the process, possibly after profiles and comments."""
    content = stream(frame, bits, comment=b"c" * 70, icc_profile=b"p" * 100_000)
    source = jpeg_tiff(content, tmp_path / "a.tif", bits, tiled=tiled)
    error = refusal(source, tmp_path / "out", validate_headers=validate_headers)
    assert (error.code, error.detail["compression"], error.detail["name"]) == ("unsupported_compression", 7, name)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\xff\x4f\xff\x51\0\x29", "JPEG 2000"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"II\xbc\x01", "JPEG XR"),
    ],
)
def test_other_streams_under_jpegs_code_are_refused_by_their_name(start: bytes, name: str, tmp_path: Path) -> None:
    source = jpeg_tiff(start + bytes(100), tmp_path / "a.tif")
    assert refusal(source, tmp_path / "out").detail["name"] == name


@pytest.mark.parametrize("frame", sorted(FRAMES))
def test_kinds_of_jpeg_that_are_read_pass_the_gate(frame: int, tmp_path: Path) -> None:
    """Baseline, extended and progressive, by Huffman's and by arithmetic codes."""
    admit(jpeg_tiff(stream(frame), tmp_path / "a.tif"))


def test_progressive_jpeg_is_read(tmp_path: Path) -> None:
    source = jpeg_tiff(stream(0xC2, progressive=True), tmp_path / "a.tif")
    assert run(source, tmp_path / "out").metadata["validFraction"] == 1.0


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\0" * 9, b"\xff\xd8" + b"\xff" * 400, b"no JPEG at all",
        b"\xff\xd8\xff\xe0\xff\xff", b"\xff\xd8\xff\xd0" * 200,
    ],
)  # fmt: skip
def test_a_damaged_jpeg_is_damage(content: bytes, tmp_path: Path) -> None:
    """A stream without a frame is no other kind of JPEG, and the walk through it ends."""
    source = jpeg_tiff(content + b"\0" * 50, tmp_path / "a.tif")
    assert refusal(source, tmp_path / "out").code == "corrupt_block"


@pytest.mark.parametrize("code", [2, 3, 4, 32771])
def test_fax_codecs_of_more_than_one_bit_are_a_matter_of_type(code: int, tmp_path: Path) -> None:
    """They are read, but hold black and white only."""
    assert refusal(compressed(tmp_path, code), tmp_path / "out").code == "unsupported_data_type"


@pytest.mark.parametrize("kind", [6, 8, 9, 17])
@pytest.mark.parametrize("code", [6, 32766, 32809, 32909])
def test_a_codec_in_signed_numbers_is_seen(code: int, kind: int, tmp_path: Path) -> None:
    """libtiff takes them, so a walk that does not would let a decoder run that is refused."""
    if kind == 6 and code > 255:
        pytest.skip("a byte does not hold it")
    content = RawTiff([gray(t259=(LONG, [code]))], data=bytes(300)).bytes()
    at = content.index(b"\x03\x01\x04\0")
    if kind == 17:  # only in a BigTIFF do 8 bytes stand in the entry
        content = RawTiff([gray(t259=(LONG, [code]))], data=bytes(300), big=True).bytes()
        at = content.index(b"\x03\x01\x04\0")
    path = tmp_path / "a.tif"
    path.write_bytes(content[: at + 2] + bytes([kind]) + content[at + 3 :])
    with pytest.raises(JobError) as caught:
        admit(path)
    assert (caught.value.code, caught.value.detail["compression"]) == ("unsupported_compression", code)
