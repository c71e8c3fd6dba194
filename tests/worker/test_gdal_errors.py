"""Errors of GDAL and other libraries, and their codes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import RasterioIOError

from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input
from geoprocessing_worker.source.gdal_errors import named
from geoprocessing_worker.tiff.compression import Codec
from tests.support.rasters import Tiff, run
from tests.support.raw_tiff import LONG, SHORT, write_raw_tiff
from tests.support.tiffs import RawTiff, gray


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("'x' not recognized as being in a supported file format.", "not_a_tiff"),
        ("Cannot open TIFF file due to missing codec.", "unsupported_compression"),
        ("Cannot read 47086 bytes at offset 260000", "truncated"),
        ("Sorry, can not handle images with 3-bit samples; cannot handle", "unsupported_data_type"),
        ("ZIPDecode:Decoding error at scanline 0", "corrupt_block"),
        ("LZWDecodeCompat:Wrong length of decoded string: data probably corrupted at scanline 0", "corrupt_block"),
    ],
)
def test_library_words_become_a_code(words: str, code: str) -> None:
    """GDAL's own words, even when they stand behind rasterio's, decide the code."""
    outer = RasterioIOError("Read failed. See previous exception for details.")
    outer.__cause__ = RasterioIOError(words)
    error = named(outer)
    assert (error.code, error.error_class) == (code, ErrorClass.INVALID_INPUT)


@pytest.mark.parametrize(
    "words",
    [
        "Output driver 'VRT' not recognized.",
        "something that no library has ever said",
        "WebPSetupEncode:WEBP driver doesn't support 5 bands. Must be 3 (RGB) or 4 (RGBA) bands.",
        "JPEGLib:Too many color components: 5, max 4; Error when compressing strip/tile 0",
        "TIFFAppendToStrip:Write error at scanline 0",
    ],
)
def test_an_unknown_error_is_a_fault_of_the_worker(words: str) -> None:
    """An unknown error, and any error in writing, is internal. The library's message is in the details."""
    error = named(RasterioIOError(words))
    assert (error.code, error.error_class, error.detail) == ("internal_error", ErrorClass.INTERNAL, {"reason": words})


def test_a_full_disk_is_none_of_the_file() -> None:
    """It is the worker's, and the job can be done later."""
    error = named(RasterioIOError("_tiffWriteProc: No space left on device"))
    assert (error.code, error.error_class) == ("disk_full", ErrorClass.TRANSIENT)


CODECS = [
    ("deflate", "uint8", 1), ("lzw", "uint8", 1), ("packbits", "uint8", 1), ("zstd", "uint8", 1), ("lzma", "uint8", 1),
    ("jpeg", "uint8", 1), ("jpeg", "uint8", 3), ("webp", "uint8", 3), ("ccittfax3", "uint8", 1),
    ("ccittfax4", "uint8", 1), ("ccittrle", "uint8", 1), ("lerc", "float32", 1), ("lerc_zstd", "float32", 1),
    ("lerc_deflate", "float32", 1),
]  # fmt: skip


@pytest.mark.parametrize("change", ["zeros", "ones", "noise", "cut"])
@pytest.mark.parametrize(("codec", "dtype", "bands"), CODECS)
def test_damage_of_every_codec_is_called_damage(
    codec: str, dtype: str, bands: int, change: str, tmp_path: Path
) -> None:
    """Blocks with overwritten content: a picture if the decoder can make one of it, else a final error."""
    rng = np.random.default_rng(7)
    data = rng.integers(0, 200, (bands, 64, 64)).astype(dtype)
    profile: dict[str, Any] = {"compress": codec, "interleave": "pixel"}
    if codec.startswith("ccitt"):
        data, profile = np.minimum(data, 1), profile | {"nbits": 1}
    source = Tiff(data, profile=profile).write(tmp_path / "a.tif")
    with rasterio.open(source) as dataset:
        start, size = (int(dataset.get_tag_item(f"BLOCK_{name}_0_0", "TIFF", bidx=1)) for name in ("OFFSET", "SIZE"))
    content = bytearray(source.read_bytes())
    middle = slice(start + size // 4, start + size)
    length = middle.stop - middle.start
    content[middle] = {
        "zeros": bytes(length),
        "ones": b"\xff" * length,
        "noise": rng.bytes(length),
        "cut": content[start : start + length],
    }[change]
    source.write_bytes(content)
    try:
        assert run(source, tmp_path / "out").outputs
    except JobError as error:
        assert error.error_class == ErrorClass.INVALID_INPUT, (error.code, error.detail)  # noqa: PT017


def test_no_memory_is_a_matter_of_resources() -> None:
    """A retry on a larger machine can help, so the class is resource."""
    assert (named(MemoryError()).code, named(MemoryError()).error_class) == ("out_of_memory", ErrorClass.RESOURCE)


def test_refusals_pass_through() -> None:
    """An error with a name keeps it."""
    error = invalid_input("too_large", "Too large.")
    assert named(error) is error


def test_errors_of_opencv_are_never_blamed_on_the_file() -> None:
    """It sees only arrays of ours: its errors are internal, except for a lack of memory."""
    assert named(cv2.error("Assertion failed")).error_class is ErrorClass.INTERNAL
    assert named(cv2.error("Insufficient memory (Failed to allocate 8 bytes)")).code == "out_of_memory"


def test_messages_have_no_folders() -> None:
    """The uploader learns the file's name at most, never where it lay."""
    assert (
        named(RasterioIOError("/srv/jobs/geojob_1/map.tif: TIFFFillStrip")).detail["reason"] == "map.tif: TIFFFillStrip"
    )


def test_codec_is_named_by_code_and_name() -> None:
    """A compression that cannot be read is named with its TIFF code."""
    error = named(RasterioIOError("Cannot open TIFF file due to missing codec."), Codec(34712, "JPEG 2000", read=False))
    assert (error.code, error.detail["compression"], error.detail["name"]) == (
        "unsupported_compression", 34712, "JPEG 2000",
    )  # fmt: skip
    assert "JPEG 2000, code 34712" in error.message


@pytest.mark.parametrize("validate_headers", [True, False])
@pytest.mark.parametrize(
    ("code", "name"), [(50002, "JPEG XL"), (34712, "JPEG 2000"), (34661, "JBIG"), (4711, "unknown")]
)
def test_file_with_a_codec_that_is_not_here_is_refused_by_its_name(
    code: int, name: str, validate_headers: bool, tmp_path: Path
) -> None:
    """Whether the gate or GDAL reads the header first. GDAL lacks JPEG XL in any case."""
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((50, 50, 1), np.uint8), tags={259: (SHORT, [code])})
    with pytest.raises(JobError, match=f"{name}, code {code}") as caught:
        run(source, tmp_path / "out", validate_headers=validate_headers)
    assert caught.value.code == "unsupported_compression"


