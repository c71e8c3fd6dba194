"""Errors of the libraries under us, and the refusals that they stand for."""

from __future__ import annotations

import pytest
import pyvips
from rasterio.errors import RasterioIOError

from geoprocessing_worker.errors import ErrorClass, refused
from geoprocessing_worker.refusals import named


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("'x' not recognized as being in a supported file format.", "not_a_tiff"),
        ("Cannot open TIFF file due to missing codec.", "unsupported_compression"),
        ("Cannot read 47086 bytes at offset 260000", "truncated"),
        ("Sorry, can not handle images with 3-bit samples; cannot handle", "unsupported_data_type"),
        ("ZIPDecode:Decoding error at scanline 0", "corrupt_block"),
    ],
)
def test_library_words_become_a_code(words: str, code: str) -> None:
    """GDAL's own words, even when they stand behind rasterio's, decide the code."""
    outer = RasterioIOError("Read failed. See previous exception for details.")
    outer.__cause__ = RasterioIOError(words)
    error = named(outer)
    assert (error.code, error.error_class) == (code, ErrorClass.INVALID_INPUT)


def test_no_memory_is_a_matter_of_resources() -> None:
    """Trying again on a larger machine can help, so the class says resource."""
    assert (named(MemoryError()).code, named(MemoryError()).error_class) == ("out_of_memory", ErrorClass.RESOURCE)


def test_refusals_pass_through() -> None:
    """What is named already keeps its name."""
    error = refused("too_large", "Too large.")
    assert named(error) is error


def test_libvips_is_never_blamed_on_the_file() -> None:
    """libvips sees only arrays of ours: its errors are internal."""
    assert named(pyvips.Error("pngsave: no such property")).error_class is ErrorClass.INTERNAL


def test_folders_are_not_told() -> None:
    """The uploader learns the file's name at most, never where it lay."""
    assert (
        named(RasterioIOError("/srv/jobs/geojob_1/map.tif: TIFFFillStrip")).detail["reason"] == "map.tif: TIFFFillStrip"
    )


def test_codec_is_told_by_code_and_name() -> None:
    """A compression that cannot be read is named with its TIFF code."""
    error = named(RasterioIOError("Cannot open TIFF file due to missing codec."), (34712,))
    assert (error.code, error.detail["compression"], error.detail["name"]) == (
        "unsupported_compression", 34712, "JPEG 2000",
    )  # fmt: skip
    assert "JPEG 2000, code 34712" in error.message
