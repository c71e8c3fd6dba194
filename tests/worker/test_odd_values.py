"""Types, tags and numbers that few files have and every one may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.render.options import RenderOptions
from tests.support.rasters import Tiff, picture_of, ramp, run
from tests.support.raw_tiff import ASCII, NODATA, SHORT, write_raw_tiff

EXTRA_SAMPLES, INK_SET = 338, 332
GRAY = np.arange(100, 2600, dtype=np.uint16).reshape(50, 50, 1)


@pytest.mark.parametrize("text", [b"nan", b"-inf", b"1e400", b"-9999", b"70000", b"7.5", b"9" * 4_000])
def test_nodata_that_the_type_cannot_hold_hides_nothing(text: bytes, tmp_path: Path) -> None:
    """On whole numbers of 16 bits, with long texts too."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags={NODATA: (ASCII, text + b"\0")})
    result = run(path, tmp_path / "out")
    assert result.metadata["validFraction"] == 1.0
    assert np.ptp(picture_of(result)[..., 0]) == 255


@pytest.mark.parametrize("text", [b"none", b"null", b"N/A", b"", b" ", b"no data"])
def test_nodata_that_is_a_word_hides_nothing(text: bytes, tmp_path: Path) -> None:
    """GDAL reads a word as 0, but 0 is a value, and black."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY - 100, tags={NODATA: (ASCII, text + b"\0")})
    result = run(path, tmp_path / "out")
    assert result.metadata["validFraction"] == 1.0
    facts: Any = result.metadata["source"]
    assert facts["bands"][0]["nodata"] is None


@pytest.mark.parametrize("text", [b" 0", b"0.0", b"+0", b"-0", b".0", b"0e3", b"0 metres"])
def test_nodata_that_begins_as_a_number_is_that_number(text: bytes, tmp_path: Path) -> None:
    """However it is written."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY - 100, tags={NODATA: (ASCII, text + b"\0")})
    assert picture_of(run(path, tmp_path / "out"))[0, 0, 3] == 0


def test_lab_is_turned_into_light(tmp_path: Path) -> None:
    """CIE L*a*b* with a quarter turn of red comes out pinkish, not as three raw numbers."""
    lab = np.full((50, 50, 3), (180, 30, 200), dtype=np.uint8)  # L 71 %, a +30, b -56
    found = picture_of(run(write_raw_tiff(tmp_path / "a.tif", lab, 8), tmp_path / "out"))[25, 25].astype(int)
    assert (np.abs(found - (199, 159, 255, 255)) < 20).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_cmyk_of_any_depth_becomes_light(dtype: str, tmp_path: Path) -> None:
    """Full cyan takes the red away."""
    top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    inks = np.full((50, 50, 4), (top, 0, 0, 0), dtype=dtype)
    picture = picture_of(run(write_raw_tiff(tmp_path / "a.tif", inks, 5), tmp_path / "out"))
    assert picture[25, 25].tolist() == [0, 255, 255, 255]


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("float32", 1.0)])
def test_associated_alpha_of_any_depth_is_straightened_before_the_stretch(
    dtype: str, top: float, tmp_path: Path
) -> None:
    """A gray that is the same all over, under an alpha that falls off, comes out the same all over."""
    alpha = np.linspace(0.2, 1, 2500).reshape(50, 50)
    straight = np.where(np.arange(50) < 25, 0.5, 1.0)[None].repeat(50, axis=0)
    data = np.stack([straight * alpha, 0.5 * straight * alpha, 0 * alpha, alpha], axis=-1) * top
    data = np.rint(data).astype(dtype) if np.dtype(dtype).kind == "u" else data.astype(dtype)
    path = write_raw_tiff(tmp_path / "a.tif", data, 2, {EXTRA_SAMPLES: (SHORT, [1])})
    picture = picture_of(run(path, tmp_path / "out", stretch="range:0,1" if dtype == "float32" else f"range:0,{top}"))
    for half, red, green in ((picture[:, :25], 128, 64), (picture[:, 25:], 255, 128)):
        assert np.abs(half[..., 0].astype(int) - red).max() <= 3
        assert np.abs(half[..., 1].astype(int) - green).max() <= 3
    assert np.abs(picture[..., 3] / 255 - alpha).max() < 0.01


