"""The whole pipeline on rasters built by code: right colors, right holes, right places, same bytes."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from PIL import Image
from pyproj import CRS, Transformer
from rasterio.control import GroundControlPoint

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.output.encode import thumbnail
from geoprocessing_worker.raster import Grid, Picture
from geoprocessing_worker.render.options import OutputFormat, RenderOptions
from geoprocessing_worker.tasks.picture import ConversionResult, explain
from tests.support.rasters import DEGREES, UTM, Tiff, picture_of, quarters, ramp, run

RED, GREEN, BLUE, WHITE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (255, 255, 255, 255)


def corners_of(picture: Any) -> list[tuple[int, ...]]:
    """The colors in the middle of the upper left, upper right, lower left and lower right quarter."""
    h, w = picture.shape[:2]
    places = ((h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4))
    return [tuple(int(v) for v in picture[place]) for place in places]


def reopened(path: Path) -> tuple[Any, Any]:
    with rasterio.open(path) as dataset:
        return dataset.crs, dataset.transform


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32638", "EPSG:3857"])
@pytest.mark.parametrize("flip", [False, True], ids=["north-up", "south-up"])
def test_known_colors_lie_where_they_belong(crs: str, flip: bool, tmp_path: Path) -> None:
    """Red is north-west whatever the system and whichever way the rows run."""
    transform = DEGREES if crs == "EPSG:4326" else UTM
    data = quarters()
    if flip:
        transform = transform @ Affine(1, 0, 0, 0, -1, 64)
        data = data[:, ::-1]
    source = Tiff(data, crs=crs, transform=transform).write(tmp_path / "a.tif")
    assert corners_of(picture_of(run(source, tmp_path / "out"))) == [RED, GREEN, BLUE, WHITE]


def test_rotated_file_comes_out_north_up(tmp_path: Path) -> None:
    """A file turned by 90 degrees shows its colors turned, and GDAL reports no rotation."""
    turned = Affine.translation(400_000, 1_700_000) @ Affine.rotation(-90) @ Affine.scale(30, -30)
    result = run(Tiff(quarters(), crs="EPSG:32638", transform=turned).write(tmp_path / "a.tif"), tmp_path / "out")
    # Turned clockwise: the lower left corner becomes the upper left one.
    assert corners_of(picture_of(result)) == [BLUE, RED, WHITE, GREEN]
    assert reopened(result.outputs[0].path)[1].is_rectilinear


def test_rotated_file_that_is_in_the_system_already_comes_out_north_up(tmp_path: Path) -> None:
    """A web map draws a picture between two corners: one in degrees is turned, too, unless native was asked for."""
    turned = Affine.translation(44, 16) @ Affine.rotation(-90) @ Affine.scale(0.01, -0.01)
    source = Tiff(quarters(), transform=turned).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    assert corners_of(picture_of(result)) == [BLUE, RED, WHITE, GREEN]
    assert reopened(result.outputs[0].path)[1].is_rectilinear
    native = run(source, tmp_path / "native", coordinate_system="native")
    assert corners_of(picture_of(native)) == [RED, GREEN, BLUE, WHITE]
    assert reopened(native.outputs[0].path)[1].b == pytest.approx(turned.b)


def test_ground_control_points_place_the_picture(tmp_path: Path) -> None:
    """A file with only ground control points is placed by them."""
    points = [
        GroundControlPoint(row=row, col=col, x=44 + col * 0.01, y=16 - row * 0.01)
        for row in (0, 32, 64)
        for col in (0, 32, 64)
    ]
    source = Tiff(quarters(), crs=None, transform=None, gcps=(points, "EPSG:4326")).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    assert result.metadata["bboxLonLat"] == pytest.approx([44.0, 15.36, 44.64, 16.0], abs=1e-6)
    assert corners_of(picture_of(result)) == [RED, GREEN, BLUE, WHITE]


def test_gdal_reports_system_and_corners_from_the_aux_file(tmp_path: Path) -> None:
    """GDAL opens PNG and .aux.xml as EPSG:4326, its outline round that of the UTM source."""
    source = Tiff(quarters(200), crs="EPSG:32638", transform=UTM).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    crs, transform = reopened(result.outputs[0].path)
    assert crs.to_epsg() == 4326
    west, south, east, north = rasterio.warp.transform_bounds("EPSG:32638", crs, 4e5, 1_694_000, 406_000, 1.7e6)
    width, height = result.metadata["width"], result.metadata["height"]
    assert (transform.c, transform.f) == pytest.approx((west, north), abs=transform.a)
    assert transform @ (width, height) == pytest.approx((east, south), abs=transform.a)


@pytest.mark.parametrize("gone", ["a.png.aux.xml", "a.pgw"])
def test_each_sidecar_alone_gives_the_same_corners(gone: str, tmp_path: Path) -> None:
    """With only the world file or only the .aux.xml GDAL finds the same transform."""
    source = Tiff(quarters(200), crs="EPSG:32638", transform=UTM).write(tmp_path / "a.tif")
    path = run(source, tmp_path / "out").outputs[0].path
    with_both = reopened(path)[1]
    path.with_name(gone).unlink()
    assert tuple(reopened(path)[1]) == pytest.approx(tuple(with_both), rel=1e-12)


@pytest.mark.parametrize("way", ["nodata", "nan", "mask", "alpha"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32638"])
def test_invalid_pixels_are_hidden_and_valid_ones_shown(way: str, crs: str, tmp_path: Path) -> None:
    """The right half, declared invalid in each way that a GeoTIFF has, is hidden. The left half is visible."""
    data: Any = ramp(64, 64, "float32", 1, 1000)
    extra: dict[str, Any] = {}
    if way == "nodata":
        data[:, :, 32:] = -9999
        extra = {"nodata": -9999}
    elif way == "nan":
        data[:, :, 32:] = np.nan
    elif way == "mask":
        extra = {"mask": np.where(np.arange(64) < 32, 255, 0).astype("uint8")[None].repeat(64, axis=0)}
    else:
        data = np.concatenate([ramp(64, 64), ramp(64, 64)])
        data[1] = np.where(np.arange(64) < 32, 255, 0)
        extra = {"colors": ["gray", "alpha"]}
    transform = DEGREES if crs == "EPSG:4326" else UTM
    picture = picture_of(
        run(Tiff(data, crs=crs, transform=transform, **extra).write(tmp_path / "a.tif"), tmp_path / "o")
    )
    h, w = picture.shape[:2]
    assert (picture[4 : h - 4, 4 : w // 2 - 4, 3] == 255).all()
    assert (picture[:, w // 2 + 4 :, 3] == 0).all()


def test_real_black_is_data(tmp_path: Path) -> None:
    """Black pixels without a nodata value stay opaque and black."""
    result = run(Tiff(np.zeros((3, 32, 32), dtype=np.uint8)).write(tmp_path / "a.tif"), tmp_path / "out")
    assert (picture_of(result) == (0, 0, 0, 255)).all()


def test_fourth_band_without_the_word_alpha_is_not_alpha(tmp_path: Path) -> None:
    """Near infrared of 0 hides nothing."""
    data = np.concatenate([quarters(), np.zeros((1, 64, 64), dtype=np.uint8)])
    source = Tiff(data, colors=["red", "green", "blue", "undefined"], profile={"photometric": "RGB", "alpha": "NO"})
    picture = picture_of(run(source.write(tmp_path / "a.tif"), tmp_path / "out"))
    assert (picture[..., 3] == 255).all()


def test_band_order_follows_color_interpretation(tmp_path: Path) -> None:
    """Bands stored blue, green, red come out red, green, blue."""
    source = Tiff(quarters()[::-1], colors=["blue", "green", "red"], profile={"photometric": "MINISBLACK"})
    assert corners_of(picture_of(run(source.write(tmp_path / "a.tif"), tmp_path / "out")))[0] == RED


def test_palette_stays_a_palette(tmp_path: Path) -> None:
    """Only entries of the table appear, in a palette PNG, and the nodata index is transparent, even when warped."""
    index = np.where(np.arange(300)[None] < 150, 1, 2).astype("uint8").repeat(300, axis=0)[None]
    index[:, :40] = 0
    palette = {0: (9, 9, 9, 255), 1: (200, 30, 30, 255), 2: (30, 30, 200, 255)}
    source = Tiff(index, crs="EPSG:32638", transform=UTM, nodata=0, palette=palette).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=100)
    with Image.open(result.outputs[0].path) as image:
        assert image.mode == "P"
    colors = {tuple(int(v) for v in c) for c in np.unique(picture_of(result).reshape(-1, 4), axis=0)}
    assert {c for c in colors if c[3]} == {(200, 30, 30, 255), (30, 30, 200, 255)}
    assert any(c[3] == 0 for c in colors)


def test_one_stretch_holds_for_red_green_and_blue(tmp_path: Path) -> None:
    """Green twice as strong as red stays so. A stretch for each band would turn all gray."""
    step = ramp(60, 60, "uint16", 0, 10_000)[0]
    data = np.stack([step // 2, step, step // 4])
    source = Tiff(data, colors=["red", "green", "blue"], profile={"photometric": "RGB"}).write(tmp_path / "a.tif")
    found = picture_of(run(source, tmp_path / "out", stretch="minmax"))[..., :3].astype(int)
    assert np.abs(found[..., 1] - 2 * found[..., 0]).max() <= 2
    assert np.abs(found[..., 1] - 4 * found[..., 2]).max() <= 4


@pytest.mark.parametrize("max_size", [90, 600])
def test_ycbcr_is_shown_in_its_colors(max_size: int, tmp_path: Path) -> None:
    """JPEG inside of a TIFF, read whole or from an overview."""
    profile = {"compress": "jpeg", "photometric": "YCBCR", "tiled": True, "blockxsize": 256, "blockysize": 256}
    source = Tiff(quarters(600), overviews=(2, 4), profile=profile).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=max_size)
    picture = picture_of(result).astype(int)
    choices: Any = result.metadata["choices"]
    assert (choices["read"]["overview"] is not None) == (max_size == 90)
    side = len(picture)
    places = (side // 4, side // 4), (side // 4, 3 * side // 4), (3 * side // 4, side // 4), (3 * side // 4,) * 2
    for place, color in zip(places, ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)), strict=True):
        assert np.abs(picture[place][:3] - color).max() < 12


GRAYS, HOLE = ramp(40, 40)[0], np.where(np.arange(1600).reshape(40, 40) < 800, 0, 255).astype(np.uint8)
MODES = {
    "L": Tiff(np.stack([GRAYS] * 3)),
    "LA": Tiff(np.stack([GRAYS] * 3), mask=HOLE),
    "RGB": Tiff(quarters(40)),
    "RGBA": Tiff(quarters(40), mask=HOLE),
    "P": Tiff(quarters(40)[:1] // 255, palette={0: (9, 9, 9, 255), 1: (200, 0, 0, 255)}, mask=HOLE),
}


@pytest.mark.parametrize("mode", MODES)
def test_smallest_mode_that_loses_nothing_is_written(mode: str, tmp_path: Path) -> None:
    """Red, green and blue that are the same everywhere are gray, and a mask that hides nothing is none."""
    for number, mask in enumerate((MODES[mode].mask, np.full((40, 40), 255, dtype=np.uint8))):
        source = replace(MODES[mode], mask=mask).write(tmp_path / f"{number}.tif")
        with Image.open(run(source, tmp_path / "out").outputs[0].path) as image:
            assert image.mode == (mode if number == 0 else mode.removesuffix("A"))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64", "int8"])
def test_values_can_be_read_back_from_the_picture(dtype: str, tmp_path: Path) -> None:
    """pixel and the lo and hi of the metadata give the value again, to a step and a half, in every type."""
    low, high = (-100, 100) if dtype == "int8" else (0, 4000)
    data = ramp(100, 100, dtype, low, high)
    result = run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    lo, hi = choices["stretch"]["lo"], choices["stretch"]["hi"]
    back = lo + picture_of(result)[..., 0] / 255 * (hi - lo)
    assert np.abs(back - np.clip(data[0].astype(float), lo, hi)).max() <= (hi - lo) / 255 * 0.51


@pytest.mark.parametrize("size", [77, 4096], ids=["reduced", "as large"])
def test_no_color_bleeds_at_the_edge_of_a_mask(size: int, tmp_path: Path) -> None:
    """Red beside hidden green, warped: no pixel that shows has green in it."""
    data = np.zeros((3, 300, 300), dtype=np.uint8)
    data[0, :, :150], data[1, :, 150:] = 255, 255
    mask = np.where(np.arange(300) < 150, 255, 0).astype("uint8")[None].repeat(300, axis=0)
    source = Tiff(data, crs="EPSG:32638", transform=UTM, mask=mask).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=size))
    shown = picture[picture[..., 3] > 16]
    assert shown[:, 0].min() > 245
    assert shown[:, 1].max() < 10


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    """A retry makes every file again to the last byte."""
    source = Tiff(quarters(200), crs="EPSG:32638", transform=UTM).write(tmp_path / "a.tif")
    first, second = run(source, tmp_path / "one"), run(source, tmp_path / "two")
    assert {f.name: f.sha256 for f in first.outputs} == {f.name: f.sha256 for f in second.outputs}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("png", {"a.png", "a.pgw", "a.png.aux.xml", "a.prj", "a.json", "a_thumb.png"}),
        ("jpeg", {"a.jpg", "a.jgw", "a.jpg.aux.xml", "a.prj", "a.json", "a_thumb.png"}),
        ("webp", {"a.webp", "a.wpw", "a.webp.aux.xml", "a.prj", "a.json", "a_thumb.png"}),
    ],
)
def test_outputs_have_their_names_and_nothing_else_is_left(wanted: str, names: set[str], tmp_path: Path) -> None:
    """Each format has its own sidecars. No temporary file stays, and reported sizes are those on disk."""
    source = Tiff(quarters(100)).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", output_format=OutputFormat(wanted))
    assert {f.name for f in result.outputs} == names
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert all(f.path.stat().st_size == f.size_bytes for f in result.outputs)
    corners = np.array(corners_of(picture_of(result)), dtype=int)
    assert np.abs(corners - np.array([RED, GREEN, BLUE, WHITE])).max() < 12


def test_jpeg_shows_white_where_nothing_is_valid(tmp_path: Path) -> None:
    """JPEG has no transparency. Hidden pixels are white, and a note in the metadata explains this."""
    data = np.full((3, 64, 64), 10, dtype=np.uint8)
    data[:, :, 32:] = 0
    result = run(Tiff(data, nodata=0).write(tmp_path / "a.tif"), tmp_path / "out", output_format=OutputFormat.JPEG)
    assert picture_of(result)[5:-5, 45:-5, :3].min() > 245
    choices: Any = result.metadata["choices"]
    assert any("JPEG" in note for note in choices["notes"])


def test_thumbnail_fits_and_keeps_its_transparency(tmp_path: Path) -> None:
    """At most 64 pixels, straight color as far as it can be seen, holes still holes."""
    data = np.full((3, 400, 300), 200, dtype=np.uint8)
    data[:, :, 150:] = 0
    result = run(Tiff(data, nodata=0).write(tmp_path / "a.tif"), tmp_path / "out", thumbnail_size=64)
    with Image.open(result.outputs[-1].path) as image:
        assert image.size == (48, 64)
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[:, 30:, 3] == 0).all()
    seen = np.abs(pixels[..., :3].astype(float) - 200) * pixels[..., 3:] / 255
    assert seen.max() <= 3
    assert np.abs(pixels[:, :20, :3].astype(int) - 200).max() == 0


@pytest.mark.parametrize("mode", ["gray", "color", "half hidden", "palette"])
def test_thumbnails_have_no_fringe_around_visible_parts(mode: str) -> None:
    """Along an oblique edge every pixel with any opacity has the color of the visible part."""
    rows, columns = np.indices((1000, 1200))
    visible = (rows + 2 * columns > 900) & (columns - rows < 500)
    alpha = np.where(visible, 255 if mode != "half hidden" else 100 + columns % 100, 0).astype(np.uint8)
    colors = np.where(visible, np.uint8(200), np.uint8(0))
    if mode == "palette":
        pixels, palette = visible.astype(np.uint8)[..., None], np.array([(0, 0, 0, 0), (200, 200, 200, 255)], np.uint8)
    else:
        pixels, palette = np.stack([colors] * (1 if mode == "gray" else 3) + [alpha], axis=2), None
    picture = Picture(pixels, palette, Grid(1200, 1000, None, None), float(visible.mean()))
    with Image.open(BytesIO(thumbnail(picture, 100))) as image:
        found = np.asarray(image.convert("RGBA"))
    assert found.shape == (83, 100, 4)
    assert np.abs(found[found[..., 3] > 0][:, :3].astype(int) - 200).max() <= 2
    assert found[0, 0, 3] == 0


def test_without_georeference_nothing_is_made_up(tmp_path: Path) -> None:
    """A plain TIFF gets a picture, a thumbnail and metadata with crs null, and no sidecar that places it."""
    result = run(Tiff(quarters(), crs=None, transform=None).write(tmp_path / "a.tif"), tmp_path / "out")
    assert {f.name for f in result.outputs} == {"a.png", "a.json", "a_thumb.png"}
    assert (result.metadata["crs"], result.metadata["bboxLonLat"]) == (None, None)


def test_metadata_is_strict_json_and_small(tmp_path: Path) -> None:
    """The metadata have no NaN even with NaN as nodata, are a STAC Item, and stay far below 256 kB."""
    data = ramp(64, 64, "float32", 0, 10)
    data[0, :5] = np.nan
    result = run(Tiff(data, nodata=float("nan")).write(tmp_path / "a.tif"), tmp_path / "out")
    path = next(f.path for f in result.outputs if f.name == "a.json")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    item = json.loads(path.read_text(), parse_constant=refuse)
    assert (item["type"], item["stac_version"]) == ("Feature", "1.1.0")
    assert item["geoprocessing"]["source"]["bands"][0]["nodata"] == "nan"
    assert len(json.dumps(result.metadata)) < 100_000


def test_result_can_cross_a_process(tmp_path: Path) -> None:
    """Request and result survive the pipe between the daemon and its child."""
    result = run(Tiff(quarters()).write(tmp_path / "a.tif"), tmp_path / "out")
    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - our own bytes
    assert isinstance(ConversionResult.model_validate_json(result.model_dump_json()), ConversionResult)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_all_nodata_is_a_transparent_picture_with_a_note(tmp_path: Path, dtype: str, output_format: str) -> None:
    """A file without valid pixels becomes an empty picture, since mosaics have empty tiles."""
    source = Tiff(np.zeros((1, 32, 32), dtype=dtype), nodata=0).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", output_format=output_format)
    assert result.metadata["validFraction"] == 0
    choices: Any = result.metadata["choices"]
    assert "no pixel has data" in " ".join(choices["notes"])
    if output_format != "jpeg":
        assert not picture_of(result)[..., 3].any()


def test_constant_raster_is_a_flat_picture(tmp_path: Path) -> None:
    """A file of one value becomes a picture of one color, and the stretch is `constant`."""
    result = run(Tiff(np.full((1, 32, 32), 7.5, dtype=np.float32)).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["stretch"]["kind"] == "constant"
    assert len(np.unique(picture_of(result).reshape(-1, 4), axis=0)) == 1


def test_colormap_colors_single_band_data(tmp_path: Path) -> None:
    """The lowest value takes the ramp's first color, the highest its last."""
    source = Tiff(ramp(50, 50, "float32", 0, 1)).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", colormap="viridis", stretch="minmax"))
    assert tuple(picture[0, 0]) == (0x44, 0x01, 0x54, 255)
    assert tuple(picture[-1, -1]) == (0xFD, 0xE7, 0x25, 255)


