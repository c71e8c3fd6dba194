"""Alpha bands: their top value, infrared that is only called alpha, and colors that are not multiplied by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geoprocessing_worker.color.alpha import alpha_top
from geoprocessing_worker.handlers import TaskResult
from tests.support.rasters import Tiff, picture_of, run
from tests.support.raw_tiff import SHORT, write_raw_tiff

EXTRA_SAMPLES = 338
CASES = Path(__file__).parents[3] / "shared" / "cases"
SIZE = 160
Plane = NDArray[np.float64]


def scene(seed: int = 1) -> Plane:
    """(SIZE, SIZE) of a photograph, 0.1 to 0.9: patches with texture."""
    random = np.random.default_rng(seed)
    patches = random.uniform(0.2, 0.8, (16, 16)).repeat(10, axis=0).repeat(10, axis=1)
    return np.clip(patches + random.normal(0, 0.04, (SIZE, SIZE)), 0.1, 0.9)


def noise(seed: int, size: float = 0.02) -> Plane:
    return np.random.default_rng(seed).normal(0, size, (SIZE, SIZE))


def written(
    path: Path, colors: Any, alpha: Any, dtype: str = "uint8", top: float = 255, extra: tuple[int, ...] = (2,)
) -> Path:
    """Write red, green, blue and more bands, each from 0 to 1 of `top`. `extra` are TIFF's ExtraSamples."""
    data = np.moveaxis(np.stack([*colors, *([alpha] if np.ndim(alpha) == 2 else alpha)]), 0, -1) * top
    data = np.rint(data).astype(dtype) if np.dtype(dtype).kind in "iu" else data.astype(dtype)
    return write_raw_tiff(path, data, 2, {EXTRA_SAMPLES: (SHORT, list(extra))})


def photograph() -> list[Plane]:
    base = scene()
    return [np.clip(base + noise(seed), 0.05, 0.95) for seed in (2, 3, 4)]


def shown(path: Path, folder: Path, **options: Any) -> tuple[NDArray[np.uint8], dict[str, Any], TaskResult]:
    result = run(path, folder, **options)
    choices: Any = result.metadata["choices"]
    return picture_of(result), choices, result


INFRARED = {
    "like the colors": np.clip(0.3 + 0.6 * scene() + noise(9), 0.05, 0.95),
    "unlike the colors": np.clip(0.5 + noise(10, 0.15), 0.05, 0.95),
    "a ramp": np.linspace(0.06, 0.97, SIZE * SIZE).reshape(SIZE, SIZE),
    "bright": np.clip(0.5 + 0.8 * scene() + noise(9), 0.05, 1),
}


@pytest.mark.parametrize("name", INFRARED)
@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 1023), ("uint16", 3000), ("float32", 1)])
def test_infrared_that_is_called_alpha_hides_nothing(
    name: str, extra: int, dtype: str, top: float, tmp_path: Path
) -> None:
    """A fourth band that is never 0 and seldom at its top holds no opacity: all is visible in its own colors."""
    path = written(tmp_path / "a.tif", photograph(), INFRARED[name], dtype, top, (extra,))
    picture, choices, _ = shown(path, tmp_path / "out", stretch=f"range:0,{top}", coordinate_system="native")
    assert (picture[..., 3] == 255).all()
    truth = np.stack(photograph(), axis=-1) * 255
    assert np.abs(picture[..., :3] - truth).max() <= 2
    assert choices["bands"]["alpha"] is None
    assert any("band 4 is called alpha, but holds no opacity" in note for note in choices["notes"])


def test_infrared_with_dark_water_hides_nothing(tmp_path: Path) -> None:
    """A few zeros are shadow and water where the band has the same details as the colors."""
    infrared = INFRARED["like the colors"].copy()
    infrared[40:55, 40:55] = 0
    picture, choices, _ = shown(written(tmp_path / "a.tif", photograph(), infrared), tmp_path / "out")
    assert (picture[2:-2, 2:-2, 3] == 255).all()
    assert choices["bands"]["alpha"] is None