@pytest.mark.parametrize(
    "data",
    [
        ramp(50, 50, "float32", -3e38, 3e38),
        ramp(50, 50, "float64", -1e307, 1e307),
        ramp(50, 50, "float64", 1e15, 1e15 + 4000),
        ramp(50, 50, "float32", 1e-30, 4e-30),
        ramp(50, 50, "float32", -1e-37, 1e-37),
        np.arange(2500, dtype=np.int32).view(np.float32).reshape(1, 50, 50),
        ramp(50, 50, "uint32", 0, 4_294_967_295),
        ramp(50, 50, "int32", -2_147_483_648, 2_147_483_647),
        np.arange(2500, dtype=np.uint64).reshape(1, 50, 50) << np.uint64(51),
        ramp(50, 50, "int8", -128, 127),
    ],
    ids=[
        "float32", "float64", "far from 0", "tiny", "tinier", "subnormal", "uint32", "int32", "uint64", "int8",
    ],
)  # fmt: skip
@pytest.mark.parametrize("resampling", ["average", "nearest"])
def test_extreme_values_still_rise_from_black_to_white(data: Any, resampling: str, tmp_path: Path) -> None:
    """The whole of a type's range, and ranges where its precision ends."""
    asked: Any = {"stretch": "minmax", "resampling": resampling}
    picture = picture_of(run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out", **asked))
    gray = picture[..., 0].reshape(-1).astype(int)
    assert (gray[0], gray[-1]) == (0, 255)
    assert (np.diff(gray) >= 0).all()
    assert np.unique(gray).size > 200


@pytest.mark.parametrize("resampling", ["average", "nearest"])
@pytest.mark.parametrize("lo", [1_000_000.02, -1_000_000.02, 20_000_000.3])
def test_floats_far_from_zero_are_exact_to_half_a_gray_level(lo: float, resampling: str, tmp_path: Path) -> None:
    """Values near a million are distinguished as well as small ones, even if the stretch begins between two floats."""
    data = ramp(50, 50, "float32", lo, lo + 8)
    asked: Any = {"stretch": f"range:{lo},{lo + 8}", "resampling": resampling}
    gray = picture_of(run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out", **asked))[..., 0]
    assert np.abs(gray - np.clip((data[0].astype(np.float64) - lo) / 8 * 255, 0, 255)).max() < 0.52


def test_half_floats_are_read(tmp_path: Path) -> None:
    """Sixteen bits of float come out as any other float does, NaN hidden."""
    data = np.linspace(0, 100, 2500, dtype=np.float16).reshape(50, 50, 1)
    data[:10] = np.nan
    picture = picture_of(run(write_raw_tiff(tmp_path / "a.tif", data), tmp_path / "out"))
    assert not picture[:10, :, 3].any()
    assert (picture[10:, :, 3] == 255).all()
    assert np.ptp(picture[10:, :, 0]) == 255


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_depths_above_8_bits_are_stretched_by_their_own_range(bits: int, tmp_path: Path) -> None:
    """NBITS is the possible range, the sample the real one: a dark 12-bit picture is not black."""
    source = Tiff(ramp(60, 60, "uint16", 10, 200), profile={"nbits": bits}).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["hi"] < 210
    assert np.ptp(picture_of(result)[..., 0]) == 255


def test_stored_statistics_that_lie_change_nothing(tmp_path: Path) -> None:
    """A file's STATISTICS may be those of another version of it: the stretch comes from the pixels."""
    import rasterio

    source = Tiff(ramp(60, 60, "float32", 0, 1)).write(tmp_path / "a.tif")
    before: Any = run(source, tmp_path / "one").metadata["choices"]
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(
            1, STATISTICS_MINIMUM="0", STATISTICS_MAXIMUM="65535", STATISTICS_MEAN="9", STATISTICS_STDDEV="2"
        )
    after: Any = run(source, tmp_path / "two").metadata["choices"]
    assert before["stretch"] == after["stretch"]


def test_nan_scale_is_null_in_the_metadata(tmp_path: Path) -> None:
    """Scale and offset that are no numbers do not get into the JSON, nor in the way of the picture."""
    import rasterio

    source = Tiff(ramp(60, 60, "float32", 0, 1)).write(tmp_path / "a.tif")
    with rasterio.open(source, "r+") as dataset:
        dataset.scales, dataset.offsets = (float("nan"),), (float("inf"),)
    facts: Any = run(source, tmp_path / "out").metadata["source"]
    assert (facts["bands"][0]["scale"], facts["bands"][0]["offset"]) == (None, None)


@pytest.mark.parametrize("stretch", ["range:100,200", "minmax"])
def test_associated_alpha_of_bytes_is_straightened_before_a_stretch_that_was_asked_for(
    stretch: str, tmp_path: Path
) -> None:
    """A color that is the same all over stays so, whatever the stretch begins with."""
    alpha = np.full((50, 50), 255)
    alpha[:, 25:] = 128
    data = np.stack([200 * alpha // 255, 150 * alpha // 255, 100 * alpha // 255, alpha], axis=-1).astype(np.uint8)
    path = write_raw_tiff(tmp_path / "a.tif", data, 2, {EXTRA_SAMPLES: (SHORT, [1])})
    picture = picture_of(run(path, tmp_path / "out", stretch=stretch)).astype(int)
    assert np.abs(picture[..., :3] - (255, 127, 0)).max() <= 4


def test_nodata_is_looked_for_before_associated_alpha_is_made_straight(tmp_path: Path) -> None:
    """A color is visible although its straight value happens to be the nodata value."""
    data = np.full((50, 50, 4), (100, 100, 100, 128), dtype=np.uint8)
    tags: dict[int, Any] = {EXTRA_SAMPLES: (SHORT, [1]), NODATA: (ASCII, b"199\0")}
    picture = picture_of(run(write_raw_tiff(tmp_path / "a.tif", data, 2, tags), tmp_path / "out"))
    assert picture[25, 25].tolist() == [199, 199, 199, 128]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        (b"9223372036854775807", "int64"),
        (b"-9223372036854775808", "int64"),
        (b"-9.2233720368547758e+18", "int64"),
        (b"18446744073709551615", "uint64"),
        (b"9007199254740993", "uint64"),
    ],
)
def test_nodata_of_64_bits_hides_exact_matches(text: bytes, dtype: str, tmp_path: Path) -> None:
    """The ends of the type, which are no doubles, in digits and as rasterio writes them, and no neighbors."""
    value = int(float(text)) if b"e" in text else int(text)
    data = np.arange(2500, dtype=dtype).reshape(50, 50, 1) * np.array(10, dtype=dtype)
    data[:10], data[10, 0] = value, value - 1 if value > 0 else value + 1
    # GDAL's own reading of the text and of 64 bits is no help here.
    result = run(write_raw_tiff(tmp_path / "a.tif", data, tags={NODATA: (ASCII, text + b"\0")}), tmp_path / "out")
    shown = picture_of(result)[..., 3]
    assert not shown[:10].any()
    assert shown[10:].all()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [((1 << 53) + 1, "int64"), (-(1 << 63), "int64"), ((1 << 63) + 1, "uint64"), (2**64 - 1, "uint64")],
)
def test_nodata_of_the_payload_is_exact_in_64_bits(value: int, dtype: str, tmp_path: Path) -> None:
    """A value that differs from it by one stays visible, though both are the same double."""
    data = np.arange(2500, dtype=dtype).reshape(50, 50, 1)
    data[:10], data[10, 0] = value, value - 1 if value > 0 else value + 1
    options = RenderOptions.from_payload(json.loads(json.dumps({"nodata": value})))
    result = run(write_raw_tiff(tmp_path / "a.tif", data), tmp_path / "out", nodata=options.nodata)
    shown = picture_of(result)[..., 3]
    assert not shown[:10].any()
    assert shown[10:].all()


@pytest.mark.parametrize(
    ("value", "dtype"), [((1 << 63) - 1, "int64"), ((1 << 64) - 1, "uint64"), (-(1 << 62) - 1, "int64")]
)
def test_undeclared_nodata_of_64_bits_is_left_out_of_the_stretch(value: int, dtype: str, tmp_path: Path) -> None:
    """It is no double. Reported to the last digit, it hides its pixels when it is given back."""
    data = np.arange(2500, dtype=dtype).reshape(50, 50, 1)
    data[:10] = value
    source = write_raw_tiff(tmp_path / "a.tif", data)
    choices: Any = run(source, tmp_path / "out").metadata["choices"]
    assert choices["stretch"]["hi"] < 2500
    (told,) = (json.loads("{" + note.partition("{")[2]) for note in choices["notes"] if "nodata" in note)
    assert told == {"nodata": value}
    assert [fill["value"] for fill in choices["stretch"]["excludedValues"]] == [value]
    shown = picture_of(run(source, tmp_path / "hidden", nodata=told["nodata"]))[..., 3]
    assert not shown[:10].any()
    assert shown[10:].all()


@pytest.mark.parametrize("orientation", [3, 6])
def test_rows_are_shown_as_they_are_stored(orientation: int, tmp_path: Path) -> None:
    """The tag for the orientation of a camera turns nothing, as in GDAL: positions refer to stored rows."""
    data = ramp(40, 60).transpose(1, 2, 0)
    tags: dict[int, Any] = {274: (SHORT, [orientation])}
    picture = picture_of(run(write_raw_tiff(tmp_path / "a.tif", data, tags=tags), tmp_path / "out"))
    assert (picture[..., 0] == data[..., 0]).all()


def test_values_apart_by_the_smallest_double_are_a_flat_picture(tmp_path: Path) -> None:
    """A number smaller than 1e-300 is no divisor."""
    data = np.arange(2500, dtype=np.float64).reshape(50, 50, 1) * 5e-324
    result = run(write_raw_tiff(tmp_path / "a.tif", data), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["kind"] == "constant"


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_decibels_are_reported_for_complex_samples_of_any_depth(dtype: str, tmp_path: Path) -> None:
    """Of doubles too."""
    path = Tiff(ramp(50, 50, "float64", 1, 1000).astype(dtype)).write(tmp_path / "a.tif")
    choices: Any = run(path, tmp_path / "out").metadata["choices"]
    assert any("dB" in note for note in choices["notes"])
