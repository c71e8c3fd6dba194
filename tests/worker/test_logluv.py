"""LogLuv: codes of 16 bits, and X, Y and Z, are shown as the light that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.color.logluv import LOGLUV
from tests.support.rasters import picture_of, run
from tests.support.raw_tiff import write_raw_tiff

LIGHT = np.array([(0.9, 0.1, 0.1), (0.05, 0.3, 0.02), (0.2, 0.2, 0.8), (0.5, 0.5, 0.5)])
SRGB_TO_XYZ = np.array([(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)])


def picture(tmp_path: Path, data: Any, **options: Any) -> Any:
    return picture_of(run(write_raw_tiff(tmp_path / "a.tif", data, LOGLUV), tmp_path / "out", **options))


def stripes(dtype: str) -> Any:
    """(20, 100, 3): each color, then darkness, 20 columns wide."""
    data = np.zeros((20, 100, 3), dtype=dtype)
    xyz = LIGHT @ SRGB_TO_XYZ.T
    for number, (x, y, z) in enumerate(xyz / SRGB_TO_XYZ.sum(axis=1)):
        code: Any = [x, y, z]
        if dtype == "int16":
            whole = x + 15 * y + 3 * z
            code = [256 * (np.log2(y) + 64), 32768 * 4 * x / whole, 32768 * 9 * y / whole]
        data[:, 20 * number : 20 * number + 20] = code
    return data


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_logluv_is_shown_as_light(dtype: str, tmp_path: Path) -> None:
    """A colored stripe keeps its color to the steps of the codes. Gray is gray, and no light is black."""
    found = picture(tmp_path, stripes(dtype), stretch="range:0,1")[10, 10::20, :3]
    assert np.abs(found[:4] - 255 * LIGHT ** (1 / 2.2)).max() <= 3
    assert not found[4].any()


def test_logluv_is_stretched_by_its_own_range(tmp_path: Path) -> None:
    """A scene a thousand times as bright looks the same."""
    data = stripes("int16")
    brighter = data + np.array([2560, 0, 0], dtype=np.int16) * (data[..., :1] > 0)
    one, other = (picture(tmp_path, scene).astype(int) for scene in (data, brighter))
    assert np.abs(one - other).max() <= 2
    assert np.ptp(one[..., 0]) > 150


def test_a_band_of_logluv_that_is_asked_for_is_raw(tmp_path: Path) -> None:
    """One code alone is no light."""
    result = run(write_raw_tiff(tmp_path / "a.tif", stripes("int16"), LOGLUV), tmp_path / "out", bands=(1,))
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["hi"] > 1000
