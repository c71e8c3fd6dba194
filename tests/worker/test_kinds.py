"""Kinds of GeoTIFF that other tools get wrong, each built by code and taken through the whole pipeline."""

from __future__ import annotations

import itertools
import json
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image, ImageCms
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.pixel_to_crs import EARTH_GIRTH
from geoprocessing_worker.output.png_writer import color_png, palette_png
from geoprocessing_worker.source.gdal import gdal_environment
from tests.support.rasters import DEGREES, UTM, Tiff, picture_of, quarters, ramp, run
from tests.support.tiffs import DOUBLE, LONG, SHORT, RawTiff, Value, gray

RED, GREEN, BLUE, WHITE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (255, 255, 255, 255)


def middles(picture: Any) -> list[tuple[int, ...]]:
    h, w = picture.shape[:2]
    places = ((h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4))
    return [tuple(int(v) for v in picture[place]) for place in places]


@pytest.mark.parametrize(
    ("longitude", "crs"),
    [(44.5, "EPSG:4326"), *itertools.product((179.9, -179.9), ("EPSG:4326", "EPSG:3857", "EPSG:32601"))],
)
def test_rpc_places_the_picture_at_its_height_with_a_note(longitude: float, crs: str, tmp_path: Path) -> None:
    """A file with only RPCs is placed by them at their own height, marked as approximate.

    Across the date line, named from either side, it is one piece.
    """
    # A point 500 m higher lies half a picture farther along the row.
    first, across, up = [1.0] + 19 * [0.0], [0.0, 1.0, 0.0, 1.0] + 16 * [0.0], [0.0, 0.0, -1.0] + 17 * [0.0]
    rpc = RPC(
        height_off=1200.0, height_scale=500.0, lat_off=15.5, lat_scale=0.32, line_den_coeff=first, line_num_coeff=up,
        line_off=32.0, line_scale=32.0, long_off=longitude, long_scale=0.32, samp_den_coeff=first,
        samp_num_coeff=across, samp_off=32.0, samp_scale=32.0, err_bias=None, err_rand=None,
    )  # fmt: skip
    source = Tiff(quarters(), crs=None, transform=None).write(tmp_path / "a.tif")
    with gdal_environment(), rasterio.open(source, "r+") as dataset:
        dataset.rpcs = rpc
    result = run(source, tmp_path / "out", coordinate_system=crs)
    assert middles(picture_of(result)) == [RED, GREEN, BLUE, WHITE]
    west, south, east, north = np.array(result.metadata["bboxLonLat"], dtype=float)
    assert (west - longitude + 180) % 360 - 180 == pytest.approx(-0.32, abs=0.02)
    assert (east - west, south, north) == pytest.approx((0.64, 15.18, 15.82), abs=0.02)
    if abs(longitude) > 90 and crs != "EPSG:32601":
        item = json.loads((tmp_path / "out" / "a.json").read_text())
        assert item["geometry"]["type"] == "MultiPolygon"
    choices: Any = result.metadata["choices"]
    assert any("approximate" in note for note in choices["notes"])


def test_cmyk_becomes_light(tmp_path: Path) -> None:
    """No ink is white, cyan and magenta are blue, all black is black."""
    inks = np.zeros((4, 30, 90), dtype=np.uint8)
    inks[0, :, 30:60] = inks[1, :, 30:60] = inks[3, :, 60:] = 255
    picture = picture_of(run(Tiff(inks, profile={"photometric": "CMYK"}).write(tmp_path / "a.tif"), tmp_path / "out"))
    assert [tuple(picture[15, x, :3].tolist()) for x in (15, 45, 75)] == [(255, 255, 255), (0, 0, 255), (0, 0, 0)]


def test_associated_alpha_is_made_straight(tmp_path: Path) -> None:
    """Half-transparent red that is stored multiplied by its alpha comes out as full red, half transparent."""
    data = np.zeros((4, 40, 40), dtype=np.uint8)
    data[0], data[3] = 128, 128
    profile = {"photometric": "RGB", "alpha": "PREMULTIPLIED"}
    result = run(Tiff(data, profile=profile).write(tmp_path / "a.tif"), tmp_path / "out")
    assert (picture_of(result) == (255, 0, 0, 128)).all()
    choices: Any = result.metadata["choices"]
    assert choices["alphaUnassociated"]


WIDE = {index: (index % 256, index // 256, 99, 255) for index in range(65536)}


def test_wide_palette_of_few_entries_stays_a_palette(tmp_path: Path) -> None:
    """Indexes of 16 bits, few of which are used, reprojected and with nodata among them."""
    index = np.array([300, 40_000, 7], dtype=np.uint16)[np.arange(90) // 30][None, None].repeat(90, axis=1)
    profile = {"photometric": "PALETTE"}
    source = Tiff(index, "EPSG:32638", UTM, nodata=7, palette=WIDE, profile=profile).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    picture = picture_of(result)
    assert [tuple(picture[45, x].tolist()) for x in (15, 45)] == [WIDE[300], WIDE[40_000]]
    assert picture[45, 80, 3] == 0
    with Image.open(result.outputs[0].path) as image:
        assert image.mode == "P"


def test_wide_palette_of_many_entries_becomes_its_colors(tmp_path: Path) -> None:
    """More entries than a PNG's palette has, each in its own color."""
    index = np.arange(1, 3601, dtype=np.uint16).reshape(1, 60, 60) * 18
    source = Tiff(index, palette=WIDE, nodata=18, profile={"photometric": "PALETTE"}).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out"))
    expected = [(0, 0, 0, 0)] + [WIDE[value] for value in index[0].flat[1:].tolist()]
    assert [tuple(pixel) for pixel in picture.reshape(-1, 4).tolist()] == expected


@pytest.mark.parametrize(
    ("resampling", "used", "share"), [("mode", [1, 2, 51_203], 1 / 3), (None, [0, 3, 51_201], 0.004)]
)
def test_entries_of_a_wide_palette_are_never_mixed(
    resampling: str | None, used: list[int], share: float, tmp_path: Path
) -> None:
    """Whether the commonest is shown or, of a few on one background, any: never red of one with green of another."""
    random = np.random.default_rng(1)
    index = random.choice(np.array(used, dtype=np.uint16), (1, 300, 300), p=[1 - 2 * share, share, share])
    source = Tiff(index, palette=WIDE, profile={"photometric": "PALETTE"}).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=60, resampling=resampling, coordinate_system="native"))
    assert {tuple(color) for color in picture.reshape(-1, 4).tolist()} == {WIDE[value] for value in used}


def test_bilevel_scan_is_black_and_white(tmp_path: Path) -> None:
    """A MINISWHITE scan is ink on paper, in a PNG of one bit."""
    data = np.zeros((1, 32, 64), dtype=np.uint8)
    data[:, :, 32:] = 1
    source = Tiff(data, profile={"photometric": "MINISWHITE", "nbits": 1}).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    picture = picture_of(result)
    assert (tuple(picture[5, 5, :3]), tuple(picture[5, 50, :3])) == ((255, 255, 255), (0, 0, 0))
    assert result.outputs[0].path.read_bytes()[24] == 1


@pytest.mark.parametrize("crs", ["EPSG:4326", "native"])
def test_mode_takes_the_class_that_covers_most(crs: str, tmp_path: Path) -> None:
    """Reprojected or not: specks of another class vanish, and no class appears that is not there."""
    classes = np.full((1, 90, 90), 3, dtype=np.uint8)
    classes[0, ::3, ::3] = 7
    palette = {3: (200, 0, 0, 255), 7: (0, 0, 200, 255)}
    source = Tiff(classes, crs="EPSG:32638", transform=UTM, palette=palette).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=30, resampling="mode", coordinate_system=crs))
    colors = {tuple(c) for c in picture[2:-2, 2:-2].reshape(-1, 4).tolist()}
    assert colors == {(200, 0, 0, 255)}