def test_band_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The payload's band 9 of 3 is named."""
    with pytest.raises(JobError, match="band 9"):
        run(Tiff(quarters()).write(tmp_path / "a.tif"), tmp_path / "out", bands=(9,))


def test_explain_returns_the_plan_without_rendering(tmp_path: Path) -> None:
    """The same choices as the metadata's, and no file written."""
    source = Tiff(ramp(50, 50, "uint16", 0, 5000)).write(tmp_path / "a.tif")
    assert explain(source, RenderOptions()) == run(source, tmp_path / "out").metadata["choices"]


@pytest.mark.parametrize("code", [2193, 3035, 31467, 2180, 3844, 3413, 3031, 2154, 27700, 5514, 4326, 4258])
def test_gdal_reads_every_order_of_axes_the_right_way_round(code: int, tmp_path: Path) -> None:
    """Northing-first, easting-first or latitude-first: a point of the picture goes to the same place on Earth."""
    area = CRS.from_epsg(code).area_of_use
    assert area is not None
    lon, lat = (area.west + area.east) / 2, (area.south + area.north) / 2
    x, y = Transformer.from_crs(4326, code, always_xy=True).transform(lon, lat)
    step = 0.001 if CRS.from_epsg(code).is_geographic else 50
    source = Tiff(quarters(), crs=f"EPSG:{code}", transform=Affine(step, 0, x, 0, -step, y)).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", coordinate_system="native")
    crs, transform = reopened(result.outputs[0].path)
    assert crs.to_epsg() == code
    there = rasterio.warp.transform(crs, "EPSG:4326", [transform.c], [transform.f])
    assert (there[0][0], there[1][0]) == pytest.approx((lon, lat), abs=1e-5)
