"""The pages of docs/MAPS.md in Chromium: results appear at their true coordinates."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from geoprocessing_worker.handlers import TaskRequest
from geoprocessing_worker.render.task_options import TilesOptions
from geoprocessing_worker.tasks.tiles.job import make_tiles
from tests.support.browser import MISSING, Look, Seen, install, open_pages
from tests.support.processes import ROOT, clean_environment
from tests.support.rasters import Tiff, quiet, run
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
    # Chromium without a graphics card takes seconds.
    pytest.mark.timeout(300),
]

DOCUMENT = (ROOT / "docs" / "MAPS.md").read_text(encoding="utf-8")
PAGES = {
    re.findall("<title>(.*)</title>", page)[0]: page
    for page in re.findall(r"^```html\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
}
LEAFLET, MAPLIBRE = "A picture with Leaflet", "A picture with MapLibre"
TILES = ("Tiles with MapLibre", "Tiles with Leaflet")
COLORS = ((255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 0, 255), (0, 220, 220))
GRAY, MARK = 128, 10  # the rest of a map, half the side of a mark in pixels


@dataclass(frozen=True)
class Marked:
    """A gray map with a colored square around each of five places: near its corners and in its middle."""

    crs: str
    transform: Affine
    width: int = 900
    height: int = 700
    pixels: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        left, right, top, bottom = 40, self.width - 40, 40, self.height - 40
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        object.__setattr__(self, "pixels", [*corners, (self.width // 2, self.height // 2)])

    def write(self, path: Path) -> Path:
        data = np.full((3, self.height, self.width), GRAY, dtype=np.uint8)
        for (column, row), color in zip(self.pixels, COLORS, strict=True):
            part = data[:, row - MARK : row + MARK, column - MARK : column + MARK]
            part[:] = np.array(color, dtype=np.uint8)[:, None, None]
        return Tiff(data, crs=self.crs, transform=self.transform).write(path)

    def places(self) -> list[tuple[float, float]]:
        """Longitude and latitude of the center of each mark."""
        way = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        return [way.transform(*(self.transform @ pixel)) for pixel in self.pixels]


YEMEN = Marked("EPSG:32638", Affine(30, 0, 400_000, 0, -30, 1_700_000))
TURNED = Marked("EPSG:32638", Affine(9, 3, 400_000, 3, -9, 1_700_000))
FIJI = Marked("EPSG:32760", Affine(100, 0, 790_000, 0, -100, 8_100_000))
TALL = Marked("EPSG:4326", Affine(0.01, 0, 8, 0, -0.01, 62))
WIDE = Marked("EPSG:32633", Affine(400, 0, 320_000, 0, -400, 6_200_000))


@dataclass(frozen=True)
class Site:
    """A web server's folder and address."""

    folder: Path
    url: str

    def picture(self, name: str, marked: Marked, **options: Any) -> Path:
        folder = self._folder(name)
        run(marked.write(folder / "map.tif"), folder, **options)
        return folder

    def tiles(self, name: str, marked: Marked) -> Path:
        folder = self._folder(name)
        (folder / "tiles").mkdir()
        source, options = marked.write(folder / "map.tif"), TilesOptions.from_payload({})
        make_tiles(
            TaskRequest(
                source=source, output_folder=folder / "tiles", stem="map", options=options, source_name="map.tif"
            ),
            quiet,
        )
        return folder

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        (folder / "node_modules").symlink_to(self.folder / "node_modules")
        return folder

    def look(self, folder: Path, title: str, places: Sequence[tuple[float, float]]) -> Look:
        name = title.replace(" ", "-").lower()
        (folder / f"{name}.html").write_text(PAGES[title], encoding="utf-8")
        return Look(f"{self.url}/{folder.name}/{name}.html", folder / f"{name}.png", places)

    def see(self, *looks: Look) -> list[Seen]:
        return open_pages(self.folder / "node_modules", looks)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP, with ranges."""
    app = Starlette()
    app.mount("/", StaticFiles(directory=folder, follow_symlink=True))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, "the web server to start")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    with served(folder) as url:
        yield Site(folder, url)


def marks(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The center of each mark on a page, (5, 2) as x and y."""
    found = []
    for color in COLORS:
        rows, columns = np.nonzero(np.abs(pixels.astype(int) - color).sum(axis=2) < 90)
        assert rows.size > 20, f"nothing on the page is {color}"
        found.append((columns.mean() + 0.5, rows.mean() + 0.5))
    return np.array(found)


def off(seen: Seen) -> NDArray[np.float64]:
    """The distance of each mark from its place, in pixels of the page."""
    assert seen.errors == []
    wrong = marks(seen.pixels) - seen.points
    return np.asarray(np.hypot(wrong[:, 0], wrong[:, 1]))


