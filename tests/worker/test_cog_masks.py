"""Masks of any depth, masks beside nodata or alpha, and alpha bands without opacity, in `geotiff_to_cog`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import MaskFlags

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.cog.check import check_copy
from tests.support.rasters import UTM, Tiff
from tests.worker.test_alpha import INFRARED, photograph
from tests.worker.test_alpha import SIZE as SIDE
from tests.worker.test_cog import cog
from tests.worker.test_masks import HOLE, mask_of, with_mask

SIZE = 300
COLORS = np.random.default_rng(3).integers(100, 120, (3, SIZE, SIZE), dtype=np.uint8)
RGBA = ("red", "green", "blue", "alpha")
EACH = "the mask has a sample for each band: in the copy it has one, which hides where all hide"
DATA = "band 4 is called alpha, but holds no opacity: in the copy it is a band of data and hides nothing"


def notes(result: TaskResult) -> list[str]:
    told: Any = result.metadata["cog"]
    return list(told["notes"])


def masked(*, mask_hides: slice, other_hides: slice, alpha: bool) -> Tiff:
    """Colors with a mask that hides some rows, and alpha or nodata 0 that hides some."""
    mask = np.full((SIZE, SIZE), 255, dtype=np.uint8)
    mask[mask_hides] = 0
    if alpha:
        opacity = np.full((1, SIZE, SIZE), 255, dtype=np.uint8)
        opacity[:, other_hides] = 0
        return Tiff(np.concatenate([COLORS, opacity]), colors=RGBA, mask=mask)
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


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(
    ("value", "dtype"), [(1, "uint8"), (1, "uint16"), (256, "uint16"), (1 << 24, "uint32"), (0.25, "float32")]
)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_masks_of_any_depth_become_one_of_bits(
    compression: str, value: float, dtype: str, bands: int, each: bool, tmp_path: Path
) -> None:
    """Each value but 0 stays visible, though GDAL copies masks of bytes and bits alone, and none for single bands."""
    source = with_mask(tmp_path / "a.tif", bands, mask_of(value, dtype, bands if each else 1))
    result = cog(source, tmp_path / "out", compression=compression)
    with rasterio.open(result.outputs[0].path) as made:
        assert made.mask_flag_enums[0] == [MaskFlags.per_dataset]
        np.testing.assert_array_equal(made.dataset_mask() == 255, np.broadcast_to(~HOLE, made.shape))
        assert (made.read()[:, :, ~HOLE] == 100).all()
    assert notes(result) == [EACH] * (each and bands > 1)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_mask_of_16_bits_hides_in_a_web_optimized_copy(tmp_path: Path) -> None:
    """As in the source: the same share of the picture, and none of the visible color is lost."""
    source = with_mask(tmp_path / "a.tif", 3, mask_of(256, "uint16"))
    with rasterio.open(cog(source, tmp_path / "out", webOptimized=True).outputs[0].path) as made:
        visible = made.dataset_mask() == 255
        shares = visible.any(axis=0).sum() / visible.any(axis=1).sum()
        assert shares == pytest.approx((~HOLE).mean() * np.cos(np.deg2rad(15.84)), abs=0.05)
        assert (made.read([1, 2, 3])[:, visible] == 100).all()


def test_a_mask_with_a_sample_for_each_band_hides_where_all_of_them_hide(tmp_path: Path) -> None:
    """A copy has one mask. A pixel is visible if any band shows it, and a note explains this."""
    mask = mask_of(1, "uint8", 3)
    mask[:16, 20:, 0] = 0
    mask[16:, 20:] = 0
    result = cog(with_mask(tmp_path / "a.tif", 3, mask), tmp_path / "out")
    with rasterio.open(result.outputs[0].path) as made:
        np.testing.assert_array_equal(made.dataset_mask() == 255, mask.any(axis=2))
    assert notes(result) == [EACH]


def test_a_copy_with_another_mask_is_rejected(tmp_path: Path) -> None:
    """The check compares masks, for lossless codecs too."""
    source = masked(mask_hides=np.s_[:150], other_hides=np.s_[:0], alpha=False).write(tmp_path / "a.tif")
    other = masked(mask_hides=np.s_[:160], other_hides=np.s_[:0], alpha=False).write(tmp_path / "b.tif")
    with pytest.raises(JobError, match="pixels differ"):
        check_copy(source, other, inspect_file(source), inspect_file(other), quality=None)


def near_infrared(
    path: Path, hides: str = "nothing", *, alpha: str = "YES", names: Sequence[str] = (), mask: Any = None
) -> Path:
    """Write red, green, blue and infrared that is declared alpha. `hides`: zeros in the infrared, or in all bands."""
    data = np.rint(np.stack([*photograph(), INFRARED["like the colors"]]) * 255).astype(np.uint8)
    if hides != "nothing":
        data[3 if hides == "water" else 0 :, 40:55, 40:55] = 0
    profile = {"photometric": "RGB", "alpha": alpha}
    return Tiff(data, "EPSG:32638", UTM, descriptions=names, mask=mask, profile=profile).write(path)


@pytest.mark.parametrize("alpha", ["YES", "PREMULTIPLIED"])
@pytest.mark.parametrize("hides", ["nothing", "water", "collar"])
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_infrared_that_is_called_alpha_is_copied_as_a_band_of_data(
    compression: str, hides: str, alpha: str, tmp_path: Path
) -> None:
    """No mask is made from it, it hides no pixel, and the only note explains this."""
    source = near_infrared(tmp_path / "a.tif", hides, alpha=alpha)
    result = cog(source, tmp_path / "out", compression=compression)
    with rasterio.open(source) as before, rasterio.open(result.outputs[0].path) as made:
        assert [color.name for color in made.colorinterp] == ["red", "green", "blue", "undefined"]
        assert made.mask_flag_enums[0] == [MaskFlags.all_valid]
        off = np.abs(made.read().astype(int) - before.read())
        assert off.max() == 0 if compression == "deflate" else off.mean(axis=(1, 2)).max() < 8
        assert made.crs == before.crs
    assert notes(result) == [DATA]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_band_named_infrared_is_copied_as_data(tmp_path: Path) -> None:
    """Its name decides as in a picture."""
    source = near_infrared(tmp_path / "a.tif", names=("red", "green", "blue", "nir"))
    result = cog(source, tmp_path / "out", compression="jpeg")
    with rasterio.open(result.outputs[0].path) as made:
        assert (made.count, made.descriptions[3], made.mask_flag_enums[0]) == (4, "nir", [MaskFlags.all_valid])
    assert notes(result) == [DATA]


def test_infrared_beside_a_mask_keeps_the_mask_in_a_jpeg(tmp_path: Path) -> None:
    """A band of data does not replace the mask, so that nothing is refused or lost."""
    hidden = np.arange(SIDE) < 32
    mask = np.where(hidden, 0, 255).astype(np.uint8)[:, None].repeat(SIDE, axis=1)
    source = near_infrared(tmp_path / "a.tif", mask=mask)
    with rasterio.open(cog(source, tmp_path / "out", compression="jpeg").outputs[0].path) as made:
        assert made.count == 4
        assert ((made.dataset_mask() == 0).all(axis=1) == hidden).all()


def test_infrared_does_not_weigh_colors_in_a_web_optimized_copy(tmp_path: Path) -> None:
    """Colors of dark water are kept, and all of the picture is visible."""
    source = near_infrared(tmp_path / "a.tif", "water")
    with rasterio.open(cog(source, tmp_path / "out", webOptimized=True, resampling="nearest").outputs[0].path) as made:
        assert [color.name for color in made.colorinterp][3:] == ["undefined", "alpha"]
        visible = made.read(5) == 255
        water = visible & (made.read(4) == 0)
        assert 0.005 < water.sum() / visible.sum() < 0.012
        assert (made.read(1)[water] > 0).all()


@pytest.mark.parametrize(
    ("hides", "payload", "cure"),
    [
        ("water", {"compression": "webp"}, "drops colors where a fourth band is 0.*Use deflate or zstd, or save"),
        ("nothing", {"compression": "webp", "webOptimized": True}, "deflate and zstd hold.*file without band 4"),
        ("nothing", {"compression": "jpeg", "webOptimized": True}, "deflate and zstd hold.*file without band 4"),
    ],
)
def test_a_codec_that_cannot_hold_infrared_is_refused_with_the_cure(
    hides: str, payload: dict[str, Any], cure: str, tmp_path: Path
) -> None:
    """WebP takes a fourth band for opacity, and neither codec holds five bands."""
    with pytest.raises(JobError, match=cure) as caught:
        cog(near_infrared(tmp_path / "a.tif", hides), tmp_path / "out", **payload)
    assert caught.value.code == "invalid_payload"


@pytest.mark.parametrize("hides", ["nothing", "collar"])
def test_webp_holds_infrared_that_is_0_only_where_colors_are(hides: str, tmp_path: Path) -> None:
    """It keeps the fourth band without loss, and drops no color."""
    source = near_infrared(tmp_path / "a.tif", hides)
    result = cog(source, tmp_path / "out", compression="webp")
    with rasterio.open(source) as before, rasterio.open(result.outputs[0].path) as made:
        np.testing.assert_array_equal(made.read(4), before.read(4))
        assert np.abs(made.read([1, 2, 3]).astype(int) - before.read([1, 2, 3])).mean() < 8
    assert notes(result) == [DATA]