@pytest.mark.parametrize("name", ["like the colors", "unlike the colors"])
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 3000)])
def test_infrared_beside_a_black_collar_hides_only_the_collar(
    name: str, dtype: str, top: float, tmp_path: Path
) -> None:
    """Pixels with 0 in all four bands are hidden. All others are fully visible."""
    planes = [plane.copy() for plane in (*photograph(), INFRARED[name])]
    for plane in planes:
        plane[:, :50] = 0
    path = written(tmp_path / "a.tif", planes[:3], planes[3], dtype, top)
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert (picture[:, :50, 3] == 0).all()
    assert (picture[:, 50:, 3] == 255).all()
    assert any("hides only pixels where all bands are 0" in note for note in choices["notes"])


ROWS, COLUMNS = np.indices((SIZE, SIZE))


def smooth(seed: int, size: float = 25) -> Plane:
    """(SIZE, SIZE), 0 to 1: hills about `size` pixels wide, without texture."""
    steps = np.fft.fftfreq(SIZE)
    kernel = np.exp(-2 * (np.pi * size / 2) ** 2 * (steps[:, None] ** 2 + steps**2))
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=(SIZE, SIZE))) * kernel
    hills = np.real(np.fft.ifft2(spectrum))
    return np.asarray((hills - hills.min()) / np.ptp(hills), dtype=np.float64)