def test_every_page_of_the_document_is_tested() -> None:
    assert set(PAGES) == {LEAFLET, MAPLIBRE, *TILES}
    assert len(PAGES) == DOCUMENT.count("```html")


def test_pictures_in_web_mercator_appear_at_their_coordinates(site: Site) -> None:
    """Both libraries show the marks of a UTM map, rendered in EPSG:3857, within two pixels of their coordinates."""
    folder = site.picture("mercator", YEMEN, coordinate_system="EPSG:3857")
    for seen in site.see(*(site.look(folder, title, YEMEN.places()) for title in (LEAFLET, MAPLIBRE))):
        assert off(seen).max() < 2


def test_tiles_appear_at_their_coordinates(site: Site) -> None:
    """Both libraries read the PMTiles archive by ranges, and show marks within two pixels of their coordinates."""
    folder = site.tiles("tiles", YEMEN)
    for seen in site.see(*(site.look(folder, title, YEMEN.places()) for title in TILES)):
        assert off(seen).max() < 2


def test_only_maplibre_places_a_rotated_picture(site: Site) -> None:
    """Four corners place a native picture rotated by 18 degrees. A box cannot, and the page shows an error."""
    folder = site.picture("turned", TURNED, coordinate_system="native")
    leaflet, maplibre = site.see(*(site.look(folder, title, TURNED.places()) for title in (LEAFLET, MAPLIBRE)))
    assert off(maplibre).max() < 2
    assert leaflet.errors == ['No place on this map. Ask for {"coordinateSystem":"EPSG:3857"}']
    assert leaflet.overlays == 0


def test_maps_across_the_antimeridian_stay_in_one_piece(site: Site) -> None:
    """Pictures and tiles that cross 180 degrees show all marks within two pixels."""
    folder = site.picture("fiji", FIJI, coordinate_system="EPSG:3857")
    places = [(lon % 360, lat) for lon, lat in FIJI.places()]
    assert min(places)[0] < 180 < max(places)[0]
    tiles = site.tiles("fiji-tiles", FIJI)
    looks = [site.look(folder, title, places) for title in (LEAFLET, MAPLIBRE)]
    for seen in site.see(*looks, *(site.look(tiles, title, places) for title in TILES)):
        assert off(seen).max() < 2


@pytest.mark.parametrize("title", [LEAFLET, MAPLIBRE])
@pytest.mark.parametrize(
    ("name", "marked", "system"), [("tall", TALL, "EPSG:4326"), ("wide", WIDE, "native")], ids=["tall", "wide"]
)
def test_max_error_matches_the_displayed_error(site: Site, title: str, name: str, marked: Marked, system: str) -> None:
    """A map that shows such a picture anyway has its worst mark off by most of `maxErrorPx`, and never more."""
    folder = site.picture(f"{name}-{title[-7:].strip()}", marked, coordinate_system=system)
    item = json.loads((folder / "map.json").read_text())
    block = item["geoprocessing"]
    kind = block["maps"]["leaflet" if title == LEAFLET else "maplibre"]
    assert kind["maxErrorPx"] > 2
    assert kind["instead"] == {"coordinateSystem": "EPSG:3857"}
    west, south, east, north = block["bboxLonLat"]
    corners = [marked.transform @ at for at in ((0, 0), (900, 0), (900, 700), (0, 700))]
    way = Transformer.from_crs(marked.crs, "EPSG:4326", always_xy=True)
    kind |= {"bounds": [[south, west], [north, east]], "coordinates": [way.transform(*corner) for corner in corners]}
    (folder / "map.json").write_text(json.dumps(item))
    (seen,) = site.see(site.look(folder, title, marked.places()))
    wrong = (marks(seen.pixels) - seen.points) / _scale(seen.points, np.array(marked.pixels))
    worst = np.hypot(*wrong.T).max()
    assert 0.6 * kind["maxErrorPx"] < worst < kind["maxErrorPx"] + 2


def _scale(points: NDArray[np.float64], pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pixels of the page per pixel of the picture, across and down."""
    shown, own = points[2] - points[0], pixels[2] - pixels[0]
    found: NDArray[np.float64] = shown / own
    return found


def test_commands_of_the_document_make_the_files_of_its_pages(site: Site, tmp_path: Path) -> None:
    """The document's two conversions make the file names of its pages."""
    block = re.findall(r"^```bash\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)[0]
    source = YEMEN.write(tmp_path / "map.tif")
    script = block.replace(" map.tif", f" {source}").replace("site/", f"{tmp_path}/site/")
    ended = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    made = tmp_path / "site"
    assert (made / json.loads((made / "map.json").read_text())["assets"]["picture"]["href"]).exists()
    item = json.loads((made / "tiles" / "map.json").read_text())
    assert (made / "tiles" / item["assets"]["tiles"]["href"]).name == "map.pmtiles"
