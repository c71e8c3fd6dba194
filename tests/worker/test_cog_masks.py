"""Masks beside nodata or alpha, and alpha bands without opacity, in `geotiff_to_cog`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from geoprocessing_worker.errors import JobError
from tests.support.rasters import Tiff
from tests.worker.test_cog import cog

SIZE = 300
COLORS = np.random.default_rng(3).integers(100, 120, (3, SIZE, SIZE), dtype=np.uint8)
RGBA = ("red", "green", "blue", "alpha")


def masked(*, mask_hides: slice, other_hides: slice, alpha: bool) -> Tiff:
    """Colors with a mask that hides some rows, and alpha or nodata 0 that hides some."""
    mask = np.full((SIZE, SIZE), 255, dtype=np.uint8)
    mask[mask_hides] = 0
    if alpha:
        opacity = np.full((1, SIZE, SIZE), 255, dtype=np.uint8)
        opacity[:, other_hides] = 0
        return Tiff(np.concatenate([COLORS, opacity]), colours=RGBA, mask=mask)
    data = COLORS.copy()
    data[:, other_hides] = 0
    return Tiff(data, nodata=0, mask=mask)


@pytest.mark.parametrize(
    ("alpha", "payload", "cure"),
    [
        (False, {"webOptimized": True}, "a mask and nodata.*Omit webOptimized"),
        (True, {"webOptimized": True}, "a mask and an alpha band.*Omit webOptimized"),
        (True, {"compression": "jpeg"}, "a mask and an alpha band.*Use compression deflate or zstd"),
        (True, {"compression": "jpeg", "webOptimized": True}, "Omit webOptimized and use compression deflate or zstd"),
    ],
)
def test_a_mask_that_gdal_would_drop_is_refused(
    alpha: bool, payload: dict[str, Any], cure: str, tmp_path: Path
) -> None:
    """The copy would show pixels that the file hides."""
    tiff = masked(mask_hides=np.s_[:150], other_hides=np.s_[200:], alpha=alpha)
    with pytest.raises(JobError, match=cure) as caught:
        cog(tiff.write(tmp_path / "a.tif"), tmp_path / "out", **payload)
    assert caught.value.code == "unsupported_mask"


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("mask_hides", [np.s_[:0], np.s_[250:], np.s_[200:]], ids=["nothing", "a part", "the same"])
def test_a_mask_that_hides_no_other_pixel_is_not_refused(alpha: bool, mask_hides: slice, tmp_path: Path) -> None:
    """Nodata or alpha hide as much in the copy, so that nothing is lost with the mask."""
    source = masked(mask_hides=mask_hides, other_hides=np.s_[200:], alpha=alpha).write(tmp_path / "a.tif")
    with rasterio.open(cog(source, tmp_path / "out", webOptimized=True).outputs[0].path) as made:
        x = 44 + SIZE / 2 * 0.01
        hidden = []
        for row in (50, 150, 230, 290):
            at = rasterio.warp.transform("EPSG:4326", made.crs, [x], [16 - row * 0.01])
            column_row = made.index(at[0][0], at[1][0])
            hidden.append(bool(made.dataset_mask()[column_row] == 0))
    assert hidden == [False, False, True, True]


@pytest.mark.parametrize("alpha", [False, True])
def test_a_mask_beside_alpha_or_nodata_is_copied_in_place(alpha: bool, tmp_path: Path) -> None:
    """The cure of the refusal works: a lossless copy in place keeps the mask and the other."""
    source = masked(mask_hides=np.s_[:150], other_hides=np.s_[200:], alpha=alpha).write(tmp_path / "a.tif")
    made = cog(source, tmp_path / "out", compression="zstd").outputs[0].path
    with rasterio.open(source) as before, rasterio.open(made) as after:
        np.testing.assert_array_equal(after.read(), before.read())
        np.testing.assert_array_equal(after.read_masks(1), before.read_masks(1))
