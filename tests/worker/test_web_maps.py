"""Placements on web maps: each error is that of the map, and only accurate placements are given."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoprocessing_worker.geo.web_maps import largest_error, placements
from geoprocessing_worker.raster import Grid
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.tasks.picture import explain
from tests.support.rasters import UTM, Tiff, quarters, ramp, run

GEOSTATIONARY = "+proj=geos +h=35785831 +lon_0=0 +sweep=y"
SPHERE_MERCATOR = "+proj=merc +a=6378137 +b=6378137 +units=m"
WORLD = math.pi * 6378137
ASK = {"coordinateSystem": "EPSG:3857"}

# Name, system, width, height, affine, and whether the placements of Leaflet and MapLibre hold.
GRIDS = [
    ("default, small", "EPSG:4326", 2000, 2000, Affine(1e-5, 0, 44, 0, -1e-5, 16), True, True),
    ("default, tall", "EPSG:4326", 50, 1000, Affine(0.01, 0, 44, 0, -0.01, 50), False, False),
    ("default, southern", "EPSG:4326", 500, 1000, Affine(0.01, 0, 44, 0, -0.01, -50), False, False),
    ("default, world", "EPSG:4326", 720, 340, Affine(0.5, 0, -180, 0, -0.5, 85), False, False),
    ("default, turned", "EPSG:4326", 1000, 800, Affine(9e-5, 3e-5, 44, 3e-5, -9e-5, 16), False, True),
    ("web mercator", "EPSG:3857", 4096, 4096, Affine(100, 0, 1e6, 0, -100, 6e6), True, True),
    ("web mercator, world", "EPSG:3857", 512, 512, Affine(WORLD / 256, 0, -WORLD, 0, -WORLD / 256, WORLD), True, True),
    ("web mercator, turned", "EPSG:3857", 1000, 800, Affine(9, 3, 1e6, 3, -9, 6e6), False, True),
    ("web mercator, ESRI's", "ESRI:102100", 900, 900, Affine(100, 0, 1e6, 0, -100, 6e6), True, True),
    ("web mercator, a custom sphere", SPHERE_MERCATOR, 500, 500, Affine(10, 0, 1e6, 0, -10, 6e6), True, True),
    ("ellipsoidal mercator", "EPSG:3395", 2000, 2000, Affine(10, 0, 1e6, 0, -10, 6e6), True, True),
    ("NAD83", "EPSG:4269", 2000, 2000, Affine(1e-5, 0, -100, 0, -1e-5, 40), True, True),
    ("NAD83, tall", "EPSG:4269", 500, 2000, Affine(1e-3, 0, -100, 0, -1e-3, 40), False, False),
    ("Paris meridian, in grads", "EPSG:4807", 2000, 2000, Affine(1e-5, 0, 0, 0, -1e-5, 53), True, True),
    ("US feet", "EPSG:2263", 1000, 1000, Affine(1, 0, 980_000, 0, -1, 200_000), True, True),
    ("UTM, 2 km", "EPSG:32638", 64, 64, UTM, True, True),
    ("UTM, 10 km", "EPSG:32638", 1000, 1000, Affine(10, 0, 450_000, 0, -10, 5_000_000), False, True),
    ("UTM, 40 km", "EPSG:32638", 4000, 4000, Affine(10, 0, 350_000, 0, -10, 1_700_000), False, True),
    ("UTM, 100 km", "EPSG:32633", 4096, 4096, Affine(25, 0, 400_000, 0, -25, 5_000_000), False, False),
    ("UTM, 600 km", "EPSG:32633", 4096, 4096, Affine(150, 0, 200_000, 0, -150, 5_600_000), False, False),
    ("UTM, turned", "EPSG:32638", 1000, 800, Affine(9, 3, 400_000, 3, -9, 1_700_000), False, True),
    ("UTM, antimeridian", "EPSG:32760", 1000, 1000, Affine(100, 0, 780_000, 0, -100, 8_100_000), False, True),
    ("Albers, a continent", "EPSG:5070", 3000, 2000, Affine(1500, 0, -2.3e6, 0, -1500, 3.1e6), False, False),
    ("polar", "EPSG:3413", 1000, 1000, Affine(1000, 0, 1e6, 0, -1000, -1e6), False, False),
    ("polar, round the pole", "EPSG:3413", 1000, 1000, Affine(4000, 0, -2e6, 0, -4000, 2e6), False, False),
    ("equal earth, world", "EPSG:8857", 400, 200, Affine(8e4, 0, -1.6e7, 0, -8e4, 8e6), False, False),
    ("a disk in space", GEOSTATIONARY, 1000, 1000, Affine(11000, 0, -5.5e6, 0, -11000, 5.5e6), False, False),
]
NAMES = [name for name, *_ in GRIDS]


def told(system: str, width: int, height: int, transform: Affine) -> Any:
    placed = placements(Grid(width, height, transform, CRS.from_user_input(system)))
    assert placed is not None
    return json.loads(json.dumps(placed.as_json(), allow_nan=False))


def lost(
    system: str, width: int, height: int, transform: Affine, corners: list[list[float]], plane: str
) -> NDArray[np.float64]:
    """How many pixels each of 81 x 81 places is from where a map shows it, by PROJ alone.

    `corners`: longitude and latitude from the upper left, clockwise. The map stretches the picture bilinearly.
    """
    across, down = np.meshgrid(np.linspace(0, 1, 81), np.linspace(0, 1, 81), indexing="xy")
    a, b, c, d, e, f = tuple(transform)[:6]
    xs, ys = a * across * width + b * down * height + c, d * across * width + e * down * height + f
    lons, lats = Transformer.from_crs(system, "EPSG:4326", always_xy=True).transform(xs, ys)
    lons = np.unwrap(np.unwrap(lons, axis=1, period=360), axis=0, period=360)
    lons += 360 * np.round((corners[0][0] - lons[0, 0]) / 360)
    # In degrees from the middle, since PROJ wraps longitudes beyond 180.
    middle = (lons.min() + lons.max()) / 2
    on_map = Transformer.from_crs("EPSG:4326", plane, always_xy=True)
    true = np.stack(on_map.transform(lons - middle, lats))
    one, two, three, four = (np.array(on_map.transform(lon - middle, lat))[:, None, None] for lon, lat in corners)
    shown = (1 - down) * ((1 - across) * one + across * two) + down * ((1 - across) * four + across * three)
    right, below = (two - one + three - four)[:, 0, 0] / (2 * width), (four - one + three - two)[:, 0, 0] / (2 * height)
    off = np.linalg.solve(np.stack([right, below], axis=1), (shown - true).reshape(2, -1))
    found: NDArray[np.float64] = np.hypot(*off)
    return found


def box_corners(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, north], [east, north], [east, south], [west, south]]


@pytest.mark.parametrize(("name", "system", "width", "height", "transform", "leaflet", "maplibre"), GRIDS, ids=NAMES)
def test_only_placements_that_hold_are_given(
    name: str, system: str, width: int, height: int, transform: Affine, leaflet: bool, maplibre: bool
) -> None:
    """In every CRS each error is a number, and given placements are at most two pixels off by PROJ."""
    maps = told(system, width, height, transform)
    box, quad = maps["leaflet"], maps["maplibre"]
    assert ((box["bounds"] is not None), (quad["coordinates"] is not None)) == (leaflet, maplibre)
    for kind, holds in ((box, leaflet), (quad, maplibre)):
        assert (kind["maxErrorPx"] <= 2) == holds
        assert kind["instead"] == (None if holds else ASK)
    if leaflet:
        (south, west), (north, east) = box["bounds"]
        corners = box_corners(west, south, east, north)
        worst = lost(system, width, height, transform, corners, "EPSG:3857").max()
        assert worst == pytest.approx(box["maxErrorPx"], abs=0.02)
    if maplibre:
        assert (
            lost(system, width, height, transform, quad["coordinates"], "EPSG:3857").max() <= quad["maxErrorPx"] + 0.02
        )
    assert maps["recommendedCrs"] == (None if leaflet and maplibre else "EPSG:3857")


@pytest.mark.parametrize(("south", "degrees"), [(44.5, 1.0), (42.5, 5.0), (0.0, 1.0), (-60.0, 10.0)])
def test_error_of_degrees_is_measured_on_a_mercator_map(south: float, degrees: float) -> None:
    """The row that is farthest off, when a picture in degrees is stretched between its corners on a Mercator map."""

    def northing(lat: float) -> float:
        return math.log(math.tan(math.pi / 4 + math.radians(lat) / 2))

    north, height = south + degrees, 4096
    off = [
        (northing(south + degrees * row / height) - northing(south)) / (northing(north) - northing(south)) * height
        - row
        for row in range(height)
    ]
    maps = told("EPSG:4326", 100, height, Affine(degrees / 100, 0, 44, 0, -degrees / height, north))
    assert maps["leaflet"]["maxErrorPx"] == pytest.approx(max(map(abs, off)), rel=0.01)
    assert maps["maplibre"]["maxErrorPx"] == maps["leaflet"]["maxErrorPx"]


def test_error_of_a_box_in_a_turned_system_is_how_far_its_sides_lean() -> None:
    """A UTM picture 40 km wide leans by its meridian convergence: some 25 pixels over 4,000 rows."""
    transform = Affine(10, 0, 350_000, 0, -10, 1_700_000)
    maps = told("EPSG:32638", 4000, 4000, transform)
    lons, lats = Transformer.from_crs("EPSG:32638", "EPSG:4326", always_xy=True).transform(
        [350_000, 390_000, 350_000, 390_000], [1_700_000, 1_700_000, 1_660_000, 1_660_000]
    )
    corners = box_corners(min(lons), min(lats), max(lons), max(lats))
    worst = lost("EPSG:32638", 4000, 4000, transform, corners, "EPSG:3857").max()
    assert maps["leaflet"]["maxErrorPx"] == pytest.approx(worst, rel=0.01)
    assert 15 < worst < 40


def test_picture_beyond_the_end_of_web_maps_has_nothing_to_ask_for() -> None:
    """North of 85.05 degrees no coordinate system helps, and no placement is given, however small the picture."""
    maps = told("EPSG:4326", 360, 4, Affine(1, 0, -180, 0, -1, 90))
    assert (maps["leaflet"]["bounds"], maps["maplibre"]["coordinates"]) == (None, None)
    assert (maps["leaflet"]["instead"], maps["recommendedCrs"]) == (None, None)
    tiny = told("EPSG:4326", 8, 4, Affine(45, 0, -180, 0, -45, 90))
    assert tiny["leaflet"]["maxErrorPx"] < 2
    assert (tiny["leaflet"]["bounds"], tiny["leaflet"]["instead"]) == (None, ASK)


def test_other_planets_have_no_place_on_maps_of_earth() -> None:
    assert placements(Grid(100, 100, Affine(0.1, 0, 0, 0, -0.1, 10), CRS.from_user_input("IAU_2015:30100"))) is None
    assert placements(Grid(100, 100, None, None)) is None


@pytest.mark.parametrize(
    ("system", "transform"),
    [
        ("EPSG:4326", Affine(0.001, 0, 179.7, 0, -0.001, -16)),
        ("EPSG:4326", Affine(0.001, 0, -180.7, 0, -0.001, -16)),
        ("EPSG:32760", Affine(100, 0, 780_000, 0, -100, 8_100_000)),
        ("EPSG:32601", Affine(100, 0, 120_000, 0, -100, 1_800_000)),
        ("EPSG:3857", Affine(100, 0, WORLD - 40_000, 0, -100, -1_800_000)),
    ],
)
def test_corners_for_maplibre_lie_round_a_middle_from_minus_180_to_180(system: str, transform: Affine) -> None:
    """MapLibre draws no picture with a center beyond. Corners stay continuous on both sides of the antimeridian."""
    lons = [lon for lon, _ in told(system, 1000, 400, transform)["maplibre"]["coordinates"]]
    assert -180 <= (min(lons) + max(lons)) / 2 < 180
    assert max(lons) - min(lons) < 2
    assert (min(lons) < -180) or (max(lons) > 180)


def test_placements_start_at_the_right_corner(tmp_path: Path) -> None:
    """Leaflet takes south-west and north-east, MapLibre four corners from the upper left, KML a box or a quad."""
    source = Tiff(quarters(), crs="EPSG:32638", transform=UTM).write(tmp_path / "a.tif")
    degrees: Any = run(source, tmp_path / "one").metadata["maps"]
    west, south, east, north = (44.068, 15.357, 44.086, 15.375)
    assert np.array(degrees["leaflet"]["bounds"]) == pytest.approx(np.array([[south, west], [north, east]]), abs=1e-3)
    corners = np.array([[west, north], [east, north], [east, south], [west, south]])
    assert np.array(degrees["maplibre"]["coordinates"]) == pytest.approx(corners, abs=1e-3)
    assert degrees["kml"]["LatLonBox"]["north"] == pytest.approx(north, abs=1e-3)
    metres: Any = run(source, tmp_path / "two", coordinate_system="native").metadata["maps"]
    quad = np.array(metres["kml"]["gx:LatLonQuad"])
    assert quad == pytest.approx(corners[[3, 2, 1, 0]], abs=1e-3)


@pytest.mark.parametrize(("name", "system", "width", "height", "transform", "leaflet", "maplibre"), GRIDS, ids=NAMES)
def test_kml_has_a_box_a_quad_or_advice(
    name: str, system: str, width: int, height: int, transform: Affine, leaflet: bool, maplibre: bool
) -> None:
    """Placements for KML are at most two pixels off in degrees. All other pictures ask for EPSG:4326."""
    kml = told(system, width, height, transform)["kml"]
    assert isinstance(kml["maxErrorPx"], float)
    if kml["maxErrorPx"] > 2:
        assert set(kml) == {"maxErrorPx", "instead"}
        assert kml["instead"] == {"coordinateSystem": "EPSG:4326"}
        return
    assert kml["instead"] is None
    if "LatLonBox" in kml:
        corners = box_corners(**kml["LatLonBox"])
    else:
        lower_left, lower_right, upper_right, upper_left = kml["gx:LatLonQuad"]
        corners = [upper_left, upper_right, lower_right, lower_left]
    assert lost(system, width, height, transform, corners, "EPSG:4326").max() <= kml["maxErrorPx"] + 0.02


def test_note_names_the_requirements_of_a_web_map(tmp_path: Path) -> None:
    """A default picture that is more than two pixels off on a Mercator map has a note, as in `explain`."""
    tall = Tiff(ramp(1000, 50), transform=Affine(0.01, 0, 44, 0, -0.01, 50)).write(tmp_path / "a.tif")
    made: Any = run(tall, tmp_path / "one").metadata
    (note,) = [note for note in made["choices"]["notes"] if "web map" in note]
    assert '{"coordinateSystem": "EPSG:3857"}' in note
    assert f"{made['maps']['leaflet']['maxErrorPx']:.1f} pixels" in note
    explained: Any = explain(tall, RenderOptions())
    assert note in explained["notes"]
    small = Tiff(quarters(), transform=Affine(0.0001, 0, 44, 0, -0.0001, 16)).write(tmp_path / "b.tif")
    results = (run(tall, tmp_path / "two", coordinate_system="EPSG:3857"), run(small, tmp_path / "three"))
    for result in results:
        good: Any = result.metadata
        assert good["maps"]["recommendedCrs"] is None
        assert [note for note in good["choices"]["notes"] if "web map" in note] == []


def test_worse_of_both_ways_to_stretch_counts() -> None:
    """MapLibre up to 5 draws two triangles, since 6 a perspective: where one is exact, the error is the other's."""
    corners = np.array([[0.0, 0.0], [100.0, 0.0], [90.0, -50.0], [10.0, -50.0]])
    across, down = np.meshgrid(np.linspace(0, 1, 41), np.linspace(0, 1, 41))
    # The eight terms of the perspective that takes the unit square to the corners, by linear equations.
    equations, values = [], []
    for (u, v), (x, y) in zip([(0, 0), (1, 0), (1, 1), (0, 1)], corners, strict=True):
        equations += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    a, b, c, d, e, f, g, h = np.linalg.solve(np.array(equations), np.array(values))
    depth = g * across + h * down + 1
    perspective = (a * across + b * down + c) / depth, (d * across + e * down + f) / depth
    # The upper left triangle runs to x = 100, y = 0 and to x = 10, y = -50. The other one meets it on the diagonal.
    upper = across + down <= 1
    triangles = (
        np.where(upper, 100 * across + 10 * down, 90 - 80 * (1 - across) + 10 * (1 - down)),
        -50 * down,
    )
    apart = np.hypot(perspective[0] - triangles[0], perspective[1] - triangles[1]).max()
    for true in (perspective, triangles):
        # A picture of 90 x 50 pixels, as large as the quadrilateral is on average.
        assert largest_error(corners, true, 90, 50) == pytest.approx(apart, rel=0.01)
    assert apart > 2
