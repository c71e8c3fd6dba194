"""A cloud optimized GeoTIFF has the metadata and pixels of its source, and a valid layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rio_cogeo.cogeo import cog_validate

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.handlers import TaskRequest, TaskResult
from geoprocessing_worker.render.task_options import CogOptions
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.cog.check import check_copy
from geoprocessing_worker.tasks.cog.job import make_cog
from tests.support.rasters import UTM, Tiff, quarters, quiet

RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 255, (3, 600, 700), dtype=np.uint8)
CORNERS = [
    GroundControlPoint(row, column, x, y)
    for row, column, x, y in [(0, 0, 44, 16), (0, 700, 45, 16.1), (600, 0, 44.1, 15), (600, 700, 45.1, 15.1)]
]


def cog(source: Path, folder: Path, **payload: Any) -> TaskResult:
    folder.mkdir(exist_ok=True)
    options = CogOptions.from_payload(payload)
    request = TaskRequest(
        source=source, output_folder=folder, stem=source.stem, options=options, source_name=source.name
    )
    return make_cog(request, quiet)


def mask(height: int, width: int) -> Any:
    hidden = np.full((height, width), 255, dtype=np.uint8)
    hidden[: height // 3] = 0
    return hidden


KINDS = {
    "color": Tiff(NOISE, "EPSG:32638", UTM, colors=("red", "green", "blue")),
    "nodata and descriptions": Tiff(
        RNG.normal(size=(2, 600, 700)).astype("float32"), nodata=-9999, descriptions=("height", "slope")
    ),
    "mask": Tiff(NOISE, mask=mask(600, 700)),
    "alpha": Tiff(RNG.integers(0, 255, (4, 600, 700), dtype=np.uint8), colors=("red", "green", "blue", "alpha")),
    "palette": Tiff(
        RNG.integers(0, 3, (1, 600, 700), dtype=np.uint8), palette={1: (255, 0, 0, 255), 2: (0, 9, 0, 255)}
    ),
    "table of two colors": Tiff(
        RNG.integers(0, 2, (1, 600, 700), dtype=np.uint8),
        palette={0: (255, 0, 0, 255), 1: (0, 0, 255, 255)},
        profile={"nbits": 1, "photometric": "palette"},
    ),
    "turned": Tiff(NOISE, "EPSG:32638", UTM @ Affine.rotation(25)),
    "south up": Tiff(NOISE, "EPSG:32638", Affine(30, 0, 400_000, 0, 30, 1_600_000)),
    "control points": Tiff(NOISE, None, None, gcps=(CORNERS, "EPSG:4326")),
    "no place": Tiff(NOISE[:1], None, None),
    "int16, twelve bits of them": Tiff(RNG.integers(0, 4095, (1, 600, 700)).astype("uint16"), profile={"nbits": 12}),
    "complex": Tiff(RNG.normal(size=(1, 300, 600)).astype("complex64")),
    "narrow": Tiff(RNG.integers(0, 255, (1, 900, 3), dtype=np.uint8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_and_fact_is_kept(kind: str, tmp_path: Path) -> None:
    """Compared here once more, and wholly: each band, the mask, and each fact that a header has."""
    source = KINDS[kind].write(tmp_path / "map.tif")
    made, companion = cog(source, tmp_path / "out").outputs
    assert (made.name, companion.name) == ("map.tif", "map.json")
    with gdal_environment():
        _, errors, _ = cog_validate(str(made.path), quiet=True)
    assert [error for error in errors if "is not tiled" not in error] == []
    with gdal_environment(), rasterio.open(source) as before, rasterio.open(made.path) as after:
        np.testing.assert_array_equal(after.read(), before.read())
        np.testing.assert_array_equal(after.dataset_mask(), before.dataset_mask())
        for fact in ("crs", "transform", "nodatavals", "descriptions", "colorinterp", "dtypes", "mask_flag_enums"):
            assert getattr(after, fact) == getattr(before, fact), fact
        assert len(after.gcps[0]) == len(before.gcps[0])
        if kind == "palette":
            assert after.colormap(1)[2] == (0, 9, 0, 255)
        overviews = after.overviews(1)
    assert bool(overviews) == (max(after.shape) > 512)


def test_overviews_of_classes_hold_only_classes(tmp_path: Path) -> None:
    classes = Tiff(RNG.choice(np.array([3, 7, 200], dtype=np.uint8), (1, 1100, 1100))).write(tmp_path / "a.tif")
    heights = Tiff(RNG.normal(1000, 300, (1, 1100, 1100)).astype("float32")).write(tmp_path / "b.tif")
    assert cog(classes, tmp_path / "out").metadata["cog"]["overviewResampling"]["method"] == "nearest"  # type: ignore[index,call-overload]
    assert cog(heights, tmp_path / "out").metadata["cog"]["overviewResampling"]["method"] == "average"  # type: ignore[index,call-overload]
    with rasterio.open(tmp_path / "out" / "a.tif", OVERVIEW_LEVEL=0) as overview:
        assert set(np.unique(overview.read())) <= {3, 7, 200}


@pytest.mark.parametrize("compression", ["zstd", "lzw", "jpeg", "webp"])
def test_the_codec_is_the_payloads(compression: str, tmp_path: Path) -> None:
    source = Tiff(quarters(600), "EPSG:32638", UTM).write(tmp_path / "map.tif")
    made = cog(source, tmp_path / "out", compression=compression.upper(), quality=95).outputs[0]
    with rasterio.open(made.path) as dataset:
        assert dataset.compression.value.lower() in {compression, "ycbcr jpeg"}
        assert np.abs(dataset.read()[:, 100, 100].astype(int) - [255, 0, 0]).max() < 10


@pytest.mark.parametrize(
    ("tiff", "compression"),
    [
        (Tiff(np.zeros((1, 40, 40), "uint16")), "jpeg"),
        (Tiff(np.zeros((2, 40, 40), "uint8")), "jpeg"),
        (Tiff(np.zeros((1, 40, 40), "uint8")), "webp"),
        (KINDS["palette"], "jpeg"),
    ],
    ids=["wide", "two bands", "gray", "palette"],
)
def test_a_codec_that_cannot_hold_the_bands_is_refused_by_name(tiff: Tiff, compression: str, tmp_path: Path) -> None:
    source = tiff.write(tmp_path / "map.tif")
    with pytest.raises(JobError, match=f"compression was '{compression}'") as caught:
        cog(source, tmp_path / "out", compression=compression)
    assert caught.value.code == "invalid_payload"


@pytest.mark.parametrize("page", [1, 2])
def test_no_page_gets_the_mask_of_another_or_loses_its_own(page: int, tmp_path: Path) -> None:
    """Alone, GDAL would copy the second page without its mask, and the first one with that mask."""
    source = tmp_path / "map.tif"
    Tiff(NOISE[:1]).write(source)
    Tiff(NOISE[:1], mask=mask(600, 700), profile={"APPEND_SUBDATASET": "YES"}).write(source)
    with rasterio.open(cog(source, tmp_path / "out", page=page).outputs[0].path) as made:
        np.testing.assert_array_equal(made.read(1), NOISE[0])
        np.testing.assert_array_equal(made.dataset_mask(), mask(600, 700) if page == 2 else np.full((600, 700), 255))
    assert [file.name for file in (tmp_path / "out").iterdir() if file.name.startswith(".")] == []


def test_pages_without_masks_or_with_the_first_ones_are_copied(tmp_path: Path) -> None:
    """Pages that GDAL copies correctly are not refused."""
    source = tmp_path / "map.tif"
    Tiff(NOISE[:1], mask=mask(600, 700)).write(source)
    Tiff(NOISE[1:2], profile={"APPEND_SUBDATASET": "YES"}).write(source)
    for page in (1, 2):
        with rasterio.open(cog(source, tmp_path / "out", page=page).outputs[0].path) as made:
            np.testing.assert_array_equal(made.read(1), NOISE[page - 1])
            assert (made.dataset_mask() == 255).all() == (page == 2)


def test_white_as_zero_is_refused_rather_than_turned_round(tmp_path: Path) -> None:
    source = Tiff(NOISE[:1], profile={"photometric": "MINISWHITE"}).write(tmp_path / "map.tif")
    with pytest.raises(JobError) as caught:
        cog(source, tmp_path / "out")
    assert caught.value.code == "unsupported_photometric"


def test_a_web_optimized_one_lies_on_the_tiles_of_web_maps(tmp_path: Path) -> None:
    source = Tiff(quarters(700), "EPSG:32638", UTM).write(tmp_path / "map.tif")
    made, companion = cog(source, tmp_path / "out", webOptimized=True).outputs
    with rasterio.open(made.path) as dataset:
        assert dataset.crs.to_epsg() == 3857
        assert dataset.tags(ns="TILING_SCHEME")["NAME"].lower() == "googlemapscompatible"
        # All four colors meet in the source's middle, 10,500 m east and south of its corner. North-west is red.
        xs, ys = rasterio.warp.transform("EPSG:32638", "EPSG:3857", [400_000 + 5_000], [1_700_000 - 5_000])
        assert next(dataset.sample([(xs[0], ys[0])])).tolist()[:3] == [255, 0, 0]
    assert json.loads(companion.path.read_text())["properties"]["proj:code"] == "EPSG:3857"


def test_the_metadata_describe_the_copy(tmp_path: Path) -> None:
    source = KINDS["nodata and descriptions"].write(tmp_path / "map.tif")
    result = cog(source, tmp_path / "out")
    item = json.loads(result.outputs[1].path.read_text())
    assert item["assets"]["data"]["href"] == "map.tif"
    assert item["geoprocessing"]["cog"]["compression"] == "deflate"
    assert item["geoprocessing"]["source"]["bands"][0]["description"] == "height"
    assert set(result.timings) == {"inspect", "translate", "check"}


def test_a_copy_that_is_not_one_does_not_leave(tmp_path: Path) -> None:
    """Other pixels, another place, another nodata value: each is found by the check before upload."""
    right = Tiff(NOISE, "EPSG:32638", UTM, nodata=7).write(tmp_path / "right.tif")
    for name, wrong in {
        "pixels": Tiff(255 - NOISE, "EPSG:32638", UTM, nodata=7),
        "transform": Tiff(NOISE, "EPSG:32638", UTM @ Affine.translation(1, 0), nodata=7),
        "crs": Tiff(NOISE, "EPSG:32637", UTM, nodata=7),
        "nodata": Tiff(NOISE, "EPSG:32638", UTM, nodata=8),
    }.items():
        made = wrong.write(tmp_path / "wrong.tif")
        with pytest.raises(JobError, match=name) as caught:
            check_copy(right, made, inspect_file(right), inspect_file(made), quality=None)
        assert caught.value.code == "self_check_failed"


@pytest.mark.parametrize(("photometric", "bands"), [("CMYK", 4), ("CMYK", 5), ("CIELAB", 3)])
def test_inks_and_lab_are_refused_by_name(photometric: str, bands: int, tmp_path: Path) -> None:
    """Without a word for them in the result, they would be taken for other colors."""
    source = Tiff(NOISE[[0] * bands, :64, :64], profile={"photometric": photometric}).write(tmp_path / "a.tif")
    with pytest.raises(JobError, match="inks or L") as caught:
        cog(source, tmp_path / "out")
    assert caught.value.code == "unsupported_photometric"


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_black_and_white_scans_keep_their_colors(photometric: str, tmp_path: Path) -> None:
    """GDAL adds a table of two colors to a scan of one bit. The pixels keep their colors."""
    bits = Tiff(RNG.integers(0, 2, (1, 600, 700), dtype=np.uint8), profile={"nbits": 1, "photometric": photometric})
    source = bits.write(tmp_path / "map.tif")
    made = cog(source, tmp_path / "out").outputs[0].path
    white = 1 if photometric == "minisblack" else 0
    with gdal_environment(), rasterio.open(source) as before, rasterio.open(made) as after:
        assert after.colormap(1)[white][:3] == (255, 255, 255)
        assert after.colormap(1)[1 - white][:3] == (0, 0, 0)
        assert (before.read() == after.read()).all()


def test_places_that_gdal_cannot_align_with_web_tiles_are_refused(tmp_path: Path) -> None:
    """The refusal is `unsupported_crs`, since GDAL would place the copy by a polynomial. A plain copy is made."""
    corners = ((0, 0, 15.0, 50.0), (0, 64, 15.4, 50.0), (64, 64, 15.3, 49.6), (64, 0, 15.1, 49.6))
    points = [GroundControlPoint(row=row, col=column, x=x, y=y) for row, column, x, y in corners]
    source = Tiff(quarters(), crs=None, transform=None, gcps=(points, "EPSG:4326")).write(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        cog(source, tmp_path / "web", webOptimized=True)
    assert caught.value.code == "unsupported_crs"
    assert cog(source, tmp_path / "plain").outputs


@pytest.mark.parametrize(
    ("dtype", "bits"), [("uint8", 1), ("uint8", 4), ("uint16", 10), ("uint32", 24), ("float32", 16)]
)
def test_the_rest_of_a_tile_holds_nothing_of_memory(dtype: str, bits: int, tmp_path: Path) -> None:
    """The copy of a small picture of three bands and few bits is the same each time, whatever the memory held."""
    data = RNG.integers(0, 2, (3, 43, 73)).astype(dtype)
    source = Tiff(data, profile={"nbits": bits}).write(tmp_path / "a.tif")
    copies = set()
    for number in range(6):
        used = [np.full(size, number + 1, dtype=np.uint8) for size in RNG.integers(1000, 1 << 21, 20)]
        del used
        copies.add(cog(source, tmp_path / str(number)).outputs[0].path.read_bytes())
    assert len(copies) == 1
    with rasterio.open(tmp_path / "0" / "a.tif") as copy:
        assert np.array_equal(copy.read(), data)