def test_mask_of_an_overview_hides_too(tmp_path: Path) -> None:
    """When an overview is shown, the mask is that overview's."""
    mask = np.where(np.arange(512) < 256, 255, 0).astype("uint8")[None].repeat(512, axis=0)
    data = np.full((3, 512, 512), 90, dtype=np.uint8)
    profile = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    source = Tiff(data, mask=mask, overviews=(2, 4), profile=profile).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=128)
    picture = picture_of(result)
    choices: Any = result.metadata["choices"]
    assert choices["read"]["overview"] is not None
    assert (picture[:, :60, 3] == 255).all()
    assert (picture[:, 68:, 3] == 0).all()


def test_mercator_file_across_the_dateline_is_one_piece(tmp_path: Path) -> None:
    """A Web Mercator mosaic that runs past 180° becomes one picture with its colors in order."""
    edge = 20_037_508.342789244
    place = Affine(5000.0, 0, edge - 160_000, 0, -5000.0, 2_000_000)
    result = run(Tiff(quarters(), crs="EPSG:3857", transform=place).write(tmp_path / "a.tif"), tmp_path / "out")
    west, _, east, _ = np.array(result.metadata["bboxLonLat"], dtype=float)
    assert 178 < west < 180 < east < 182
    assert middles(picture_of(result)) == [RED, GREEN, BLUE, WHITE]


def test_degrees_from_0_to_360_show_both_halves_elsewhere(tmp_path: Path) -> None:
    """A world grid from 0° to 360° reprojected to Web Mercator has no empty half."""
    source = Tiff(quarters(90), transform=Affine(4, 0, 0, 0, -1.8, 81)).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", coordinate_system="EPSG:3857"))
    assert (picture[5:-5, 5:-5, 3] == 255).mean() > 0.98


def test_polar_target_has_no_seam(tmp_path: Path) -> None:
    """Degrees to a polar system: no smear of the other side of the Earth along the meridian where the file is cut."""
    data = np.full((3, 100, 720), 120, dtype=np.uint8)
    data[1:, :, 240:480] = 0  # 60° W to 60° E, opposite the cut
    source = Tiff(data, transform=Affine(0.5, 0, -180, 0, -0.3, 90)).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", coordinate_system="EPSG:3995"))
    middle = picture.shape[1] // 2
    along_the_cut = picture[10 : middle - 20, middle - 12 : middle + 12]
    assert (along_the_cut == (120, 120, 120, 255)).all()


def test_averaging_comes_before_clipping(tmp_path: Path) -> None:
    """Spikes beyond the stretch keep their values: the mean with the rest is shown."""
    data = np.full((1, 64, 64), 100, dtype=np.uint16)
    data[0, ::2, ::2] = 500
    source = Tiff(data).write(tmp_path / "a.tif")
    asked: dict[str, Any] = {"stretch": "range:0,255", "resampling": "average", "coordinate_system": "native"}
    picture = picture_of(run(source, tmp_path / "out", max_size=32, **asked))
    assert np.abs(picture[4:-4, 4:-4, 0].astype(int) - 200).max() <= 3


@pytest.mark.parametrize("resampling", ["average", None])
def test_reduced_stripes_are_gray(resampling: str | None, tmp_path: Path) -> None:
    """Stripes finer than an output pixel become their mean, where picking one would alias: of a scan in any case."""
    stripes = np.where(np.arange(256) % 2, 255, 0).astype(np.uint8)[None, None].repeat(256, axis=1)
    picture = picture_of(
        run(Tiff(stripes).write(tmp_path / "a.tif"), tmp_path / "out", max_size=64, resampling=resampling)
    )
    assert np.abs(picture[..., 0].astype(int) - 128).max() <= 2


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("resampling", ["average", "bilinear", "lanczos"])
def test_no_picture_comes_out_darker_than_its_file(resampling: str, hidden: bool, tmp_path: Path) -> None:
    """Libraries that round down would take half a gray level of everything that is reprojected."""
    data = np.random.default_rng(1).integers(60, 196, (3, 300, 300), dtype=np.uint8)
    mask = np.full((300, 300), 255, dtype=np.uint8)
    mask[:90, :90] = 0
    source = Tiff(data, "EPSG:32638", UTM, mask=mask if hidden else None).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=170, resampling=resampling))
    shown = picture[picture[..., 3] == 255]
    assert shown[:, :3].mean() == pytest.approx(data[:, (mask > 0) | (not hidden)].mean(), abs=0.25)


def test_largest_page_is_shown_and_any_can_be_asked_for(tmp_path: Path) -> None:
    """Of several pages the largest is shown. `page` chooses another, and a missing one is rejected."""
    source = tmp_path / "a.tif"
    pages = [Image.new("RGB", (size, size), color) for size, color in ((30, "red"), (60, "lime"), (20, "blue"))]
    pages[0].save(source, save_all=True, append_images=pages[1:])
    shown = run(source, tmp_path / "one")
    facts: Any = shown.metadata["source"]
    assert (facts["pages"], facts["page"], tuple(picture_of(shown)[5, 5])) == (3, 2, GREEN)
    assert tuple(picture_of(run(source, tmp_path / "two", page=3))[5, 5]) == BLUE
    with pytest.raises(JobError, match="page 4"):
        run(source, tmp_path / "three", page=4)