def turned(degrees: float, half: float) -> Plane:
    """Return each pixel's distance to the border of a turned square, negative outside of it."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    across, down = COLUMNS - SIZE / 2, ROWS - SIZE / 2
    beyond = np.maximum(np.abs(across * cos + down * sin), np.abs(down * cos - across * sin))
    return np.asarray(half - beyond, dtype=np.float64)


BORDERS: dict[str, Plane] = {
    "strip": np.asarray(COLUMNS - 39.5, dtype=np.float64),
    "turned": turned(17, 60),
    "coast": (smooth(31, 40) - 0.45) * 100,
    "frame": np.minimum(np.minimum(COLUMNS, SIZE - 1 - COLUMNS), np.minimum(ROWS, SIZE - 1 - ROWS)) - 9.5,
}
"""How far each pixel lies within the picture."""

SMOOTH = {
    "wide": 0.05 + 0.9 * smooth(21),
    "dark": 0.02 + 0.25 * smooth(22),
    "bright": 0.4 + 0.6 * smooth(23),
    "often at its top": np.clip(0.2 + 1.1 * smooth(24), 0, 1),
    "nearly uniform": 0.3 + 0.4 * smooth(25, 90),
}
PICTURES: dict[str, Callable[[], list[Plane]]] = {
    "texture": photograph,
    "smooth": lambda: [0.1 + 0.7 * smooth(seed) for seed in (26, 27, 28)],
}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("colors", "dtype", "top"), [("texture", "uint8", 255), ("smooth", "uint16", 3000)])
def test_smooth_infrared_beside_a_black_collar_hides_only_the_collar(
    name: str, colors: str, border: str, dtype: str, top: float, tmp_path: Path
) -> None:
    """A band that starts at its usual values beside its zeros has no soft edge, however smooth it is."""
    inside = BORDERS[border] > 0
    path = written(
        tmp_path / "a.tif", [plane * inside for plane in PICTURES[colors]()], SMOOTH[name] * inside, dtype, top
    )
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert ((picture[..., 3] == 255) == inside).all()
    assert any("hides only pixels where all bands are 0" in note for note in choices["notes"])


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("name", ["wide", "bright"])
def test_lossy_codecs_do_not_make_a_soft_edge(name: str, border: str, tmp_path: Path) -> None:
    """JPEG leaves a collar and its edge a little above 0: all of the picture is visible all the same."""
    inside = BORDERS[border] > 0
    data = np.rint(np.stack([*photograph(), SMOOTH[name]]) * inside * 255).astype(np.uint8)
    profile = {"photometric": "RGB", "alpha": "YES", "compress": "jpeg", "interleave": "pixel", "tiled": True}
    source = Tiff(data, profile=profile).write(tmp_path / "a.tif")
    picture, choices, _ = shown(source, tmp_path / "out", coordinate_system="native")
    assert (picture[..., 3] == 255)[BORDERS[border] > 2].all()
    assert any("band 4 is called alpha, but holds no opacity" in note for note in choices["notes"])


def test_dark_water_beside_a_collar_stays_visible(tmp_path: Path) -> None:
    """Zeros of infrared are hidden only where the colors are 0 too."""
    planes = [plane.copy() for plane in (*photograph(), INFRARED["like the colors"])]
    planes[3][100:115, 100:115] = 0
    for plane in planes:
        plane[:, :50] = 0
    picture, choices, _ = shown(
        written(tmp_path / "a.tif", planes[:3], planes[3]), tmp_path / "out", coordinate_system="native"
    )
    assert ((picture[..., 3] == 255) == (np.arange(SIZE) >= 50)).all()
    assert any("hides only pixels where all bands are 0" in note for note in choices["notes"])


def test_infrared_that_is_often_at_its_top_hides_nothing(tmp_path: Path) -> None:
    """A quarter of the pixels near the top, beside the details of a photograph, is bright vegetation."""
    infrared = np.clip(0.2 + 1.15 * scene(), 0.05, 1)
    assert 0.15 < np.mean(infrared >= 0.98) < 0.4
    picture, choices, _ = shown(written(tmp_path / "a.tif", photograph(), infrared), tmp_path / "out")
    assert (picture[2:-2, 2:-2, 3] == 255).all()
    assert choices["bands"]["alpha"] is None


@pytest.mark.parametrize("share", [0.12, 0.3, 0.45])
@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("colors", PICTURES)
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 1023), ("uint16", 65535), ("float32", 1)])
def test_smooth_infrared_that_is_saturated_hides_nothing(
    share: float, extra: int, colors: str, dtype: str, top: float, tmp_path: Path
) -> None:
    """A band without zeros that is cut off at its top holds no opacity, though it has no texture."""
    hills = smooth(24)
    infrared = np.clip(0.1 + 0.9 * hills / np.quantile(hills, 1 - share), 0, 1)
    assert infrared.min() > 0
    path = written(tmp_path / "a.tif", PICTURES[colors](), infrared, dtype, top, (extra,))
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert (picture[..., 3] == 255).all()
    assert any("band 4 is called alpha, but holds no opacity" in note for note in choices["notes"])


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("colors", PICTURES)
@pytest.mark.parametrize("width", [3, 30, 90])
@pytest.mark.parametrize("under", ["black", "white", "as beside", "multiplied", "called multiplied"])
def test_soft_edges_of_mosaics_stay_opacity(under: str, width: float, colors: str, border: str, tmp_path: Path) -> None:
    """Alpha that rises gradually from its zeros hides, whatever lies under them, and however wide its edge is."""
    alpha = np.rint(np.clip(BORDERS[border] / width, 0, 1) * 255) / 255
    factor = alpha if "multiplied" in under else alpha > 0
    planes = PICTURES[colors]()
    if under != "as beside":
        planes = [np.where(alpha > 0, plane * factor, float(under == "white")) for plane in planes]
    path = written(tmp_path / "a.tif", planes, alpha, extra=(1 if under.startswith("called") else 2,))
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert np.abs(picture[..., 3] / 255 - alpha).max() < 0.01
    assert choices["bands"]["alpha"] == 4


def test_infrared_beside_declared_nodata_hides_nothing_else(tmp_path: Path) -> None:
    """Zeros of pixels that nodata hides are no values of the fourth band."""
    data = np.rint(np.stack([*photograph(), INFRARED["unlike the colors"]]) * 255).astype(np.uint8)
    data[:, :, :50] = 0
    source = Tiff(data, nodata=0, profile={"photometric": "RGB", "alpha": "YES"}).write(tmp_path / "a.tif")
    picture, choices, _ = shown(source, tmp_path / "out", coordinate_system="native")
    assert choices["bands"]["alpha"] is None
    assert ((picture[..., 3] == 255) == (np.arange(SIZE) >= 50)).all()


DISTANCE = np.hypot(*(np.indices((SIZE, SIZE)) - SIZE / 2)) / (SIZE / 2)
SOFT: dict[str, Plane] = {
    "soft edge": np.clip((1 - DISTANCE) * 4, 0, 1),
    "gradient to 0": np.linspace(0, 1, SIZE)[None].repeat(SIZE, axis=0),
    "vignette": np.clip(1 - 0.6 * DISTANCE**4, 0.2, 1),
    "all visible": np.ones((SIZE, SIZE)),
    "half visible": np.full((SIZE, SIZE), 128 / 255),
    "noise": np.random.default_rng(5).integers(0, 256, (SIZE, SIZE)) / 255,
    "sharp": np.where(DISTANCE < 0.8, 1.0, 0.0),
    "mostly visible, with the details of the colors": np.clip(scene() * 2.2, 0.05, 1),
    "often hidden, with the details of the colors": np.clip(scene() - 0.3, 0, 1),
}


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("float32", 1), ("float32", 255)])
def test_opacity_stays_opacity(name: str, dtype: str, top: float, tmp_path: Path) -> None:
    """Soft edges, gradients, vignettes and uniform alphas keep their opacity."""
    path = written(tmp_path / "a.tif", photograph(), SOFT[name], dtype, top)
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert np.abs(picture[..., 3] / 255 - SOFT[name]).max() < 0.01
    assert (choices["bands"]["alpha"], choices["bands"]["alphaTop"]) == (4, top)


def test_uniform_color_under_a_varying_alpha_is_an_overlay(tmp_path: Path) -> None:
    """A shaded relief is black, and its alpha is the picture, even where that is never 0."""
    black = [np.zeros((SIZE, SIZE))] * 3
    alpha = INFRARED["unlike the colors"]
    picture, _, _ = shown(written(tmp_path / "a.tif", black, alpha), tmp_path / "out", coordinate_system="native")
    assert np.abs(picture[..., 3] / 255 - alpha).max() < 0.01


def test_alpha_that_the_job_names_is_believed(tmp_path: Path) -> None:
    """With four `bands` the last one is opacity, whatever it holds."""
    alpha = INFRARED["like the colors"]
    path = written(tmp_path / "a.tif", photograph(), alpha)
    picture, _, _ = shown(path, tmp_path / "out", bands=(1, 2, 3, 4), coordinate_system="native")
    assert np.abs(picture[..., 3] / 255 - alpha).max() < 0.01


def test_alpha_that_the_job_shows_hides_nothing(tmp_path: Path) -> None:
    """A band that is asked for as a color or as gray is data."""
    path = written(tmp_path / "a.tif", photograph(), SOFT["sharp"])
    picture, _, _ = shown(path, tmp_path / "out", bands=(4, 1, 2), coordinate_system="native")
    assert (picture[..., 3] == 255).all()


@pytest.mark.parametrize("extra", [(0, 2), (2, 2)])
@pytest.mark.parametrize("fourth", [INFRARED["like the colors"], SOFT["gradient to 0"]], ids=["infrared", "like alpha"])
def test_alpha_after_infrared_is_the_last_band(fourth: Plane, extra: tuple[int, ...], tmp_path: Path) -> None:
    """Of five bands the fifth hides, whether or not both are called alpha, and whatever the fourth holds."""
    path = written(tmp_path / "a.tif", photograph(), [fourth, SOFT["sharp"]], extra=extra)
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert choices["bands"]["alpha"] == 5
    assert ((picture[..., 3] == 255) == (SOFT["sharp"] > 0)).all()


def test_alpha_before_infrared_is_found(tmp_path: Path) -> None:
    """Of two bands that are called alpha the last one holds no opacity, so the one before it hides."""
    path = written(tmp_path / "a.tif", photograph(), [SOFT["sharp"], INFRARED["like the colors"]], extra=(2, 2))
    picture, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert choices["bands"]["alpha"] == 4
    assert ((picture[..., 3] == 255) == (SOFT["sharp"] > 0)).all()


def test_two_measurements_of_which_one_is_called_alpha_are_gray(tmp_path: Path) -> None:
    """A second band that holds no opacity hides nothing of the first."""
    data = np.stack([scene(1), np.clip(0.4 + noise(6, 0.1), 0.05, 0.9)])
    source = Tiff((data * 4000).astype(np.uint16), colors=["gray", "alpha"]).write(tmp_path / "a.tif")
    picture, _, _ = shown(source, tmp_path / "out", coordinate_system="native")
    assert (picture[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("dtype", "largest", "bits", "top"),
    [
        ("uint8", 1, None, 1),
        ("uint8", 3, None, 255),
        ("uint8", 3, 2, 3),
        ("uint8", 15, 4, 15),
        ("int8", 127, None, 127),
        ("uint16", 1, None, 1),
        ("uint16", 255, None, 255),
        ("uint16", 255, 12, 255),
        ("uint16", 2047, None, 2047),
        ("uint16", 3000, 12, 4095),
        ("uint16", 4080, None, 4095),
        ("uint16", 10_000, None, 10_000),
        ("uint16", 40_000, None, 65_535),
        ("uint16", 1500, None, 1500),
        ("int16", 32_767, None, 32_767),
        ("int32", 65_535, None, 65_535),
        ("uint32", 4_294_967_295, None, 4_294_967_295),
        ("float32", 0.4, None, 1),
        ("float32", 1.01, None, 1),
        ("float32", 255, None, 255),
        ("float64", 65_535, None, 65_535),
    ],
)
def test_top_follows_from_bits_and_from_the_largest_value(
    dtype: str, largest: float, bits: int | None, top: float
) -> None:
    """Fully visible is the end of the scale that the band is written in."""
    assert alpha_top(dtype, largest, bits) == top


@pytest.mark.parametrize("bits", [10, 11, 12, 14])
def test_alpha_of_few_bits_ends_at_their_largest(bits: int, tmp_path: Path) -> None:
    """NBITS counts, even where no pixel is fully visible."""
    top = 2**bits - 1
    data = np.full((2, 40, 40), 200, dtype=np.uint16)
    data[0, :, :20], data[1, :20], data[1, 20:] = 100, 0, top // 2
    source = Tiff(data, colors=["gray", "alpha"], profile={"nbits": bits}).write(tmp_path / "a.tif")
    picture, choices, _ = shown(source, tmp_path / "out", coordinate_system="native")
    assert choices["bands"]["alphaTop"] == top
    assert (picture[:20, :, 3] == 0).all()
    assert np.abs(picture[20:, :, 3].astype(int) - 127).max() <= 1


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_straight_colors_under_associated_alpha_are_not_divided(dtype: str, top: float, tmp_path: Path) -> None:
    """Colors that exceed their alpha were never multiplied by it: they are shown as stored, under that alpha."""
    path = written(tmp_path / "a.tif", photograph(), SOFT["soft edge"], dtype, top, (1,))
    picture, choices, _ = shown(path, tmp_path / "out", stretch=f"range:0,{top}", coordinate_system="native")
    truth = np.stack(photograph(), axis=-1) * 255
    visible = picture[..., 3] > 0
    assert np.abs(picture[..., :3] - truth)[visible].max() <= 2
    assert np.abs(picture[..., 3] / 255 - SOFT["soft edge"]).max() < 0.01
    assert not choices["alphaUnassociated"]
    assert any("colors exceed it" in note for note in choices["notes"])


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_weak_associated_alpha_below_the_colors_shows_all_but_zeros(dtype: str, top: float, tmp_path: Path) -> None:
    """An alpha of 1 to 30 beside bright colors is no opacity: all pixels but its zeros show their own colors."""
    alpha = np.random.default_rng(4).integers(1, 31, (SIZE, SIZE)) / 255
    alpha[:40] = 0
    path = written(tmp_path / "a.tif", photograph(), alpha, dtype, top, (1,))
    picture, choices, _ = shown(path, tmp_path / "out", stretch=f"range:0,{top}", coordinate_system="native")
    assert ((picture[..., 3] == 255) == (np.arange(SIZE) >= 40)[:, None]).all()
    assert not picture[:40, :, 3].any()
    truth = np.stack(photograph(), axis=-1) * 255
    assert np.abs(picture[..., :3] - truth)[40:].max() <= 2
    assert any("colors exceed it" in note for note in choices["notes"])


def test_smooth_multiplied_alpha_without_zeros_stays_opacity(tmp_path: Path) -> None:
    """Colors that nowhere exceed it are divided by it, though it is never 0 and never at its top."""
    alpha = np.rint((0.2 + 0.7 * smooth(29)) * 255) / 255
    planes = [plane * alpha for plane in photograph()]
    picture, choices, _ = shown(
        written(tmp_path / "a.tif", planes, alpha, extra=(1,)), tmp_path / "out", coordinate_system="native"
    )
    assert np.abs(picture[..., 3] / 255 - alpha).max() < 0.01
    assert choices["alphaUnassociated"]


def test_mask_of_zeros_and_ones_does_not_divide_colors(tmp_path: Path) -> None:
    """An associated alpha from 0 to 1 leaves colors as they are, and hides pixels at 0."""
    alpha = SOFT["sharp"] / 255
    colors = [plane * SOFT["sharp"] for plane in photograph()]
    path = written(tmp_path / "a.tif", colors, alpha, extra=(1,))
    picture, _, _ = shown(path, tmp_path / "out", coordinate_system="native")
    visible = SOFT["sharp"] > 0
    assert ((picture[..., 3] == 255) == visible).all()
    assert np.abs(picture[..., :3] - np.stack(photograph(), axis=-1) * 255)[visible].max() <= 2


def test_multiplied_colors_are_divided_though_a_lossy_codec_moved_them(tmp_path: Path) -> None:
    """JPEG leaves colors a little above a soft alpha, which is no sign of straight colors."""
    alpha = SOFT["soft edge"]
    data = np.rint(np.stack([*(plane * alpha for plane in photograph()), alpha]) * 255).astype(np.uint8)
    profile = {"photometric": "RGB", "alpha": "PREMULTIPLIED", "compress": "jpeg", "jpeg_quality": 10}
    source = Tiff(data, profile=profile | {"interleave": "pixel", "tiled": True}).write(tmp_path / "a.tif")
    picture, choices, _ = shown(source, tmp_path / "out", coordinate_system="native")
    assert choices["alphaUnassociated"]
    opaque = alpha > 0.9
    assert np.abs(picture[..., :3] - np.stack(photograph(), axis=-1) * 255)[opaque].mean() < 20


@pytest.mark.parametrize("extra", [1, 2])
def test_few_pixels_are_no_proof(extra: int, tmp_path: Path) -> None:
    """Sixteen pixels hold too few values to be taken for infrared."""
    data = np.random.default_rng(8).integers(60, 200, (4, 4, 4)).astype(np.uint8)
    data[..., 3] = np.maximum(data[..., 3], data[..., :3].max(axis=-1))
    path = write_raw_tiff(tmp_path / "a.tif", data, 2, {EXTRA_SAMPLES: (SHORT, [extra])})
    _, choices, _ = shown(path, tmp_path / "out", coordinate_system="native")
    assert choices["bands"]["alpha"] == 4


def test_infrared_by_name_hides_nothing_though_it_has_zeros(tmp_path: Path) -> None:
    """Writers of four bands declare the last one alpha by default. Its name takes precedence."""
    data = np.rint(np.stack([*photograph(), SOFT["gradient to 0"]]) * 255).astype(np.uint8)
    names = ("red", "green", "blue", "near-infrared")
    source = Tiff(data, descriptions=names, profile={"photometric": "RGB", "alpha": "YES"}).write(tmp_path / "a.tif")
    picture, choices, _ = shown(source, tmp_path / "out", coordinate_system="native")
    assert (picture[..., 3] == 255).all()
    assert "band 4 is called alpha, but named near-infrared: it hides nothing" in choices["notes"]


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside this checkout")
def test_cases_of_alpha(tmp_path: Path) -> None:
    """Both files get the opacity that the list of cases requires."""
    picture, choices, _ = shown(CASES / "four-bands-unspecified-alpha.tif", tmp_path / "a", coordinate_system="native")
    assert (picture[..., 3] == 255).all()
    assert choices["notes"]
    picture, choices, _ = shown(CASES / "weak-alpha.tif", tmp_path / "b", coordinate_system="native")
    assert np.mean(picture[..., 3] == 255) == pytest.approx(0.7, abs=0.03)
    assert choices["notes"]
