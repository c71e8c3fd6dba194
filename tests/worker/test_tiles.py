"""Tiles show the pixels of the file at their place, and no others. Their number is known before the first."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import morecantile
import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from pyproj import CRS, Transformer
from rasterio.control import GroundControlPoint

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.pixel_to_crs import EARTH_GIRTH
from geoprocessing_worker.handlers import TaskRequest, TaskResult
from geoprocessing_worker.render.task_options import TilesOptions
from geoprocessing_worker.tasks.tiles.archive import Archive
from geoprocessing_worker.tasks.tiles.grid import Coverage, Tile, choose_zooms
from geoprocessing_worker.tasks.tiles.job import make_tiles
from tests.support.rasters import UTM, Tiff, quarters, quiet

RED, GREEN, BLUE, WHITE = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]


def tiles(source: Path, folder: Path, **payload: Any) -> TaskResult:
    folder.mkdir(exist_ok=True)
    options = TilesOptions.from_payload(payload)
    options.check()
    request = TaskRequest(source=source, output_folder=folder, stem="map", options=options, source_name="map.tif")
    result = make_tiles(request, quiet)
    assert {path.name for path in folder.iterdir()} == {"map.pmtiles", "map.json"}
    return result


class Viewer:
    """Opens an archive as a web map does, and looks at places on the ground."""

    def __init__(self, result: TaskResult) -> None:
        with result.outputs[0].path.open("rb") as file:
            self._archive = Archive(file)
        self.told = self._archive.metadata()
        self.header = self._archive.header()

    def tile(self, zoom: int, column: int, row: int) -> NDArray[np.uint8] | None:
        content = self._archive.tile(Tile(zoom, column, row))
        return None if content is None else np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))

    def color(self, longitude: float, latitude: float, zoom: int) -> list[int] | None:
        count = 2**zoom
        across = (longitude / 360 + 0.5) % 1 * count
        down = (0.5 - math.asinh(math.tan(math.radians(latitude))) / (2 * math.pi)) * count
        found = self.tile(zoom, int(across), int(down))
        return None if found is None else found[int(down % 1 * 256), int(across % 1 * 256)].tolist()

    def whole(self, zoom: int) -> NDArray[np.uint8]:
        """Return all tiles of a zoom beside each other, with black for missing ones."""
        box = self.told["bounds"]
        count = 2**zoom
        columns = range(int((box[0] / 360 + 0.5) * count), int((box[2] / 360 + 0.5) * count) + 1)
        ends = [(0.5 - math.asinh(math.tan(math.radians(lat))) / (2 * math.pi)) * count for lat in (box[3], box[1])]
        empty = np.zeros((256, 256, 4), dtype=np.uint8)
        return np.concatenate(
            [
                np.concatenate([empty if (t := self.tile(zoom, c, r)) is None else t for c in columns], axis=1)
                for r in range(int(ends[0]), int(ends[1]) + 1)
            ]
        )


def corner_colors(viewer: Viewer, zoom: int, corners: list[tuple[float, float]]) -> list[list[int] | None]:
    return [viewer.color(longitude, latitude, zoom) for longitude, latitude in corners]


def test_places_on_the_ground_have_their_colors_at_every_zoom(tmp_path: Path) -> None:
    source = Tiff(quarters(2000), "EPSG:32638", UTM).write(tmp_path / "a.tif")
    viewer = Viewer(tiles(source, tmp_path / "out", minZoom=7, maxZoom=10))
    to_degrees = Transformer.from_crs(32638, 4326, always_xy=True)
    middles = [to_degrees.transform(400_000 + x, 1_700_000 - y) for y in (15e3, 45e3) for x in (15e3, 45e3)]
    outside = to_degrees.transform(400_000 - 9e3, 1_700_000 + 9e3)
    for zoom in (7, 8, 9, 10):
        assert corner_colors(viewer, zoom, middles) == [RED, GREEN, BLUE, WHITE]
        assert viewer.color(*outside, zoom) in (None, [0, 0, 0, 0])


KINDS: dict[str, Tiff] = {
    "in degrees": Tiff(quarters(600), "EPSG:4326", Affine(0.01, 0, 44, 0, -0.01, 18)),
    "turned": Tiff(np.rot90(quarters(600), axes=(1, 2)), "EPSG:4326", Affine(0, -0.01, 50, -0.01, 0, 18)),
    "south up": Tiff(quarters(600)[:, ::-1], "EPSG:4326", Affine(0.01, 0, 44, 0, 0.01, 12)),
    "with overviews": Tiff(quarters(2400), "EPSG:4326", Affine(0.0025, 0, 44, 0, -0.0025, 18), overviews=(2, 4, 8)),
    "control points": Tiff(
        quarters(600),
        None,
        None,
        gcps=(
            [
                GroundControlPoint(row, col, 44 + col / 100, 18 - row / 100)
                for row in (0, 300, 600)
                for col in (0, 300, 600)
            ],
            "EPSG:4326",
        ),
    ),
    "a color table": Tiff(
        np.kron(np.array([[1, 2], [3, 4]], dtype=np.uint8), np.ones((300, 300), dtype=np.uint8))[None],
        "EPSG:4326",
        Affine(0.01, 0, 44, 0, -0.01, 18),
        palette={1: (255, 0, 0, 255), 2: (0, 255, 0, 255), 3: (0, 0, 255, 255), 4: (255, 255, 255, 255)},
    ),
    "0 to 360": Tiff(
        np.tile(quarters(60), (1, 1, 60)), "EPSG:4326", Affine(0.1, 0, 0, 0, -0.1, 18)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_each_kind_of_file_are_in_place(kind: str, tmp_path: Path) -> None:
    """A map of six degrees from 44° E 18° N: red, green over blue, white."""
    source = KINDS[kind].write(tmp_path / "a.tif")
    west, zooms = (42, (4, 5)) if kind == "0 to 360" else (44, (5, 6, 7))
    viewer = Viewer(tiles(source, tmp_path / "out", minZoom=zooms[0], maxZoom=zooms[-1]))
    middles = [(west + x, y) for y in (16.5, 13.5) for x in (1.5, 4.5)]
    for zoom in zooms:
        assert corner_colors(viewer, zoom, middles) == [RED, GREEN, BLUE, WHITE], zoom


def test_a_map_across_the_antimeridian_has_tiles_on_both_sides(tmp_path: Path) -> None:
    source = Tiff(quarters(600), "EPSG:4326", Affine(0.01, 0, 177, 0, -0.01, 18)).write(tmp_path / "a.tif")
    viewer = Viewer(tiles(source, tmp_path / "out", minZoom=0, maxZoom=6))
    assert corner_colors(viewer, 6, [(178.5, 16.5), (-178.5, 16.5), (178.5, 13.5), (-178.5, 13.5)]) == [
        RED,
        GREEN,
        BLUE,
        WHITE,
    ]
    assert viewer.told["bounds"][0] == -180
    assert abs(viewer.told["center"][0]) == pytest.approx(180)


def test_tiles_match_at_their_seams_and_with_one_stretch(tmp_path: Path) -> None:
    """A slope rises evenly through all tiles: there is no step where two tiles or two rendered squares meet."""
    heights = np.tile(np.linspace(0, 1000, 3000, dtype="float32"), (1, 400, 1))
    source = Tiff(heights, "EPSG:32638", Affine(10, 0, 400_000, 0, -10, 1_700_000)).write(tmp_path / "a.tif")
    result = tiles(source, tmp_path / "out", stretch="minmax")
    viewer = Viewer(result)
    assert viewer.told["maxzoom"] == 14
    for zoom in range(viewer.told["minzoom"], 15):
        whole = viewer.whole(zoom)
        row = whole[np.argmax((whole[..., 3] == 255).sum(axis=1))]
        gray = row[row[:, 3] == 255, 0].astype(int)
        assert gray.min() <= 3
        assert gray.max() >= 252
        assert np.abs(np.diff(gray)).max() <= 1 + 255 // len(gray) * 2


def test_only_tiles_with_something_to_see_are_made(tmp_path: Path) -> None:
    data = np.zeros((1, 2000, 2000), dtype=np.uint8)
    data[0, :100, :100] = data[0, -100:, -100:] = 200
    source = Tiff(data, "EPSG:32638", UTM, nodata=0).write(tmp_path / "a.tif")
    result = tiles(source, tmp_path / "out", minZoom=11, maxZoom=11)
    viewer = Viewer(result)
    assert viewer.told["tileCount"] == viewer.header["addressed_tiles_count"] < 12
    to_degrees = Transformer.from_crs(32638, 4326, always_xy=True)
    assert viewer.color(*to_degrees.transform(401_500, 1_698_500), 11) is not None
    assert viewer.color(*to_degrees.transform(430_000, 1_670_000), 11) is None


def test_hidden_pixels_do_not_tint_the_zooms_above(tmp_path: Path) -> None:
    data = np.full((3, 1024, 1024), 200, dtype=np.uint8)
    data[:, ::2] = 0
    source = Tiff(data, "EPSG:3857", Affine(10, 0, 0, 0, -10, 0), nodata=0).write(tmp_path / "a.tif")
    viewer = Viewer(tiles(source, tmp_path / "out", resampling="nearest", minZoom=8, maxZoom=14))
    for zoom in (8, 11):
        tile = viewer.whole(zoom)
        assert set(np.unique(tile[tile[..., 3] > 0][:, :3])) <= {200}


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_format_is_the_payloads(output_format: str, kind: str, tmp_path: Path) -> None:
    source = Tiff(quarters(600), "EPSG:32638", UTM).write(tmp_path / "a.tif")
    result = tiles(source, tmp_path / "out", outputFormat=output_format)
    with result.outputs[0].path.open("rb") as file:
        archive = Archive(file)
    assert archive.header()["tile_type"].name == kind
    longitude, latitude, zoom = archive.metadata()["center"]
    down = (0.5 - math.asinh(math.tan(math.radians(latitude))) / (2 * math.pi)) * 2**zoom
    found = archive.tile(Tile(zoom, int((longitude / 360 + 0.5) * 2**zoom), int(down)))
    assert found is not None
    assert Image.open(io.BytesIO(found)).format == kind


@pytest.mark.parametrize(("output_format", "tolerance"), [("jpeg", 6), ("webp", 6)])
def test_lossy_tiles_have_the_colors_of_the_file(output_format: str, tolerance: int, tmp_path: Path) -> None:
    """Channels and rows are not exchanged. Pixels that JPEG cannot hide are white."""
    source = Tiff(quarters(600), "EPSG:3857", Affine(100, 0, 5_000_000, 0, -100, 2_000_000)).write(tmp_path / "a.tif")
    viewer = Viewer(tiles(source, tmp_path / "out", outputFormat=output_format))
    to_degrees = Transformer.from_crs(3857, 4326, always_xy=True)
    for zoom in (viewer.told["minzoom"], viewer.told["maxzoom"]):
        for across, down, wanted in ((15, 15, RED), (45, 15, GREEN), (15, 45, BLUE), (45, 45, WHITE)):
            place = to_degrees.transform(5_000_000 + across * 1000, 2_000_000 - down * 1000)
            found = viewer.color(*place, zoom)
            assert found is not None
            assert np.abs(np.subtract(found, wanted)).max() <= tolerance, (zoom, across, down, found)


def test_the_archive_and_its_metadata_describe_place_and_content(tmp_path: Path) -> None:
    source = Tiff(quarters(600), "EPSG:4326", Affine(0.01, 0, 44, 0, -0.01, 18)).write(tmp_path / "a.tif")
    result = tiles(source, tmp_path / "out")
    viewer = Viewer(result)
    assert viewer.told["bounds"] == pytest.approx([44, 12, 50, 18])
    assert viewer.told["center"][:2] == pytest.approx([47, 15])
    assert (viewer.told["minzoom"], viewer.told["maxzoom"]) == (5, 7)
    assert (viewer.header["min_lon_e7"], viewer.header["max_lat_e7"]) == (440_000_000, 180_000_000)
    assert viewer.header["clustered"]
    item = json.loads(result.outputs[1].path.read_text())
    assert item["assets"]["tiles"]["href"] == "map.pmtiles"
    assert item["bbox"] == pytest.approx([44, 12, 50, 18])
    assert item["geoprocessing"]["tiles"] == viewer.told
    check = item["geoprocessing"]["selfCheck"]
    assert check["placesCompared"] == check["matches"] > 30


def test_too_many_tiles_are_refused_before_the_first_with_the_possible_zooms(tmp_path: Path) -> None:
    source = Tiff(quarters(64), "EPSG:4326", Affine(0.1, 0, 44, 0, -0.1, 18)).write(tmp_path / "a.tif")
    with pytest.raises(JobError, match=r"Zooms 5 to 20 are up to .* maxZoom of at most 14") as caught:
        tiles(source, tmp_path / "out", maxZoom=20)
    assert caught.value.code == "too_many_tiles"


def test_without_a_wish_the_zooms_end_where_there_would_be_too_many_tiles() -> None:
    world = Coverage(-EARTH_GIRTH / 2, -EARTH_GIRTH / 2, EARTH_GIRTH / 2, EARTH_GIRTH / 2)
    zooms = choose_zooms(world, 10.0, None, None)
    assert (zooms.first, zooms.last, zooms.tiles) == (0, 8, sum(4**zoom for zoom in range(9)))
    assert zooms.note == "the file's resolution is that of zoom 14, which has too many tiles"


@pytest.mark.parametrize(
    ("tiff", "payload", "code"),
    [
        (Tiff(quarters(64), None, None), {}, "not_georeferenced"),
        (Tiff(quarters(64), None, UTM), {}, "not_georeferenced"),
        (Tiff(np.zeros((1, 64, 64), "uint8"), nodata=0), {}, "no_valid_pixels"),
        (Tiff(quarters(64)), {"minZoom": 9, "maxZoom": 3}, "invalid_payload"),
        (Tiff(quarters(64)), {"maxZoom": 25}, "invalid_payload"),
    ],
    ids=["no place", "no system", "empty", "zooms", "zoom"],
)
def test_files_without_tiles_are_refused_by_name(
    tiff: Tiff, payload: dict[str, Any], code: str, tmp_path: Path
) -> None:
    source = tiff.write(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        tiles(source, tmp_path / "out", **payload)
    assert caught.value.code == code


def test_tiles_of_something_else_do_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer that reads the wrong part of the file is found out by the check of the archive."""
    from geoprocessing_worker.tasks.tiles import source as tile_source

    right = tile_source.cropped

    def wrong(*arguments: Any) -> Any:
        crop, header = right(*arguments)
        assert header.transform is not None
        return crop, replace(header, transform=header.transform @ Affine.translation(200, 200))

    noise = np.random.default_rng(1).integers(0, 255, (1, 40, 40), dtype=np.uint8)
    data = np.kron(noise, np.ones((30, 30), dtype=np.uint8))
    source = Tiff(data, "EPSG:32638", UTM).write(tmp_path / "a.tif")
    monkeypatch.setattr(tile_source, "cropped", wrong)
    with pytest.raises(JobError) as caught:
        tiles(source, tmp_path / "out")
    assert caught.value.code == "self_check_failed"


