"""Cloud optimized GeoTIFFs of all kinds of sources, made as the worker makes them: in a child without other drivers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.enums import MaskFlags
from rasterio.warp import transform as transformed
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.handlers import TaskRequest, TaskResult
from geoprocessing_worker.render.task_options import CogOptions
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.cog.check import check_copy, check_web_copy, refuse_unsteady
from geoprocessing_worker.tasks.cog.job import make_cog
from geoprocessing_worker.tasks.cog.layout import TileLayout, faults_of_layout
from tests.support.rasters import UTM, Tiff
from tests.support.raw_tiff import ASCII, DOUBLE, GEO_KEYS, PIXEL_SCALE, SHORT, TIE_POINT, write_raw_tiff

RNG = np.random.default_rng(12)
CASES = Path(__file__).parents[3] / "shared" / "cases"
SIDE = 600


def notes(result: TaskResult) -> list[str]:
    """Return the notes of a job."""
    told: Any = result.metadata["cog"]
    return list(told["notes"])


async def cog(source: Path, **payload: Any) -> TaskResult:
    """As the worker does it."""
    folder = source.parent / "out"
    folder.mkdir(exist_ok=True)
    request = TaskRequest(source, folder, source.stem, CogOptions.from_payload(payload), source.name)
    box = Sandbox(make_cog, TaskResult, preload=("geoprocessing_worker.tasks.preload",))
    return await box.run(request, lambda *_: None, AllowedPaths((source,), (folder,)))


def smooth(bands: int, width: int = SIDE, height: int = SIDE) -> Any:
    """(bands, height, width) bytes that a lossy codec keeps well."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(np.hypot(rows, columns * (band + 1)) / 4).astype(np.uint8) for band in range(bands)])


def disc() -> Any:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(rows - 250, columns - 350) < 200


def rgba(path: Path, alpha: Any) -> Path:
    """Smooth colors, and noise wherever `alpha` is 0."""
    data = np.concatenate([smooth(3), alpha[None].astype(np.uint8)])
    data[:3, alpha == 0] = RNG.integers(0, 255, (3, int((alpha == 0).sum())))
    return Tiff(data, "EPSG:32638", UTM, colors=("red", "green", "blue", "alpha")).write(path)


def add_statistics(path: Path) -> Path:
    """As QGIS and `gdalinfo -stats` leave them."""
    values = {"MINIMUM": 0, "MAXIMUM": 255, "MEAN": 100, "STDDEV": 40, "VALID_PERCENT": 100}
    with rasterio.open(path, "r+") as dataset:
        for index in dataset.indexes:
            dataset.update_tags(index, **{f"STATISTICS_{name}": value for name, value in values.items()})
    return path


# -- copies that GDAL makes with a VRT dataset ------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{}, {"webOptimized": True}, {"compression": "zstd"}], ids=str)
async def test_a_file_with_stored_statistics_is_copied(payload: dict[str, Any], tmp_path: Path) -> None:
    """`STATISTICS_*` tags are no reason to refuse a file, and its pixels are the same."""
    source = add_statistics(
        Tiff(smooth(1).astype("float32"), "EPSG:32638", UTM, nodata=-9999).write(tmp_path / "a.tif")
    )
    made = (await cog(source, **payload)).outputs[0].path
    with gdal_environment(), rasterio.open(made) as after, rasterio.open(source) as before:
        assert cog_validate(str(made), strict=True, quiet=True)[0]
        if not payload.get("webOptimized"):
            np.testing.assert_array_equal(after.read(), before.read())


ALPHAS: dict[str, Callable[[], Any]] = {
    "hard": lambda: np.where(disc(), 255, 0),
    "soft": lambda: np.clip(450 - np.hypot(*np.mgrid[-250:350, -350:250]), 0, 255),
    "a strip": lambda: np.where(np.arange(SIDE) < 3, 255, 0) * np.ones((SIDE, 1)),
}


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("kind", ALPHAS)
async def test_alpha_becomes_the_mask_of_a_jpeg(kind: str, statistics: bool, tmp_path: Path) -> None:
    """The copy has YCbCr and a mask. Pixels with any opacity are visible in their own colors, with a note."""
    alpha = ALPHAS[kind]().astype(np.uint8)
    source = rgba(tmp_path / "a.tif", alpha)
    if statistics:
        add_statistics(source)
    result = await cog(source, compression="jpeg", quality=90)
    with gdal_environment(), rasterio.open(result.outputs[0].path) as made:
        assert (made.count, made.photometric.value, made.mask_flag_enums[0]) == (3, "YCbCr", [MaskFlags.per_dataset])
        np.testing.assert_array_equal(made.read_masks(1) > 0, alpha > 0)
        if kind != "a strip":  # three pixels among noise, which share their color with it
            off = np.abs(made.read().astype(int) - smooth(3))[:, disc()]
            assert off.mean() < 6
    assert "alpha band became a mask" in notes(result)[0]