@pytest.mark.parametrize(
    ("masked", "late"), [((1,), False), ((2,), False), ((2, 3), False), ((1, 2, 3), False), ((1,), True)]
)
def test_each_page_has_its_own_mask_and_no_other(masked: tuple[int, ...], late: bool, tmp_path: Path) -> None:
    """GDAL gives the first page any mask that it finds, and the others none: hidden pixels would show."""
    source = tmp_path / "a.tif"
    for page in (1, 2, 3):
        width = 40 + (page if late else 0)
        mask = np.where(np.arange(width) < 20, 0, 255).astype(np.uint8)[None].repeat(40, axis=0)
        profile = {"APPEND_SUBDATASET": "YES"} if page > 1 else {}
        data = np.full((1, 40, width), 90, dtype=np.uint8)
        Tiff(data, mask=mask if page in masked and not late else None, profile=profile).write(source)
    if late:
        with gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(source, "r+") as dataset:
            dataset.write_mask(np.where(np.arange(41) < 20, 0, 255).astype(np.uint8)[None].repeat(40, axis=0))
    for page in (1, 2, 3):
        picture = picture_of(run(source, tmp_path / "out", page=page, coordinate_system="native"))
        assert bool((picture[:, :20, 3] == 0).all()) == (page in masked)
        assert picture[:, 20:, 3].all()


def test_page_with_a_place_comes_before_a_larger_one(tmp_path: Path) -> None:
    """A preview or legend beside the map, however large, is not the map."""
    source = tmp_path / "a.tif"
    Tiff(np.zeros((1, 90, 90), dtype=np.uint8), crs=None, transform=None).write(source)
    Tiff(quarters(40), profile={"APPEND_SUBDATASET": "YES"}).write(source)
    result = run(source, tmp_path / "out")
    facts: Any = result.metadata["source"]
    assert (facts["pages"], facts["page"], facts["width"]) == (2, 2, 40)


def test_source_crs_helps_a_file_without_a_system(tmp_path: Path) -> None:
    """With a transform but no CRS, the payload's sourceCrs places the picture. Without it nothing does."""
    source = Tiff(quarters(), crs=None, transform=UTM).write(tmp_path / "a.tif")
    assert run(source, tmp_path / "one").metadata["crs"] is None
    placed = run(source, tmp_path / "two", source_crs="EPSG:32638")
    assert placed.metadata["bboxLonLat"] == pytest.approx([44.068, 15.357, 44.086, 15.375], abs=0.001)


@pytest.mark.parametrize("domain", ["GEOLOCATION", "OVERVIEWS"])
def test_metadata_that_points_elsewhere_is_refused(domain: str, tmp_path: Path) -> None:
    """Domains through which GDAL would open another file are named and refused."""
    source = Tiff(quarters(), profile={}).write(tmp_path / "a.tif")
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(ns=domain, X_DATASET="/etc/passwd", OVERVIEW_FILE="/etc/passwd")
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out")
    assert (caught.value.code, caught.value.detail["domain"]) == ("hostile_metadata", domain)


def test_residual_of_control_points_is_reported(tmp_path: Path) -> None:
    """One point that is two pixels off among sixteen shows in the metadata, in pixels."""
    points = [
        GroundControlPoint(row=row, col=col, x=44 + (col + 2 * (row == col == 16)) * 0.01, y=16 - row * 0.01)
        for row, col in itertools.product((0, 16, 32, 64), repeat=2)
    ]
    source = Tiff(quarters(), crs=None, transform=None, gcps=(points, "EPSG:4326")).write(tmp_path / "a.tif")
    facts: Any = run(source, tmp_path / "out").metadata["source"]
    assert (facts["gcpCount"], 0.1 < facts["gcpResidualPx"] < 2) == (16, True)


def test_item_has_a_time_or_an_interval(tmp_path: Path) -> None:
    """STAC has the time of writing, or null with an interval. Only listed tags are copied."""
    source = Tiff(quarters()).write(tmp_path / "a.tif")
    run(source, tmp_path / "one")
    item = json.loads((tmp_path / "one" / "a.json").read_text())["properties"]
    assert item["datetime"] is None
    assert {"start_datetime", "end_datetime"} <= item.keys()
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2021:03:04 05:06:07", SECRET="x")
    facts: Any = run(source, tmp_path / "two").metadata["source"]
    item = json.loads((tmp_path / "two" / "a.json").read_text())["properties"]
    assert item["datetime"] == "2021-03-04T05:06:07Z"
    assert "SECRET" not in facts["tags"]


