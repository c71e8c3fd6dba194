"""L*a*b* of every kind that a TIFF can hold comes out as the light that it means, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.color.lab import lab_to_srgb, to_lab
from geoprocessing_worker.errors import JobError
from tests.support.rasters import Tiff, picture_of, run
from tests.support.raw_tiff import NODATA, SHORT, Tag, write_raw_tiff

EXTRA_SAMPLES, ASCII = 338, 2
CIE, ICC, ITU = 8, 9, 10

# sRGB and its L*a*b* under D50, as color science has them (Bradford): ends and middle of each axis.
COLORS = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (119, 119, 119): (50.03, 0.0, 0.0),
    (255, 0, 0): (54.29, 80.80, 69.89),
    (0, 128, 0): (46.28, -47.55, 48.58),
    (0, 0, 255): (29.57, 68.29, -112.02),
}


def stored(photometric: int, dtype: str) -> Any:
    """(50, 60, 3): the colors in stripes of ten columns, as a TIFF of this kind stores them."""
    lab = np.repeat(np.array(list(COLORS.values())), 10, axis=0)[None].repeat(50, axis=0)
    lightness, chroma = lab[..., :1], lab[..., 1:]
    if dtype.startswith("float"):
        return lab.astype(dtype)
    if photometric == CIE:
        top, finer, zero = (255, 1, 0) if dtype == "uint8" else (65535, 256, 0)
    else:
        top, finer, zero = (255, 1, 128) if dtype == "uint8" else (65280, 256, 32768)
    signed = np.rint(chroma * finer).astype(np.int64) + zero
    return np.concatenate([np.rint(lightness / 100 * top).astype(np.int64), signed], axis=-1).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("photometric", [CIE, ICC])
def test_lab_is_converted_to_its_colors(photometric: int, dtype: str, tmp_path: Path) -> None:
    """White is white, gray is gray, and the strongest colors of sRGB come back to a few gray levels."""
    result = run(write_raw_tiff(tmp_path / "a.tif", stored(photometric, dtype), photometric), tmp_path / "out")
    found = picture_of(result)[25, 5::10, :3].astype(int)
    leave = 6 if dtype == "uint8" else 3  # a step of a* is a step of blue, and of that much red
    assert np.abs(found - list(COLORS)).max() <= leave, found
    choices: Any = result.metadata["choices"]
    assert choices["bands"]["shownAs"] == "lab"


@pytest.mark.parametrize(
    ("photometric", "samples", "expected"),
    [
        (CIE, np.array([255, 127, 128], np.uint8), (100, 127, -128)),
        (CIE, np.array([65535, 32767, 32768], np.uint16), (100, 127.996, -128)),
        (ICC, np.array([255, 255, 0], np.uint8), (100, 127, -128)),
        (ICC, np.array([65280, 65535, 0], np.uint16), (100, 127.996, -128)),
    ],
)
def test_ends_of_each_scale_are_those_of_its_standard(
    photometric: int, samples: Any, expected: tuple[float, float, float]
) -> None:
    """White of 16 bits is 65535 in TIFF and 65280 in ICC. CIE's a* and b* are signed, ICC's have an offset."""
    assert to_lab(samples[:, None, None], photometric).ravel().tolist() == pytest.approx(expected, abs=0.001)


def test_alpha_beside_lab_stays(tmp_path: Path) -> None:
    """A fourth sample declared as alpha hides pixels. A fifth is ignored."""
    alpha = np.linspace(0, 255, 60).astype(np.uint8)[None, :, None].repeat(50, axis=0)
    data = np.concatenate([stored(CIE, "uint8"), alpha, alpha], axis=-1)
    source = write_raw_tiff(tmp_path / "a.tif", data, CIE, {EXTRA_SAMPLES: (SHORT, [2, 0])})
    picture = picture_of(run(source, tmp_path / "out"))
    assert np.array_equal(picture[..., 3], alpha[..., 0])
    assert (picture[25, 8, :3] > 245).all()


def test_lab_of_bytes_with_overviews_is_read_without_them(tmp_path: Path) -> None:
    """GDAL fails on them, and the picture does not."""
    data = np.moveaxis(stored(CIE, "uint8"), -1, 0).repeat(10, axis=1).repeat(10, axis=2)
    source = Tiff(data, overviews=(2, 4), profile={"photometric": "CIELAB"}).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=60)).astype(int)
    assert np.abs(picture[25, 5::10, :3] - list(COLORS)).max() <= 6


def test_nodata_of_lab_is_that_of_the_samples(tmp_path: Path) -> None:
    """Pixels with nodata in every sample are hidden. Black has it in two and is visible."""
    data = stored(ICC, "uint16")
    data[:, :10] = 0
    source = write_raw_tiff(tmp_path / "a.tif", data, ICC, {NODATA: (ASCII, b"0\0")})
    picture = picture_of(run(source, tmp_path / "out"))
    assert not picture[:, :10, 3].any()
    assert (picture[:, 10:, 3] == 255).all()


REFUSED: dict[str, tuple[int, str]] = {
    "ITU's own scale": (ITU, "uint8"),
    "signed": (CIE, "int16"),
    "32 bits": (ICC, "uint32"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_lab_on_an_unknown_scale_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    """Lab of an unknown scale is refused, not shown as three raw bands."""
    photometric, dtype = REFUSED[kind]
    source = write_raw_tiff(tmp_path / "a.tif", np.full((20, 20, 3), 90, dtype=dtype), photometric)
    with pytest.raises(JobError, match=f"{photometric}, {dtype}") as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "unsupported_data_type"


def test_floats_from_0_to_1_are_refused_by_name(tmp_path: Path) -> None:
    """L* runs to 100. Floats that end at 1 have a scale that no tag declares."""
    tags: dict[int, Tag] = {}
    source = write_raw_tiff(tmp_path / "a.tif", (stored(CIE, "float32") / 100).clip(0, 1), CIE, tags)
    with pytest.raises(JobError, match="does not declare their scale") as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "unsupported_data_type"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_black_of_whole_numbers_is_black(dtype: str, tmp_path: Path) -> None:
    """Their scale is that of their type, so that nothing but zeros is a dark picture and no riddle."""
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((50, 60, 3), dtype), CIE)
    assert np.unique(picture_of(run(source, tmp_path / "out")).reshape(-1, 4), axis=0).tolist() == [[0, 0, 0, 255]]


def test_colors_beyond_srgb_become_near_ones() -> None:
    """Colors do not wrap: a green outside of sRGB stays green, and NaN is black."""
    lab = np.array([[87.0, -128.0, 120.0], [np.nan, np.nan, np.nan]], dtype=np.float32).T
    green, nothing = lab_to_srgb(lab).T.tolist()
    assert green[1] > 200
    assert max(green[0], green[2]) < 80
    assert nothing == [0, 0, 0]