@pytest.mark.parametrize("compression", ["jpeg", "webp", "deflate"])
async def test_a_web_optimized_one_hides_what_alpha_hides(compression: str, tmp_path: Path) -> None:
    source = rgba(tmp_path / "a.tif", np.where(disc(), 255, 0))
    made = (await cog(source, compression=compression, webOptimized=True)).outputs[0].path
    xs, ys = transformed("EPSG:32638", "EPSG:3857", *zip(UTM @ (350, 250), UTM @ (10, 10), strict=True))
    with gdal_environment(), rasterio.open(made) as dataset:
        column, row = (~dataset.transform) @ (xs[0], ys[0])
        inside = dataset.dataset_mask()[int(row), int(column)]
        column, row = (~dataset.transform) @ (xs[1], ys[1])
        assert (inside, dataset.dataset_mask()[int(row), int(column)]) == (255, 0)


# -- lossy codecs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 10, 85])
@pytest.mark.parametrize("compression", ["jpeg", "webp"])
@pytest.mark.parametrize("web", [False, True])
async def test_neither_quality_nor_hidden_colors_fail_the_check(
    web: bool, compression: str, quality: int, tmp_path: Path
) -> None:
    """Codecs change colors under alpha 0 freely, and at low quality single visible pixels too."""
    alpha = np.where(np.add.outer(np.arange(SIDE) // 7, np.arange(SIDE) // 5) % 2, 255, 0)
    for source in (
        rgba(tmp_path / "a.tif", alpha),
        Tiff(RNG.integers(0, 255, (3, SIDE, SIDE), dtype=np.uint8), "EPSG:32638", UTM).write(tmp_path / "b.tif"),
    ):
        assert (await cog(source, compression=compression, quality=quality, webOptimized=web)).outputs


@pytest.mark.parametrize("web", [False, True])
async def test_a_lossy_copy_of_something_else_is_found(web: bool, tmp_path: Path) -> None:
    """Other colors where alpha shows them, and other places that it hides."""
    alpha = np.where(disc(), 255, 0)
    source = rgba(tmp_path / "a.tif", alpha)
    header = inspect_file(source)
    for name, other in {
        "colors": Tiff(np.concatenate([255 - smooth(3), alpha[None].astype(np.uint8)]), "EPSG:32638", UTM),
        "places": Tiff(np.concatenate([smooth(3), 255 - alpha[None].astype(np.uint8)]), "EPSG:32638", UTM),
    }.items():
        wrong = Tiff(other.data, other.crs, other.transform, colors=("red", "green", "blue", "alpha"))
        made = (await cog(wrong.write(tmp_path / f"{name}.tif"), compression="webp", webOptimized=web)).outputs[0].path
        check = check_web_copy if web else check_copy
        with gdal_environment(), pytest.raises(JobError) as caught:
            check(source, made, header, inspect_file(made), quality=85)
        assert caught.value.code == "self_check_failed", name


@pytest.mark.parametrize("compression", ["jpeg", "webp"])
async def test_no_room_for_the_alpha_band_of_a_reprojection_is_a_named_refusal(
    compression: str, tmp_path: Path
) -> None:
    """Four bands without alpha become five, which neither codec holds."""
    source = Tiff(smooth(4), "EPSG:32638", UTM, colors=("red", "green", "blue", "undefined")).write(tmp_path / "a.tif")
    with pytest.raises(JobError, match="alpha band that webOptimized adds") as caught:
        await cog(source, compression=compression, webOptimized=True)
    assert caught.value.code == "invalid_payload"


# -- tiles and overviews ---------------------------------------------------------------------------------------------

SIZES = [(1024, 2048, None), (512, 2048, None), (512, 2048, 256), (1024, 10_655, None), (1024, 10_655, 256),
         (2000, 1, None), (2, 2000, None), (1000, 700, 1024), (8192, 700, None), (512, 512, None), (513, 512, 1024),
         (256, 5000, None), (2048, 4096, 1024)]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_rio_cogeo_passes_every_shape(size: tuple[int, int, int | None], tmp_path: Path) -> None:
    """Strictly: tiles and overviews of each size, also where a level is as wide as a tile."""
    width, height, block = size
    source = Tiff(smooth(1, width, height), "EPSG:32638", UTM).write(tmp_path / "a.tif")
    made = (await cog(source, **({} if block is None else {"blockSize": block}))).outputs[0].path
    assert cog_validate(str(made), strict=True, quiet=True) == (True, [], [])
    with rasterio.open(made) as dataset:
        assert block is None or dataset.block_shapes[0] == (block, block)
        assert bool(dataset.overviews(1)) == (max(width, height) > 512)
        np.testing.assert_array_equal(dataset.read(), smooth(1, width, height))


@pytest.mark.parametrize(("width", "height", "block"), [(512, 2048, 512), (1024, 4096, 1024), (256, 3000, 256)])
async def test_a_picture_exactly_one_tile_wide_is_tiled(width: int, height: int, block: int, tmp_path: Path) -> None:
    """The tile size that was asked for is kept, although rio-cogeo takes such a picture for one in strips."""
    source = Tiff(smooth(1, width, height)).write(tmp_path / "a.tif")
    made = (await cog(source, blockSize=block)).outputs[0].path
    assert not cog_validate(str(made), quiet=True)[0]
    with rasterio.open(made) as dataset:
        assert dataset.block_shapes[0] == (block, block)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


async def test_a_column_of_pixels_has_no_overviews(tmp_path: Path) -> None:
    """Overviews as wide as the picture are an error for rio-cogeo. Missing ones are only a warning."""
    source = Tiff(smooth(1, 1, 2000)).write(tmp_path / "a.tif")
    made = (await cog(source)).outputs[0].path
    assert cog_validate(str(made), quiet=True)[:2] == (True, [])
    with rasterio.open(made) as dataset:
        assert dataset.overviews(1) == []


def test_strips_are_still_found(tmp_path: Path) -> None:
    """A file without a TileWidth tag is not tiled, whatever its width."""
    strips = Tiff(smooth(1, 512, 2048), overviews=(2,)).write(tmp_path / "a.tif")
    assert any("not tiled" in fault for fault in faults_of_layout(strips, TileLayout(512, 512, 1)))


# -- coordinate systems that keys cannot hold ------------------------------------------------------------------------

UTM32 = [(1024, 0, 1, 1), (1025, 0, 1, 1), (3072, 0, 1, 25832)]
HEIGHTS = (
    ',VERTCS["WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,298.257223563]],'
    'PARAMETER["Vertical_Shift",0.0],PARAMETER["Direction",1.0],UNIT["Meter",1.0]]'
)


def with_keys(
    path: Path, keys: list[tuple[int, int, int, int]], words: str = "", corner: Any = (500_000, 5_500_000)
) -> Path:
    """Write a picture of 50 by 60 pixels of 30 m with these GeoKeys."""
    flat = [1, 1, 1, len(keys), *(number for key in keys for number in key)]
    tags: Any = {
        GEO_KEYS: (SHORT, flat),
        PIXEL_SCALE: (DOUBLE, (30.0, 30.0, 0.0)),
        TIE_POINT: (DOUBLE, (0.0, 0.0, 0.0, *map(float, corner), 0.0)),
    }
    if words:
        tags[34737] = (ASCII, words.encode() + b"\0")
    return write_raw_tiff(path, smooth(1, 60, 50)[0][..., None], tags=tags)


def by_esri(path: Path, text: str, corner: Any = (500_000, 5_500_000)) -> Path:
    """The system stands in an ESRI PE string."""
    words = f"ESRI PE String = {text}|"
    keys = [(1024, 0, 1, 32767), (1025, 0, 1, 1), (2048, 0, 1, 32767), (3073, 34737, len(words), 0), (3076, 0, 1, 9001)]
    return with_keys(path, keys, words, corner)


async def test_ellipsoidal_heights_of_a_projected_system_are_left_out(tmp_path: Path) -> None:
    """From a vertical key and from an ESRI string. The copy has the horizontal system, and a note names this."""
    for source in (
        with_keys(tmp_path / "a.tif", [*UTM32, (4096, 0, 1, 4937), (4099, 0, 1, 9001)]),
        by_esri(tmp_path / "b.tif", CRS.from_epsg(25832).to_wkt("WKT1_ESRI") + HEIGHTS),
    ):
        result = await cog(source)
        assert "horizontal part" in notes(result)[0]
        with gdal_environment(), rasterio.open(result.outputs[0].path) as made:
            assert made.crs.to_epsg() == 25832
            assert made.transform == Affine(30, 0, 500_000, 0, -30, 5_500_000)
            np.testing.assert_array_equal(made.read(), smooth(1, 60, 50))


async def test_a_system_that_keys_do_not_hold_at_all_is_refused_by_its_name(tmp_path: Path) -> None:
    """The vertical perspective has no projection method in GeoTIFF. A reprojected copy is made."""
    text = CRS("ESRI:54049").to_wkt("WKT1_ESRI")
    source = by_esri(tmp_path / "a.tif", text, (0, 100_000))
    with pytest.raises(JobError, match="World_Vertical_Perspective") as caught:
        await cog(source)
    assert (caught.value.code, caught.value.error_class) == ("unsupported_crs", ErrorClass.INVALID_INPUT)
    with gdal_environment(), rasterio.open((await cog(source, webOptimized=True)).outputs[0].path) as made:
        assert made.crs.to_epsg() == 3857


@pytest.mark.parametrize("code", ["EPSG:8857", "ESRI:54030", "ESRI:54042", "ESRI:54029", "ESRI:54031"])
async def test_systems_in_esris_words_keep_their_place(code: str, tmp_path: Path) -> None:
    """Written as keys, or as the string that the source has."""
    source = by_esri(tmp_path / "a.tif", CRS(code).to_wkt("WKT1_ESRI"), (0, 100_000))
    made = (await cog(source)).outputs[0].path
    with gdal_environment():
        before, after = inspect_file(source), inspect_file(made)
    assert before.crs is not None
    assert after.crs is not None
    assert before.transform == after.transform
    xs, ys = [100.0, 900_000.0], [50_000.0, -2_000_000.0]
    places = [transformed(crs.to_wkt(), "EPSG:4326", xs, ys) for crs in (before.crs, after.crs)]
    np.testing.assert_allclose(places[0], places[1], atol=1e-7)


@pytest.mark.parametrize("height", [4979, 5030, 5773, 5783, 32767])
async def test_other_heights_are_kept(height: int, tmp_path: Path) -> None:
    source = with_keys(tmp_path / "a.tif", [*UTM32, (4096, 0, 1, height), (4099, 0, 1, 9001)])
    result = await cog(source)
    assert notes(result) == []
    with gdal_environment(), rasterio.open(source) as before, rasterio.open(result.outputs[0].path) as after:
        assert before.crs == after.crs


async def test_files_without_a_transform_to_web_mercator_are_refused_by_name(tmp_path: Path) -> None:
    """The Moon, and a place beyond the edge of its own system. Neither is reported as damage."""
    moon = Tiff(smooth(1, 60, 50), CRS.from_user_input("IAU_2015:30100").to_wkt()).write(tmp_path / "moon.tif")
    nowhere = Tiff(smooth(1, 60, 50), "EPSG:2985", Affine(30, 0, 5e7, 0, -30, 9e7)).write(tmp_path / "nowhere.tif")
    for source in (moon, nowhere):
        with pytest.raises(JobError) as caught:
            await cog(source, webOptimized=True)
        assert caught.value.code in {"not_georeferenced", "bad_crs"}


# -- sources that are at fault ---------------------------------------------------------------------------------------


def test_a_source_that_reads_differently_each_time_is_damaged(tmp_path: Path) -> None:
    """A copy that differs from such a source is the source's fault, so the job is not retried."""
    source = Tiff(smooth(1, 60, 50)).write(tmp_path / "a.tif")
    header, window = inspect_file(source), Window(0, 0, 60, 50)
    refuse_unsteady(source, header, [1], window, smooth(1, 60, 50))
    with pytest.raises(JobError) as caught:
        refuse_unsteady(source, header, [1], window, smooth(1, 60, 50) + np.uint8(9))
    assert (caught.value.code, caught.value.error_class) == ("corrupt_block", ErrorClass.INVALID_INPUT)


async def test_scale_without_a_tie_point_is_no_place(tmp_path: Path) -> None:
    """GDAL derives half a transform from it. The file is copied nevertheless."""
    source = with_keys(tmp_path / "a.tif", UTM32)
    content = source.read_bytes().replace(struct.pack("<HH", TIE_POINT, DOUBLE), struct.pack("<HH", 33921, DOUBLE))
    source.write_bytes(content)
    assert (await cog(source)).outputs


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared files are not here")
@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("statistics", {}),
        ("rgba", {"compression": "jpeg"}),
        ("rgba", {"compression": "jpeg", "webOptimized": True}),
        ("p512x2048", {"blockSize": 256}),
        ("p1x2000", {}),
    ],
)
async def test_shared_cases_become_valid_ones(name: str, payload: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / f"{name}.tif"
    source.write_bytes((CASES / f"{name}.tif").read_bytes())
    made = (await cog(source, **payload)).outputs[0].path
    assert cog_validate(str(made), quiet=True)[:2] == (True, [])