@pytest.mark.parametrize("validate_headers", [True, False])
def test_jpeg_of_12_bits_is_refused_by_its_name(validate_headers: bool, tmp_path: Path) -> None:
    """It is not damaged, and saving it again as it is would not help. GDAL reports it only without a gate."""
    with BytesIO() as made:
        Image.new("L", (48, 48)).save(made, "JPEG")
        stream = bytearray(made.getvalue())
    frame = stream.index(b"\xff\xc0")
    stream[frame + 1], stream[frame + 4] = 0xC1, 12  # an extended frame, which may have 12 bits
    tags = gray(48, 48, t258=(SHORT, [12]), t259=(SHORT, [7]), t279=(LONG, [len(stream)]))
    start = len(RawTiff([tags]).bytes())
    source = RawTiff([tags | {273: (LONG, [start])}], data=bytes(stream)).write(tmp_path / "a.tif")
    with pytest.raises(JobError, match="12-bit JPEG, code 7") as caught:
        run(source, tmp_path / "out", validate_headers=validate_headers)
    assert caught.value.code == "unsupported_compression"
    assert ("reason" in caught.value.detail) == (not validate_headers)


@pytest.mark.parametrize("validate_headers", [True, False])
@pytest.mark.parametrize(("bits", "kind"), [(96, 1), (40, 1), (8, 3), (48, 3), (128, 3)])
def test_an_unsupported_data_type_is_refused_by_name(
    bits: int, kind: int, validate_headers: bool, tmp_path: Path
) -> None:
    """Whole numbers (1) and floats (3) of sizes that no computer has."""
    tags: Any = {256: (LONG, [50]), 258: (SHORT, [bits]), 339: (SHORT, [kind])}
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((50, 50 * bits // 8, 1), np.uint8), tags=tags)
    with pytest.raises(JobError, match="Save it as an 8, 16 or 32 bit GeoTIFF") as caught:
        run(source, tmp_path / "out", validate_headers=validate_headers)
    assert caught.value.code == "unsupported_data_type"


def test_volume_is_refused_by_name(tmp_path: Path) -> None:
    """Of a picture that is sixteen deep GDAL would show parts in places where they are not."""
    tags: Any = {32997: (LONG, [16])}
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((50, 50, 1), np.uint8), tags=tags)
    with pytest.raises(JobError, match="16 pictures deep") as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "unsupported_data_type"


@pytest.mark.parametrize(
    ("bits", "kind"), [(1, 1), (3, 1), (12, 1), (17, 1), (24, 1), (64, 1), (8, 2), (16, 3), (24, 3)]
)
def test_file_of_numbers_of_an_odd_size_is_read(bits: int, kind: int, tmp_path: Path) -> None:
    """Packed whole numbers, signed (2) bytes, and floats of 16 and 24 bits."""
    tags: Any = {256: (LONG, [50]), 258: (SHORT, [bits]), 339: (SHORT, [kind])}
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((50, -(-50 * bits // 8), 1), np.uint8), tags=tags)
    assert run(source, tmp_path / "out").metadata["validFraction"] == 1.0