EDGE = EARTH_GIRTH / 2**12  # of a tile at zoom 12, in metres
TINY: dict[str, tuple[tuple[int, int], str, Affine, dict[str, Any]]] = {
    "a pixel of 60 m": ((1, 1), "EPSG:32638", Affine(60, 0, 400_017, 0, -60, 1_700_031), {}),
    "a pixel of a hundredth of a degree": ((1, 1), "EPSG:4326", Affine(0.01, 0, 44.003, 0, -0.01, 16.007), {}),
    "a pixel on the corner of a tile": ((1, 1), "EPSG:3857", Affine(30, 0, 30 * EDGE - 9, 0, -30, 40 * EDGE + 7), {}),
    "a pixel of 3 cm at zoom 5": ((1, 1), "EPSG:32638", Affine(0.03, 0, 400_017, 0, -0.03, 1_700_031), {"maxZoom": 5}),
    "a pixel at zoom 0": ((1, 1), "EPSG:32638", Affine(60, 0, 400_017, 0, -60, 1_700_031), {"maxZoom": 0}),
    "a column at zoom 4": ((40, 1), "EPSG:32638", Affine(10, 0, 400_017, 0, -10, 1_700_031), {"maxZoom": 4}),
    "a long row": ((1, 900), "EPSG:32638", Affine(10, 0, 400_017, 0, -10, 1_700_031), {"maxZoom": 10}),
    "a turned pixel": ((1, 1), "EPSG:32638", Affine.translation(400_017, 1_700_031) @ Affine.rotation(30)
                       @ Affine.scale(60, -60), {}),
    "classes": ((2, 2), "EPSG:32638", Affine(10, 0, 400_017, 0, -10, 1_700_031),
                {"maxZoom": 8, "resampling": "nearest"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TINY)
def test_a_picture_smaller_than_a_pixel_is_one(kind: str, tmp_path: Path) -> None:
    """The pixel of the highest zoom that holds the picture's middle has the picture's color."""
    (rows, columns), crs, transform, payload = TINY[kind]
    source = Tiff(np.full((3, rows, columns), 200, np.uint8), crs, transform).write(tmp_path / "a.tif")
    result = tiles(source, tmp_path / "out", **payload)
    viewer = Viewer(result)
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    middle = to_degrees.transform(*(transform @ (columns / 2, rows / 2)))
    assert viewer.color(*middle, viewer.told["maxzoom"]) == [200, 200, 200, 255]
    whole = viewer.whole(viewer.told["maxzoom"])
    assert np.count_nonzero(whole[..., 3]) <= 4 * max(1, columns / 10)


def test_a_picture_of_a_few_pixels_keeps_its_size(tmp_path: Path) -> None:
    """Only pictures narrower than a pixel are widened."""
    resolution = EDGE / 256
    source = Tiff(np.full((1, 3, 2), 200, np.uint8), "EPSG:3857", Affine(resolution, 0, 30 * EDGE, 0, -resolution, 0))
    viewer = Viewer(tiles(source.write(tmp_path / "a.tif"), tmp_path / "out"))
    assert np.count_nonzero(viewer.whole(12)[..., 3]) == 6


@pytest.mark.parametrize("tile", [Tile(0, 0, 0), Tile(7, 67, 42), Tile(23, 8388607, 1)])
def test_tiles_and_their_children_lie_where_the_web_mercator_grid_of_morecantile_has_them(tile: Tile) -> None:
    grid = morecantile.tms.get("WebMercatorQuad")
    same = morecantile.Tile(tile.column, tile.row, tile.zoom)
    own = tile.grid(CRS.from_epsg(3857))
    assert own.transform is not None
    corners = (*own.transform @ (0, 0), *own.transform @ (own.width, own.height))
    left, bottom, right, top = grid.xy_bounds(same)
    assert corners == pytest.approx((left, top, right, bottom), abs=1e-6)
    assert {(child.column, child.row) for child in tile.children()} == {
        (child.x, child.y) for child in grid.children(same)
    }
