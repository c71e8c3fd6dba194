"""Bands that are no colors: found by their names, units and ranges, and never shown by one stretch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from geoprocessing_worker.color.band_names import Kind, kind_of
from tests.support.rasters import Tiff, picture_of, ramp, run

CASES = Path(__file__).parents[3] / "shared" / "cases"
GRAY = {"photometric": "MINISBLACK"}


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("Red", Kind.LIGHT),
        ("red_band", Kind.LIGHT),
        ("Band 4 - Red", Kind.LIGHT),
        ("B04", Kind.LIGHT),
        ("B8A_20m", Kind.LIGHT),
        ("665 nm", Kind.LIGHT),
        ("665nm", Kind.LIGHT),
        ("nir08", Kind.LIGHT),
        ("Proche infrarouge", Kind.LIGHT),
        ("Grün", Kind.LIGHT),
        ("Красный", Kind.LIGHT),
        ("أخضر", Kind.LIGHT),
        ("B4_median", Kind.LIGHT),
        ("Sigma0_VV_db", Kind.LIGHT),
        ("RGB composite", Kind.LIGHT),
        ("Elevation", Kind.MEASUREMENT),
        ("Höhe (m)", Kind.MEASUREMENT),
        ("élévation", Kind.MEASUREMENT),
        ("meanTemperature", Kind.MEASUREMENT),
        ("LST_Day_1km", Kind.MEASUREMENT),
        ("NDVI_B8_B4", Kind.MEASUREMENT),
        ("red uncertainty", Kind.MEASUREMENT),
        ("max", Kind.MEASUREMENT),
        ("2[m] HTGL Temperature [C]", Kind.MEASUREMENT),
        ("slope.tif", Kind.MEASUREMENT),
        ("Alpha", Kind.OPACITY),
        ("valid mask", Kind.OPACITY),
        ("Band 1", Kind.NOTHING),
        ("Layer_1", Kind.NOTHING),
        ("Kanal 3", Kind.NOTHING),
        ("second band", Kind.NOTHING),
        ("", Kind.NOTHING),
        (None, Kind.NOTHING),
        ("1", Kind.NOTHING),
        ("2021-07-01", Kind.NOTHING),
        ("Contents Not Specified", Kind.NOTHING),
        ("survey_77.tif", Kind.NOTHING),
        ("Urban", Kind.UNKNOWN),
    ],
)
def test_meaning_of_a_description(description: str | None, kind: Kind) -> None:
    """Names of light, measurements and opacity are distinguished in several languages and forms."""
    assert kind_of(description) is kind


def measured(dtype: str = "float32") -> Any:
    """Three bands in other units: 0 to 200, 0 to 100, 20 to 120."""
    return np.stack([ramp(40, 60, dtype, low, high)[0] for low, high in ((0, 200), (0, 100), (20, 120))])


@pytest.mark.parametrize(
    "names",
    [
        ("Elevation", "Uncertainty", "Contributor"),
        ("temperature", "humidity", "pressure"),
        ("slope", "aspect", ""),
        ("VV", "VH", "incidence angle"),
        ("nir", "ndvi", "red"),
        ("min", "mean", "max"),
        ("Urban", "Water", "Forest"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
def test_bands_with_names_of_measurements_are_not_rgb(names: tuple[str, ...], dtype: str, tmp_path: Path) -> None:
    """The first band is shown in gray with a stretch of its own, and the metadata have the names."""
    source = Tiff(measured(dtype), descriptions=names, profile=GRAY).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", stretch="minmax")
    choices: Any = result.metadata["choices"]
    assert (choices["bands"]["indexes"], choices["bands"]["shownAs"]) == ([1], "gray")
    assert (choices["stretch"]["lo"], choices["stretch"]["hi"]) == (0, 200)
    assert all(name in choices["bands"]["reason"] for name in names)
    told: Any = result.metadata["source"]
    assert [band["description"] or "" for band in told["bands"]] == list(names)


@pytest.mark.parametrize(
    ("names", "gray"),
    [
        (("temperature", "humidity", "pressure"), True),
        (("Elevation", "Uncertainty", "Contributor"), True),
        (("Band 1", "Band 2", "Band 3"), False),
        (("first band", "second band", "third band"), False),
        (("", "", ""), False),
        (("Red", "Green", "Blue"), False),
        (("nir", "red", "green"), False),
        (("B8_median", "B4_median", "B3_median"), False),
        (("VV", "VH", "ratio"), False),
        (("dem_site_1", "dem_site_2", "dem_site_3"), False),
        (("Urban", "Water", "Forest"), False),
    ],
)
def test_bytes_that_are_declared_rgb_stay_so_but_for_measurements(
    names: tuple[str, ...], gray: bool, tmp_path: Path
) -> None:
    """GDAL declares three bands of bytes as RGB by default, so sure names of measurements count more."""
    source = Tiff(measured("uint8"), descriptions=names, profile={"photometric": "RGB"}).write(tmp_path / "a.tif")
    choices: Any = run(source, tmp_path / "out").metadata["choices"]
    assert choices["bands"]["indexes"] == ([1] if gray else [1, 2, 3])


@pytest.mark.parametrize(
    "names",
    [
        ("Blau", "Grün", "Rot"),
        ("bleu", "vert", "rouge"),
        ("azul", "verde", "rojo"),
        ("Azul", "Verde", "Vermelho"),
        ("blu", "verde", "rosso"),
        ("blauw", "groen", "rood"),
        ("Синий", "Зелёный", "Красный"),
        ("蓝", "绿", "红"),
        ("青", "緑", "赤"),
        ("أزرق", "أخضر", "أحمر"),
        ("BlueBand", "GreenBand", "RedBand"),
        ("Band 1 - Blue", "Band 2 - Green", "Band 3 - Red"),
    ],
)
def test_colors_are_found_in_many_languages(names: tuple[str, ...], tmp_path: Path) -> None:
    """Red, green and blue come first in the picture, in whatever order and language they stand."""
    source = Tiff(measured("uint16"), descriptions=names, profile=GRAY).write(tmp_path / "a.tif")
    choices: Any = run(source, tmp_path / "out").metadata["choices"]
    assert choices["bands"]["indexes"] == [3, 2, 1]


def test_unlike_units_are_not_rgb(tmp_path: Path) -> None:
    """Bands of meters, degrees and percents are not RGB. Bands of one unit are."""
    for units, shown in ((("m", "deg", "%"), [1]), (("m", "m", "m"), [1, 2, 3])):
        path = Tiff(measured("uint16"), profile=GRAY).write(tmp_path / "a.tif")
        with rasterio.open(path, "r+") as dataset:
            dataset.units = units
        choices: Any = run(path, tmp_path / "out").metadata["choices"]
        assert choices["bands"]["indexes"] == shown


@pytest.mark.parametrize(
    ("ranges", "shown"),
    [
        (((0, 3000), (0, 60), (0, 360)), [1]),
        (((250, 310), (0, 1), (90_000, 110_000)), [1]),
        (((280, 300), (980, 1020), (1, 9)), [1]),
        (((100, 900), (150, 1500), (200, 3000)), [1, 2, 3]),
        (((0, 0.1), (0, 0.2), (0, 0.5)), [1, 2, 3]),
        (((5, 5), (0, 1000), (0, 900)), [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("fill", [None, -9999])
def test_unlike_ranges_are_not_rgb(
    ranges: tuple[tuple[float, float], ...], shown: list[int], fill: float | None, tmp_path: Path
) -> None:
    """Bands are not RGB if a common stretch leaves one of them eight grays or fewer. Undeclared nodata do not count."""
    data = np.stack([ramp(60, 60, "float32", *limits)[0] for limits in ranges])
    if fill is not None:
        data[:, :20] = fill
    result = run(Tiff(data, profile=GRAY).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["bands"]["indexes"] == shown
    assert ("ranges differ" in choices["bands"]["reason"]) == (shown == [1])
    lo, hi = choices["stretch"]["lo"], choices["stretch"]["hi"]
    if shown == [1]:
        assert ranges[0][0] <= lo < hi <= ranges[0][1]


def test_unlike_scales_are_not_rgb(tmp_path: Path) -> None:
    """Packed numbers in the same range mean values in others."""
    path = Tiff(measured("int16"), profile=GRAY).write(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.001, 1.0, 0.01), (273.0, 90_000.0, 0.0)
    choices: Any = run(path, tmp_path / "out").metadata["choices"]
    assert choices["bands"]["indexes"] == [1]


def test_gray_band_is_hidden_by_its_own_nodata_alone(tmp_path: Path) -> None:
    """Of three measurements only the first decides which pixels are valid."""
    data = np.stack([ramp(40, 40, "float32", low, high)[0] for low, high in ((0, 9), (1000, 9000), (0, 1e6))])
    data[0, :20] = -1
    result = run(Tiff(data, nodata=-1, profile=GRAY).write(tmp_path / "a.tif"), tmp_path / "out", max_size=40)
    picture = picture_of(result)
    assert not picture[:19, :, 3].any()
    assert picture[21:, :, 3].all()
    told: Any = result.metadata["statistics"]
    assert (told["valid"], [band["index"] for band in told["bands"]]) == (800, [1])


def test_bands_that_the_job_names_are_shown(tmp_path: Path) -> None:
    """`bands` can show three measurements as colors. A note names their common stretch."""
    names = ("Elevation", "Uncertainty", "Contributor")
    source = Tiff(measured(), descriptions=names, profile=GRAY).write(tmp_path / "a.tif")
    choices: Any = run(source, tmp_path / "out", bands=(3, 2, 1)).metadata["choices"]
    assert choices["bands"]["indexes"] == [3, 2, 1]
    assert "one stretch for three bands" in choices["notes"][0]


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside this checkout")
def test_case_of_named_measurements(tmp_path: Path) -> None:
    """Elevation in gray, black at its lowest and white at its highest."""
    result = run(CASES / "named-measurements.tif", tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["bands"]["indexes"] == [1]
    assert -20 < choices["stretch"]["lo"] < choices["stretch"]["hi"] < 0.1
    assert "Elevation, Uncertainty, Contributor" in choices["bands"]["reason"]
