"""Masks of any depth, with a sample for each band, and with overviews that are older than the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from tests.support.rasters import Tiff, picture_of, run
from tests.support.tiffs import DOUBLE, LONG, SHORT, RawTiff, Value, gray

CASES = Path(__file__).parents[3] / "shared" / "cases"
SIZE = 32
PLACE: dict[str, Value] = {
    "t33550": (DOUBLE, [0.01, 0.01, 0]),
    "t33922": (DOUBLE, [0, 0, 0, 44, 16, 0]),
    "t34735": (SHORT, [1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326]),
}
HOLE = np.arange(SIZE) < 10  # columns that are hidden


def with_mask(path: Path, bands: int, mask: NDArray[Any], bits: int | None = None) -> Path:
    """A gray or RGB file of 100s with a (rows, columns, samples) mask as its second IFD. GDAL cannot write one."""
    bits = bits or mask.dtype.itemsize * 8
    rows, columns, samples = mask.shape
    pixels = np.full((SIZE, SIZE, bands), 100, dtype=np.uint8).tobytes()
    kind = {"u": 1, "f": 3}[mask.dtype.kind]
    planes = np.packbits(mask.reshape(rows, -1) > 0, axis=1) if bits == 1 else mask
    parts = [pixels, planes.tobytes()]

    def directories(start: int) -> list[dict[int, Value]]:
        picture = gray(
            SIZE,
            SIZE,
            t258=(SHORT, [8] * bands),
            t262=(SHORT, [2 if bands == 3 else 1]),
            t273=(LONG, [start]),
            t277=(SHORT, [bands]),
            t279=(LONG, [len(pixels)]),
            **PLACE,
        )
        hides = gray(
            columns,
            rows,
            t254=(LONG, [4]),
            t258=(SHORT, [bits] * samples),
            t262=(SHORT, [4]),
            t273=(LONG, [start + len(pixels)]),
            t277=(SHORT, [samples]),
            t279=(LONG, [len(parts[1])]),
            t339=(SHORT, [kind] * samples),
        )
        return [picture, hides]

    head = len(RawTiff(directories(0)).bytes())
    return RawTiff(directories(head), data=b"".join(parts)).write(path)


def mask_of(value: float, dtype: str, samples: int = 1) -> NDArray[Any]:
    mask = np.full((SIZE, SIZE, samples), value).astype(dtype)
    mask[:, HOLE] = 0
    return mask


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(
    ("value", "dtype", "bits"),
    [
        (1, "uint8", 1),
        (1, "uint8", 8),
        (3, "uint8", 8),
        (254, "uint8", 8),
        (255, "uint8", 8),
        (1, "uint16", 16),
        (256, "uint16", 16),
        (65535, "uint16", 16),
        (1 << 24, "uint32", 32),
        (0.25, "float32", 32),
    ],
)
@pytest.mark.parametrize("each", [False, True])
def test_every_value_of_a_mask_but_zero_is_visible(
    value: float, dtype: str, bits: int, bands: int, each: bool, tmp_path: Path
) -> None:
    """Pixels are fully visible or hidden, however deep the mask is and however many samples it has."""
    path = with_mask(tmp_path / "a.tif", bands, mask_of(value, dtype, bands if each else 1), bits)
    result = run(path, tmp_path / "out", coordinate_system="native")
    picture = picture_of(result)
    assert ((picture[..., 3] == 255) == ~HOLE).all()
    assert not picture[:, HOLE, 3].any()
    assert (picture[:, ~HOLE, :3] == 100).all()
    told: Any = result.metadata["source"]
    assert told["mask"]


def test_mask_with_a_sample_for_each_band_hides_where_all_shown_bands_are_hidden(tmp_path: Path) -> None:
    """As with nodata, one valid band makes a color visible. A gray picture has the mask of its own band."""
    mask = mask_of(1, "uint8", 3)
    mask[:16, 20:, 0] = 0
    mask[16:, 20:] = 0
    path = with_mask(tmp_path / "a.tif", 3, mask)
    color = picture_of(run(path, tmp_path / "a", coordinate_system="native"))
    first = picture_of(run(path, tmp_path / "b", coordinate_system="native", bands=(1,)))
    assert (color[:16, 20:, 3] == 255).all()
    assert not color[16:, 20:, 3].any()
    assert not first[:, 20:, 3].any()
    assert (first[:, 10:20, 3] == 255).all()


def test_mask_of_another_size_is_not_the_mask_of_the_picture(tmp_path: Path) -> None:
    """GDAL ignores it as well."""
    path = with_mask(tmp_path / "a.tif", 3, np.zeros((16, 16, 1), dtype=np.uint16))
    assert picture_of(run(path, tmp_path / "out"))[..., 3].all()


LARGE = 900
PROFILE = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}


def masked(path: Path, mask: NDArray[np.bool_], stale: NDArray[np.bool_] | None = None) -> Path:
    """A file with overviews. With `stale` they are of that mask, and the full one is replaced afterwards."""
    first = mask if stale is None else stale
    height, width = mask.shape
    data = np.full((3, height, width), 120, dtype=np.uint8)
    Tiff(data, mask=first.astype(np.uint8) * 255, overviews=(2, 4, 8), profile=PROFILE).write(path)
    if stale is not None:
        with gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask.astype(np.uint8) * 255)
    return path


def disk(size: float = 0.45) -> NDArray[np.bool_]:
    rows, columns = np.indices((LARGE, LARGE)) - LARGE / 2
    inside: NDArray[np.bool_] = np.hypot(rows, columns) < size * LARGE
    return inside


def everything() -> NDArray[np.bool_]:
    return np.ones((LARGE, LARGE), dtype=np.bool_)


def box() -> NDArray[np.bool_]:
    """All but a box of 8 %."""
    shown = everything()
    shown[400:600, 300:660] = False
    return shown


@pytest.mark.parametrize("max_size", [64, 200, 450])
@pytest.mark.parametrize(
    ("mask", "stale"),
    [(disk(), everything()), (everything(), disk()), (box(), everything()), (disk(0.3), disk(0.45))],
    ids=["hole", "no hole any more", "box", "smaller disk"],
)
def test_overviews_that_contradict_the_mask_are_not_used(
    mask: NDArray[np.bool_], stale: NDArray[np.bool_], max_size: int, tmp_path: Path
) -> None:
    """As much is hidden in a small picture as in the full mask, and the metadata have the reason for reading it."""
    path = masked(tmp_path / "a.tif", mask, stale)
    result = run(path, tmp_path / "out", max_size=max_size, coordinate_system="native")
    shown = picture_of(result)[..., 3] / 255
    assert shown.mean() == pytest.approx(mask.mean(), abs=0.03)
    choices: Any = result.metadata["choices"]
    assert choices["read"]["overview"] is None
    assert any("the mask's overviews contradict it" in note for note in choices["notes"])


def speckles() -> NDArray[np.bool_]:
    return np.random.default_rng(1).random((LARGE, LARGE)) > 0.02


def lines() -> NDArray[np.bool_]:
    shown = everything()
    shown[:, ::37] = shown[::53] = False
    return shown


@pytest.mark.parametrize("resampling", ["nearest", "average", "cubic", "lanczos"])
@pytest.mark.parametrize("mask", [disk(), speckles(), lines(), box()], ids=["disk", "speckles", "lines", "box"])
def test_overviews_of_the_same_mask_are_used(mask: NDArray[np.bool_], resampling: str, tmp_path: Path) -> None:
    """Whatever resampling makes of edges, speckles and lines is no contradiction."""
    path = tmp_path / "a.tif"
    data = np.full((3, LARGE, LARGE), 120, dtype=np.uint8)
    Tiff(data, mask=mask.astype(np.uint8) * 255, profile=PROFILE).write(path)
    with gdal_environment(), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], rasterio.enums.Resampling[resampling])
    with gdal_environment():
        header = inspect_file(path)
    assert [level.overview for level in header.levels] == [None, 0, 1, 2]
    assert header.mask_overviews_unlike == 0


def test_overviews_of_an_odd_size_are_used(tmp_path: Path) -> None:
    """Sizes without a common factor move edges by less than a contradiction."""
    rows, columns = np.indices((701, 1103))
    path = masked(tmp_path / "a.tif", (rows // 50 + columns // 70) % 3 > 0)
    with gdal_environment():
        assert len(inspect_file(path).levels) == 4


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside this checkout")
def test_case_of_stale_mask_overviews(tmp_path: Path) -> None:
    """34 % are hidden at 256 pixels."""
    result = run(CASES / "stale-mask-overviews.tif", tmp_path / "out", max_size=256, coordinate_system="native")
    assert np.mean(picture_of(result)[..., 3] == 0) == pytest.approx(0.34, abs=0.01)