@pytest.mark.parametrize("entries", [2, 4, 13, 200])
def test_palette_png_holds_indexes_and_entries(entries: int, tmp_path: Path) -> None:
    """At every depth and with rows that do not fill their last byte, Pillow reads the written pixels back."""
    random = np.random.default_rng(entries)
    indexes = random.integers(0, entries, (1201, 1003), dtype=np.uint8)
    palette = random.integers(0, 256, (entries, 4), dtype=np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(palette_png(indexes, palette))
    with Image.open(path) as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGBA")) == palette[indexes]).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 1), (3000, 1, 2), (1201, 1003, 4), (700, 2003, 3)])
def test_color_png_holds_every_byte(shape: tuple[int, int, int]) -> None:
    """Smooth pictures and noise, which are compressed in different ways, come back from Pillow as they were."""
    noise = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    smooth = (np.indices(shape).sum(axis=0) // 7).astype(np.uint8)
    for pixels in (noise, smooth):
        with Image.open(BytesIO(color_png(pixels))) as image:
            assert image.mode == ("L", "LA", "RGB", "RGBA")[shape[2] - 1]
            assert (np.asarray(image).reshape(shape) == pixels).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gray_of_few_bits_holds_every_value(depth: int) -> None:
    """Packed gray, with rows that do not fill their last byte, comes back as the same bytes."""
    top = (1 << depth) - 1
    pixels = np.random.default_rng(depth).integers(0, top + 1, (301, 1003, 1), dtype=np.uint8) * np.uint8(255 // top)
    with Image.open(BytesIO(color_png(pixels, depth))) as image:
        assert (np.asarray(image.convert("L")) == pixels[..., 0]).all()


KINDS = [
    (dtype, hidden, crs, layout)
    for (dtype, hidden), crs, layout in zip(
        itertools.product(["uint8", "uint16", "int16", "float32", "float64"], ["none", "nodata", "mask"]),
        itertools.cycle(["EPSG:4326", "EPSG:32638", "EPSG:3857", "ESRI:54009"]),
        itertools.cycle(["strips", "tiles", "planar", "south-up"]),
        strict=False,
    )
]


@pytest.mark.parametrize(("dtype", "hidden", "crs", "layout"), KINDS)
@pytest.mark.parametrize("bands", [1, 3])
def test_matrix(dtype: str, hidden: str, crs: str, layout: str, bands: int, tmp_path: Path) -> None:
    """Every mix: the hidden half is hidden, the other half shows, brightness rises, the self-check is content."""
    size = 96
    row = np.linspace(10, 240, size)
    data = np.broadcast_to(row[None, None, :], (bands, size, size)).astype(dtype).copy()
    extra: dict[str, Any] = {}
    if hidden == "nodata":
        data[:, : size // 2] = 1
        extra["nodata"] = 1
    elif hidden == "mask":
        extra["mask"] = (np.arange(size) >= size // 2).astype("uint8")[:, None].repeat(size, axis=1) * 255
    place = DEGREES if crs == "EPSG:4326" else Affine(30, 0, 4e5, 0, -30, 1.7e6)
    profile: dict[str, Any] = {"compress": "deflate"}
    if layout == "south-up":
        place = place @ Affine(1, 0, 0, 0, -1, size)
        data = np.ascontiguousarray(data[:, ::-1])
        if "mask" in extra:
            extra["mask"] = np.ascontiguousarray(extra["mask"][::-1])
    elif layout == "tiles":
        profile |= {"tiled": True, "blockxsize": 32, "blockysize": 32}
    elif layout == "planar":
        profile |= {"interleave": "band"}
    source = Tiff(data, crs=crs, transform=place, profile=profile, **extra).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=64)
    picture = picture_of(result)
    h, w = picture.shape[:2]
    lower = picture[h // 2 + 3 : h - 3, 4 : w - 4]
    assert (lower[..., 3] == 255).all()
    assert ((picture[4 : h // 2 - 3, 4 : w - 4, 3] == 0) == (hidden != "none")).all()
    assert (np.diff(lower[..., 0].astype(int), axis=1) >= -1).all()
    assert int(lower[:, -1, 0].min()) - int(lower[:, 0, 0].max()) > 150
    check: Any = result.metadata["selfCheck"]
    assert check["maxDistancePx"] < 0.5


def test_classes_are_never_mixed_when_warped(tmp_path: Path) -> None:
    """Few whole values: nearest, so that no value between two classes appears."""
    data = np.where(ramp(90, 90, "uint8") > 128, 40, 2).astype(np.uint8)
    source = Tiff(data, crs="EPSG:32638", transform=UTM).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=50))
    assert set(np.unique(picture[picture[..., 3] > 0][:, 0])) == {0, 255}


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "float32"])
def test_flags_that_lie_far_apart_are_never_mixed(dtype: str, tmp_path: Path) -> None:
    """Codes of bits, shrunk to a third: only grays of codes that the file holds."""
    codes = np.array([21762, 21824, 21952, 22280, 23888, 30048, 54596, 55052], dtype=dtype)
    data = codes[np.random.default_rng(1).integers(0, 8, (40, 40))].repeat(10, axis=0).repeat(10, axis=1)
    result = run(Tiff(data[None]).write(tmp_path / "a.tif"), tmp_path / "out", max_size=133)
    grays = np.rint((codes.astype(float) - 21762) / (55052 - 21762) * 255)
    assert set(np.unique(picture_of(result)[..., 0])) == set(grays)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_thin_lines_of_a_mask_of_wide_numbers_survive_shrinking(dtype: str, tmp_path: Path) -> None:
    """0 and the largest number are black and white as in a scan of bytes, averaged and not picked as classes."""
    data = np.zeros((1, 600, 600), dtype=dtype)
    data[0, :, 300:] = data[0, :, 103] = np.iinfo(dtype).max
    picture = picture_of(run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out", max_size=60))
    assert (picture[:, 10, 0] > 5).all()


def test_scattered_pixels_survive_shrinking(tmp_path: Path) -> None:
    """Thirty class pixels in ninety thousand still show when the picture is a tenth as wide."""
    data = np.zeros((1, 300, 300), dtype=np.uint8)
    data[0, 1::10, 2] = np.arange(30) % 5 + 1
    picture = picture_of(run(Tiff(data, nodata=0).write(tmp_path / "a.tif"), tmp_path / "out", max_size=30))
    assert np.count_nonzero(picture[..., 3]) >= 30


@pytest.mark.parametrize("crs", ["native", "EPSG:3857"])
def test_scattered_entries_of_a_palette_show_in_picture_and_thumbnail(crs: str, tmp_path: Path) -> None:
    """Single pixels of a class among hidden ones: in their own color, wholly visible, in a tenth of the size."""
    index = np.zeros((1, 600, 600), dtype=np.uint8)
    index[0, 7::60, 3::60] = 5
    palette = {0: (0, 0, 0, 255), 5: (200, 0, 0, 255)}
    source = Tiff(index, nodata=0, palette=palette).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=100, thumbnail_size=50, coordinate_system=crs)
    with Image.open(tmp_path / "out" / "a_thumb.png") as image:
        thumbnail = np.asarray(image.convert("RGBA"))
    for picture, least in ((picture_of(result), 85), (thumbnail, 70)):
        shown = picture[picture[..., 3] > 0]
        assert len(shown) >= least
        assert {tuple(color) for color in shown.tolist()} == {(200, 0, 0, 255)}


@pytest.mark.parametrize("palette", [None, {0: (0, 0, 0, 255), 9: (0, 200, 0, 255)}], ids=["gray", "palette"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_thin_lines_on_one_background_stay_whole_when_they_shrink(
    dtype: str, palette: dict[int, tuple[int, int, int, int]] | None, tmp_path: Path
) -> None:
    """A rasterised line, one class on another: no gap along it, and no color but the two."""
    if palette is not None and dtype != "uint8":
        dtype = "uint16"
    data = np.zeros((1, 900, 900), dtype=dtype)
    data[0, np.arange(900), np.arange(900) // 2 + 100] = 9
    source = Tiff(data, palette=palette).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", max_size=90, coordinate_system="native")
    picture = picture_of(result)[..., :3].reshape(90, 90, 3)
    line = picture.max(axis=2) > 100
    assert line.any(axis=1).all()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2
    choices: Any = result.metadata["choices"]
    assert any("hardly a pixel is not 0" in note for note in choices["notes"])


def test_few_visible_measurements_keep_their_values_when_they_shrink(tmp_path: Path) -> None:
    """A thin line of floats on nodata is wholly visible in a tenth of the size, with the values that it has."""
    data = np.full((1, 900, 900), -9999, dtype=np.float32)
    data[0, 450] = np.linspace(0, 100, 900)
    source = Tiff(data, nodata=-9999).write(tmp_path / "a.tif")
    asked: dict[str, Any] = {"stretch": "range:0,100", "coordinate_system": "native"}
    picture = picture_of(run(source, tmp_path / "out", max_size=90, **asked))
    assert (picture[45, :, 3] == 255).all()
    assert np.abs(picture[45, :, 0].astype(int) - np.linspace(1.3, 253.7, 90)).max() <= 2
    assert np.count_nonzero(picture[..., 3]) == 90


def test_alpha_of_16_bits_is_one_scale_for_the_whole_file(tmp_path: Path) -> None:
    """Rows in which alpha is small are nearly hidden, even where whole strips of them are read at a time."""
    data = np.full((2, 3000, 1200), 30_000, dtype=np.uint16)
    data[1, :2000], data[1, 2000:] = 200, 65535
    source = Tiff(data, colors=["gray", "alpha"]).write(tmp_path / "a.tif")
    alpha = picture_of(run(source, tmp_path / "out", max_size=300, coordinate_system="native"))[..., 3]
    assert alpha[:190].max() <= 1
    assert alpha[210:].min() == 255


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_few_values_that_run_into_each_other_are_no_classes(dtype: str, tmp_path: Path) -> None:
    """Forty grays of a photograph, or whole meters of a plain, are averaged. Forty classes in patches are not."""
    rows, columns = np.indices((400, 400))
    plain = (20 + 18 * np.sin(rows / 60) * np.cos(columns / 45)).astype(dtype)
    noise = np.random.default_rng(1).integers(-1, 2, plain.shape).astype(dtype)
    patches = np.random.default_rng(2).integers(0, 40, (40, 40)).astype(dtype).repeat(10, axis=0).repeat(10, axis=1)
    methods = []
    for number, data in enumerate((plain + noise, patches)):
        source = Tiff(data[None]).write(tmp_path / f"{number}.tif")
        choices: Any = run(source, tmp_path / f"out{number}", max_size=64).metadata["choices"]
        methods.append(choices["resampling"]["method"])
    assert methods == ["average", "nearest"]


@pytest.mark.parametrize(
    ("dtype", "top"),
    [
        ("uint8", 1),
        ("uint8", 255),
        ("uint16", 1),
        ("uint16", 4095),
        ("uint16", 10_000),
        ("uint16", 32_767),
        ("int32", 1),
    ],
)
def test_alpha_may_end_where_programs_let_it_end(dtype: str, top: int, tmp_path: Path) -> None:
    """A mask of 0 and 1 hides and shows as one of 0 and 255 does."""
    data = np.full((2, 40, 40), 200, dtype=dtype)
    data[0, :, :20], data[1], data[1, :10] = 100, top, 0
    source = Tiff(data, colors=["gray", "alpha"]).write(tmp_path / "a.tif")
    alpha = picture_of(run(source, tmp_path / "out"))[..., 3]
    assert (alpha[10:] == 255).all()
    assert (alpha[:10] == 0).all()


def test_alpha_that_is_small_in_bytes_is_small(tmp_path: Path) -> None:
    """Pixels that are nearly transparent everywhere are not made visible."""
    data = np.full((2, 40, 40), 3, dtype="uint8")
    source = Tiff(data, colors=["gray", "alpha"]).write(tmp_path / "a.tif")
    assert (picture_of(run(source, tmp_path / "out"))[..., 3] == 3).all()


def test_a_thumbnail_before_the_map_is_not_the_map(tmp_path: Path) -> None:
    """GDAL lists no pages if the first declares itself a smaller version of another."""
    place: dict[str, Value] = {
        "t33550": (DOUBLE, [0.1, 0.1, 0]),
        "t33922": (DOUBLE, [0, 0, 0, 44, 16, 0]),
        "t34735": (SHORT, [1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326]),
    }
    pages = [gray(t254=(LONG, [1])), gray(32, 16, t254=(LONG, [0]), **place)]
    pixels = len(RawTiff(pages).bytes())
    for tags in pages:
        tags[273] = (LONG, [pixels])
    picture = np.indices((16, 32)).sum(axis=0).astype(np.uint8)
    source = RawTiff(pages, data=picture.tobytes()).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    facts: Any = result.metadata["source"]
    assert (facts["pages"], facts["width"], facts["height"]) == (1, 32, 16)
    told: Any = result.metadata["crs"]
    assert told["epsg"] == 4326


def test_alpha_of_a_widened_picture_is_whole(tmp_path: Path) -> None:
    """16-bit samples with an alpha that ends at 255 are opaque, not invisible."""
    data = np.full((4, 40, 40), 200, dtype=np.uint16)
    data[0, :, :20], data[3] = 100, 255
    source = Tiff(data, profile={"photometric": "RGB", "alpha": "YES"}).write(tmp_path / "a.tif")
    assert (picture_of(run(source, tmp_path / "out"))[..., 3] == 255).all()


SCANS: dict[str, tuple[str, dict[str, Any], int]] = {
    "1 bit": ("uint8", {"nbits": 1}, 1),
    "1 bit, white is 0": ("uint8", {"nbits": 1, "photometric": "MINISWHITE"}, 1),
    "4 bits, white is 0": ("uint8", {"nbits": 4, "photometric": "MINISWHITE"}, 15),
    "8 bits": ("uint8", {}, 255),
}


@pytest.mark.parametrize("kind", SCANS)
def test_thin_lines_of_a_scan_survive_shrinking(kind: str, tmp_path: Path) -> None:
    """A line one pixel wide, drawn on a scan that is shown a tenth as wide, is gray all along and nowhere missing."""
    dtype, profile, top = SCANS[kind]
    line = np.zeros((1, 600, 600), dtype=dtype)
    line[0, np.arange(600), np.arange(600)] = line[0, :, 303] = top
    source = Tiff(line, profile=profile).write(tmp_path / "a.tif")
    picture = picture_of(run(source, tmp_path / "out", max_size=60, coordinate_system="native"))[..., 0].astype(int)
    paper = int(np.median(picture))
    assert paper in {0, 255}
    assert (np.abs(np.diagonal(picture) - paper) > 5).all()
    assert (np.abs(picture[:, 30] - paper) > 5).all()


@pytest.mark.parametrize("photometric", ["MINISBLACK", "MINISWHITE"])
@pytest.mark.parametrize("bits", [1, 4])
def test_scan_that_is_not_shrunk_keeps_its_bits(bits: int, photometric: str, tmp_path: Path) -> None:
    """Value for value the same gray, in a PNG that is no deeper than the file."""
    top = (1 << bits) - 1
    data = np.random.default_rng(1).integers(0, top + 1, (1, 50, 70), dtype=np.uint8)
    profile = {"nbits": bits, "photometric": photometric}
    result = run(Tiff(data, profile=profile).write(tmp_path / "a.tif"), tmp_path / "out")
    expected = data[0] * np.uint8(255 // top)
    assert (picture_of(result)[..., 0] == (255 - expected if photometric == "MINISWHITE" else expected)).all()
    assert result.outputs[0].path.read_bytes()[24] == bits


def test_scattered_entries_of_a_palette_are_noted(tmp_path: Path) -> None:
    """Chance decides which single pixels show in a smaller picture, and the metadata have a note."""
    index = np.zeros((1, 300, 300), dtype=np.uint8)
    index[0, ::50, ::50] = 1
    palette = {0: (0, 0, 0, 255), 1: (200, 0, 0, 255)}
    result = run(Tiff(index, nodata=0, palette=palette).write(tmp_path / "a.tif"), tmp_path / "out", max_size=64)
    choices: Any = result.metadata["choices"]
    assert any("scattered" in note for note in choices["notes"])


def test_dark_bytes_are_kept_if_they_are_colors_and_spread_if_they_are_data(tmp_path: Path) -> None:
    """Three of five bands without color names are measurements. A dark photograph stays dark."""
    data = np.stack([ramp(40, 40, "uint8", 0, 9)[0]] * 5)
    unnamed = run(Tiff(data, profile={"photometric": "MINISBLACK"}).write(tmp_path / "a.tif"), tmp_path / "a")
    assert np.ptp(picture_of(unnamed)[..., 0]) == 255
    photograph = run(Tiff(data[:3], profile={"photometric": "RGB"}).write(tmp_path / "b.tif"), tmp_path / "b")
    assert picture_of(photograph)[..., 0].max() == 9
    choices: Any = photograph.metadata["choices"]
    assert any("from 0 to 9 of 255" in note for note in choices["notes"])


def test_four_corners_that_no_polynomial_meets_place_a_picture(tmp_path: Path) -> None:
    """The corners of a leaning photograph are met by a spline. The polynomial's miss is in the metadata."""
    corners = ((0, 0, 10.0, 50.0), (0, 640, 12.0, 50.2), (640, 640, 12.2, 48.0), (640, 0, 9.6, 47.8))
    points = [GroundControlPoint(row=row, col=col, x=x, y=y) for row, col, x, y in corners]
    source = Tiff(quarters(640), crs=None, transform=None, gcps=(points, "EPSG:4326")).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out")
    facts: Any = result.metadata["source"]
    assert (facts["gcpMethod"], facts["gcpResidualPx"]) == ("thin_plate_spline", pytest.approx(0, abs=1e-6))
    assert facts["gcpPolynomialResidualPx"] > 10
    assert middles(picture_of(result))[0] == RED


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("nir", "blue", "green", "red"), [4, 3, 2]),
        (("B02", "B03", "B04", "B08"), [3, 2, 1]),
        (("B2 blue band", "B3", "B4", "B8"), [3, 2, 1]),
        (("SR_B2", "SR_B3", "SR_B4", "SR_B5"), [3, 2, 1]),
        (("Red edge", "Red", "Green", "Blue"), [2, 3, 4]),
        (("Red-Edge", "RED", "GREEN", "BLUE"), [2, 3, 4]),
        (("Band 1 Near Infra-Red", "Band 2 Red", "Band 3 Green", "Band 4 Blue"), [2, 3, 4]),
        (("far_red_1", "red_1", "green_1", "blue_1"), [2, 3, 4]),
        (("1 coastal_blue", "2 blue", "3 green", "4 red"), [4, 3, 2]),
        (("Band 1: Ultra Blue", "Band 2: Blue", "Band 3: Green", "Band 4: Red"), [4, 3, 2]),
        (("deep_blue_1", "blue_1", "green_1", "red_1"), [4, 3, 2]),
        (("Band 1 Green I", "Band 2 Green", "Band 3 Red", "Band 4 Blue"), [3, 2, 4]),
        (("blue over red", "(Red)", "green", "blue"), [2, 3, 4]),
        (("red_edge_1", "blue_1", "green_1", "red_1"), [4, 3, 2]),
        (("Band_1_Blue", "Band_2_Green", "Band_3_Red", "Band_4_NIR"), [3, 2, 1]),
        (("B08_10m", "B04_10m", "B03_10m", "B02_10m"), [2, 3, 4]),
        (("S2_B2", "S2_B3", "S2_B4", "S2_B8"), [3, 2, 1]),
        (("sur_refl_b01", "sur_refl_b02", "sur_refl_b03", "sur_refl_b04"), [1, 4, 3]),
        (("coastal", "aerosol", "cirrus", "swir"), [1, 2, 3]),
        (("infrared", "evergreen", "blueish", "B12"), [1, 2, 3]),
        (("B04 B03 B02", "B05", "B06", "B07"), [1, 2, 3]),
    ],
)
def test_bands_are_found_by_their_descriptions(names: tuple[str, ...], shown: list[int], tmp_path: Path) -> None:
    """Satellites name their bands. Without names the first three are shown, and the reason is given."""
    data = np.stack([ramp(40, 40, "uint16", 100 * i, 900)[0] for i in range(4)])
    profile = {"photometric": "MINISBLACK"}
    result = run(Tiff(data, descriptions=names, profile=profile).write(tmp_path / "a.tif"), tmp_path / "out")
    choices: Any = result.metadata["choices"]
    assert choices["bands"]["indexes"] == shown
    assert ("descriptions" in choices["bands"]["reason"]) == (shown != [1, 2, 3])


def test_bands_of_arcgis_are_found_by_their_names(tmp_path: Path) -> None:
    """It writes a metadata item for each band instead of descriptions. An existing description has priority."""
    path = Tiff(np.stack([ramp(40, 40, "uint16", 100 * i, 900)[0] for i in range(4)])).write(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as dataset:
        for index, name in enumerate(("Blue", "Green", "Red", "Red"), 1):
            dataset.update_tags(index, BandName=name)
        dataset.set_band_description(3, "near infrared")
    told: Any = run(path, tmp_path / "out").metadata
    assert told["choices"]["bands"]["indexes"] == [4, 2, 1]
    assert [band["description"] for band in told["source"]["bands"]] == ["Blue", "Green", "near infrared", "Red"]


def test_magnitude_of_complex_samples_is_in_decibels(tmp_path: Path) -> None:
    """A tenfold signal is 20 dB more at any phase. No signal is hidden."""
    phase = np.exp(1j * np.linspace(0, 20, 2500).reshape(50, 50))
    data = (phase * np.where(np.arange(50) < 25, 10, 1000))[None].astype(np.complex64)
    data[:, :5] = 0
    result = run(Tiff(data).write(tmp_path / "a.tif"), tmp_path / "out", stretch="range:20,60")
    picture = picture_of(result)
    assert not picture[:4, :, 3].any()
    assert {tuple(c) for c in picture[8:, :22, :3].reshape(-1, 3).tolist()} == {(0, 0, 0)}
    assert picture[8:, 28:, 0].min() >= 254


def test_two_bands_are_gray_and_alpha_only_if_declared(tmp_path: Path) -> None:
    """Two measurements side by side: the first is shown, the second hides nothing."""
    data = np.stack([ramp(40, 40)[0], np.zeros((40, 40), dtype=np.uint8)])
    plain = run(Tiff(data, profile={"alpha": "NO"}).write(tmp_path / "a.tif"), tmp_path / "one")
    assert (picture_of(plain)[..., 3] == 255).all()
    hidden = run(Tiff(data, colors=["gray", "alpha"]).write(tmp_path / "a.tif"), tmp_path / "two")
    assert not picture_of(hidden)[..., 3].any()


def test_work_is_limited_before_anything_is_decoded(tmp_path: Path) -> None:
    """Tiles of 200 000² pixels that share one block of 16 kB: forty gigabytes to decode, unlike a sparse file."""
    packed = zlib.compress(bytes(4096 * 4096), 9)
    tiles = 49 * 49
    places = {
        "t322": (LONG, [4096]),
        "t323": (LONG, [4096]),
        "t324": (LONG, [30_000] * tiles),
        "t325": (LONG, [len(packed)] * tiles),
    }
    file = RawTiff([gray(200_000, 200_000, t259=(SHORT, [8]), **places)]).bytes().ljust(30_000, b"\0") + packed
    source = tmp_path / "a.tif"
    source.write_bytes(file)
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "too_complex"
    assert caught.value.detail["decoded"] > caught.value.detail["allowed"]
    assert "MB" in caught.value.message


def test_file_that_misses_the_system_asked_for_is_refused_by_name(tmp_path: Path) -> None:
    """Valid pixels that the target cannot show are a refusal, not an empty picture."""
    data = np.zeros((1, 60, 60), dtype=np.uint8)
    data[:, :4] = 200  # all that is valid lies at the pole, which Web Mercator cuts off
    source = Tiff(data, transform=Affine(1, 0, 0, 0, -1, 90), nodata=0).write(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out", coordinate_system="EPSG:3857")
    assert caught.value.code == "no_valid_pixels"


def test_lab_of_bytes_becomes_color(tmp_path: Path) -> None:
    """Red, green and blue stored as L*a*b* come out as red, green and blue, within libtiff's accuracy."""
    colors = np.zeros((60, 90, 3), dtype=np.uint8)
    colors[:, :30], colors[:, 30:60], colors[:, 60:] = (200, 30, 30), (30, 180, 40), (40, 60, 200)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(colors), srgb, lab, outputMode="LAB")
    assert image is not None
    image.save(tmp_path / "a.tif")
    picture = picture_of(run(tmp_path / "a.tif", tmp_path / "out"))
    assert [int(picture[30, x, :3].argmax()) for x in (15, 45, 75)] == [0, 1, 2]
    assert np.abs(picture[30, (15, 45, 75), :3].astype(int) - colors[30, (15, 45, 75)]).max() < 60


@pytest.mark.parametrize("west", [0.0, -180.0, -180.00001, 180.0])
def test_whole_world_keeps_its_last_degrees_in_mercator(west: float, tmp_path: Path) -> None:
    """Both ends are the same meridian, which must not crop or shift the picture."""
    data = ramp(60, 90)
    path = Tiff(data, transform=Affine(4.0000001, 0, west, 0, -3, 90)).write(tmp_path / "a.tif")
    told: Any = run(path, tmp_path / "out", coordinate_system="EPSG:3857").metadata
    left, _, right, _ = told["bounds"]
    assert right - left == pytest.approx(EARTH_GIRTH, rel=1e-6)
    left, _, right, _ = told["bboxLonLat"]
    assert right - left == pytest.approx(360, abs=1e-3)
    assert -181 < left < 181


def test_polar_file_in_degrees_goes_all_round_to_the_pole_and_is_no_strip(tmp_path: Path) -> None:
    """No wedge before the date line is missing, and the aspect is bounded."""
    place = Affine(10_000, 0, -450_000, 0, -10_000, 305_000)
    path = Tiff(ramp(60, 90), crs="EPSG:3031", transform=place).write(tmp_path / "a.tif")
    result = run(path, tmp_path / "out")
    told: Any = result.metadata
    assert told["bboxLonLat"][:1] + told["bboxLonLat"][2:3] == [-180, 180]
    assert told["bboxLonLat"][1] == -90
    assert told["width"] <= 17 * told["height"]
    assert picture_of(result)[-2, :, 3].all()


def test_polar_file_beside_the_pole_is_no_strip_in_degrees(tmp_path: Path) -> None:
    """A few kilometres from the pole are a hundred degrees wide and a tenth of one high."""
    path = Tiff(ramp(60, 90), crs="EPSG:3995", transform=Affine(100, 0, 1000, 0, -100, 1000)).write(tmp_path / "a.tif")
    told: Any = run(path, tmp_path / "out").metadata
    assert told["width"] <= 17 * told["height"]


def test_outline_round_a_pole_holds_the_pole(tmp_path: Path) -> None:
    """Of a picture that stays in its polar system, for web maps and in the STAC Item."""
    place = Affine(10_000, 0, -450_000, 0, -10_000, 300_000)
    path = Tiff(ramp(60, 90), crs="EPSG:3031", transform=place).write(tmp_path / "a.tif")
    result = run(path, tmp_path / "out", coordinate_system="native")
    told = json.loads((tmp_path / "out" / "a.json").read_text())
    assert told["bbox"][:3] == [-180, -90, 180]
    assert told["bbox"][3] == pytest.approx(-85.025, abs=0.01)
    assert result.metadata["bboxLonLat"] == told["bbox"]


def test_world_in_mercator_has_the_world_as_its_outline(tmp_path: Path) -> None:
    """A few metres past the date line at either end do not make its west its east."""
    place = Affine(445_278, 0, -20_037_508.34, 0, -667_917, 20_037_508.34)
    run(Tiff(ramp(60, 90), crs="EPSG:3857", transform=place).write(tmp_path / "a.tif"), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (told["bbox"][0], told["bbox"][2]) == (-180, 180)
    assert told["geometry"]["type"] == "Polygon"


def test_picture_with_little_at_its_edges_passes_the_check(tmp_path: Path) -> None:
    """Of a polar file only the corners reach into Web Mercator: all places that are usually followed are empty."""
    place = Affine(10_000, 0, -450_000, 0, -10_000, 300_000)
    path = Tiff(ramp(60, 90), crs="EPSG:3031", transform=place).write(tmp_path / "a.tif")
    told: Any = run(path, tmp_path / "out", coordinate_system="EPSG:3857").metadata
    assert 0 < told["validFraction"] < 0.02
    assert told["selfCheck"]["maxDistancePx"] < 0.5


@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_source_crs_of_degrees_is_not_believed_of_metres(crs: str | None, tmp_path: Path) -> None:
    """A latitude of millions is impossible, in a file and in a job."""
    path = Tiff(ramp(40, 40), crs=crs, transform=UTM).write(tmp_path / "a.tif")
    told: Any = run(path, tmp_path / "out", source_crs="EPSG:4326").metadata
    assert told["crs"] is None
    assert told["bboxLonLat"] is None
    assert any("degrees" in note for note in told["choices"]["notes"])


def test_system_with_heights_that_is_asked_for_places_by_its_horizontal_part(tmp_path: Path) -> None:
    """A picture has no heights, and web maps know no system that does."""
    path = Tiff(ramp(40, 40)).write(tmp_path / "a.tif")
    told: Any = run(path, tmp_path / "out", coordinate_system="EPSG:4979").metadata
    assert told["crs"]["epsg"] == 4326


def test_control_points_in_metres_are_not_believed_to_be_degrees(tmp_path: Path) -> None:
    """The picture comes out unplaced, with a note on the reason. `sourceCrs` places it."""
    points = [
        GroundControlPoint(row, column, 500_000 + 10 * column, 5_000_000 - 10 * row)
        for row, column in ((0, 0), (0, 40), (40, 40), (40, 0))
    ]
    path = Tiff(ramp(40, 40), crs=None, transform=None, gcps=(points, "EPSG:4326")).write(tmp_path / "a.tif")
    told: Any = run(path, tmp_path / "out").metadata
    assert told["crs"] is None
    assert any("degrees" in note for note in told["choices"]["notes"])
    told = run(path, tmp_path / "helped", source_crs="EPSG:32633").metadata
    assert told["bboxLonLat"] == pytest.approx([15.0, 45.15, 15.005, 45.1535], abs=0.001)


@pytest.mark.parametrize("photometric", ["MINISBLACK", "MINISWHITE"])
def test_bands_of_the_item_give_values_back(photometric: str, tmp_path: Path) -> None:
    """By `raster:scale` and `raster:offset`, as any STAC client reckons."""
    data = ramp(50, 50, "float32", 100, 350)
    path = Tiff(data, profile={"photometric": photometric}).write(tmp_path / "a.tif")
    result = run(path, tmp_path / "out", stretch="minmax")
    (band,) = json.loads((tmp_path / "out" / "a.json").read_text())["assets"]["picture"]["bands"]
    found = picture_of(result)[..., 0] * band["raster:scale"] + band["raster:offset"]
    assert (band["name"], band["data_type"]) == ("gray", "uint8")
    assert np.abs(found - data[0]).max() < 1


@pytest.mark.parametrize(
    ("output_format", "names"),
    [("png", ["palette"]), ("jpeg", ["red", "green", "blue"]), ("webp", ["red", "green", "blue", "alpha"])],
)
def test_bands_of_the_item_are_those_of_the_file(output_format: str, names: list[str], tmp_path: Path) -> None:
    """A palette with a hidden index is one band, three or four, according to the format."""
    data = np.arange(2500, dtype=np.uint8).reshape(1, 50, 50) % 5
    colors = {i: (50 * i, 0, 9, 255) for i in range(5)}
    path = Tiff(data, palette=colors, nodata=3).write(tmp_path / "a.tif")
    run(path, tmp_path / "out", output_format=output_format)
    told = json.loads((tmp_path / "out" / "a.json").read_text())["assets"]["picture"]["bands"]
    assert [band["name"] for band in told] == names
    assert not any("raster:scale" in band for band in told)


@pytest.mark.parametrize("max_size", [40, 90, 300])
def test_overviews_older_than_the_mask_are_not_read(max_size: int, tmp_path: Path) -> None:
    """They have no mask, and would show the pixels that it hides."""
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    path = Tiff(quarters(300), overviews=(2, 4), profile=profile).write(tmp_path / "a.tif")
    with gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.where(np.arange(300) < 150, 0, 255).astype(np.uint8)[None].repeat(300, axis=0))
    picture = picture_of(run(path, tmp_path / "out", max_size=max_size))
    assert not picture[:, : max_size // 2 - 1, 3].any()
    assert picture[:, max_size // 2 + 1 :, 3].all()
