"""Whole files of any CRS, orientation, size and layout: GDAL finds each ground point again in the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.control import GroundControlPoint

from geoprocessing_worker.source.gdal import gdal_environment
from tests.support.rasters import Tiff, picture_of, quarters, run

# A system, a place in it for the files, and meters or degrees per pixel.
SYSTEMS: dict[str, tuple[str, float, float, float]] = {
    "degrees": ("EPSG:4326", 44.0, 15.0, 0.001),
    "degrees over the date line": ("EPSG:4326", 179.98, -17.0, 0.002),
    "latitude first, south": ("EPSG:4674", -60.0, -20.0, 0.001),
    "UTM": ("EPSG:32638", 420_000, 1_660_000, 30),
    "UTM over the date line": ("EPSG:32660", 830_000, 1_000_000, 400),
    "Web Mercator": ("EPSG:3857", 4_898_000, 1_690_000, 100),
    "Mollweide": ("ESRI:54009", 4_000_000, 2_000_000, 2000),
    "northing first": ("EPSG:3035", 4_321_000, 3_210_000, 500),
    "New Zealand": ("EPSG:2193", 1_750_000, 5_430_000, 50),
    "Arctic": ("EPSG:3995", 900_000, -1_100_000, 1000),
    "Lambert": ("EPSG:2154", 700_000, 6_600_000, 25),
    "feet": ("EPSG:2263", 1_000_000, 200_000, 10),
}
PLACES = ((0.5, 0.5), (0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7))
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"compress": "lzw"},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
    "planar": {"interleave": "band"},
    "big": {"BIGTIFF": "YES", "ENDIANNESS": "BIG"},
}


@dataclass(frozen=True)
class Case:
    """A file: its position, rotation, size and storage, and the options of its job."""

    system: str
    width: int
    height: int
    angle: float
    aspect: float
    mirrored: bool
    south_up: bool
    layout: str
    control: bool
    point: bool
    target: str
    max_size: int

    @property
    def transform(self) -> Affine:
        _, x, y, size = SYSTEMS[self.system]
        pixel = Affine.scale(-size if self.mirrored else size, (size if self.south_up else -size) * self.aspect)
        return Affine.translation(x, y) @ Affine.rotation(self.angle) @ pixel

    def write(self, path: Path) -> Path:
        """Write the column in red and the row in green, so that each pixel has its origin."""
        data = np.zeros((3, self.height, self.width), dtype=np.uint8)
        data[0] = np.rint(np.linspace(0, 255, self.width))[None, :]
        data[1] = np.rint(np.linspace(0, 255, self.height))[:, None]
        crs = SYSTEMS[self.system][0]
        if not self.control:
            source = Tiff(data, crs=crs, transform=self.transform, profile=LAYOUTS[self.layout]).write(path)
        else:
            corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height), (self.width / 2, 0)]
            points = [
                GroundControlPoint(row=y, col=x, x=(self.transform @ (x, y))[0], y=(self.transform @ (x, y))[1])
                for x, y in corners
            ]
            made = Tiff(data, crs=None, transform=None, gcps=(points, crs), profile=LAYOUTS[self.layout])
            source = made.write(path)
        if self.point and not self.control:
            with gdal_environment(), rasterio.open(source, "r+") as dataset:
                dataset.update_tags(AREA_OR_POINT="Point")
        return source


cases = st.builds(
    Case,
    system=st.sampled_from(list(SYSTEMS)),
    width=st.integers(24, 160),
    height=st.integers(24, 160),
    angle=st.sampled_from([0.0, 0.0, 90.0, 180.0, -90.0]) | st.floats(-180, 180),
    aspect=st.sampled_from([1.0, 1.0, 0.25, 4.0]),
    mirrored=st.booleans(),
    south_up=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
    control=st.booleans(),
    point=st.booleans(),
    target=st.sampled_from(["EPSG:4326", "EPSG:3857", "native"]),
    max_size=st.sampled_from([4096, 150, 60, 24]),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases)
def test_five_ground_points_are_found_again(case: Case) -> None:
    """A pixel of the picture, taken to the ground by GDAL and from there to the source, has the source's value.

    To half a pixel of the picture.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = case.write(folder / "a.tif")
        result = run(source, folder / "out", coordinate_system=case.target, max_size=case.max_size)
        with (
            gdal_environment(GDAL_PAM_ENABLED="YES", GDAL_DISABLE_READDIR_ON_OPEN="FALSE"),
            rasterio.open(folder / "out" / "a.png") as made,
        ):
            transform, crs = made.transform, made.crs
        picture = picture_of(result).astype(float)
    way = Transformer.from_crs(crs.to_wkt(), SYSTEMS[case.system][0], always_xy=True)

    def expected(column: float, row: float) -> NDArray[np.float64]:
        """The place in the source, in its pixels, that a place of the picture shows."""
        x, y = way.transform(*(transform @ (column, row)))
        turn = 360.0 if case.system.startswith("degrees") else 0.0
        found = ~case.transform @ (x, y)
        if turn:
            names = [~case.transform @ (x + shift, y) for shift in (-turn, 0.0, turn)]
            found = min(names, key=lambda place: math.hypot(place[0] - case.width / 2, place[1] - case.height / 2))
        return np.array(found)

    height, width = picture.shape[:2]
    looked_at = 0
    for across, down in PLACES:
        column, row = int(across * width), int(down * height)
        place = expected(column + 0.5, row + 0.5)
        size = np.array([case.width, case.height])
        beside = [expected(column + 1.5, row + 0.5), expected(column + 0.5, row + 1.5)]
        step = np.maximum(1.0, np.abs(np.array(beside) - place).max(axis=0))
        if ((place < 2 + 2 * step) | (place > size - 2 - 2 * step)).any():
            continue  # outside of a turned source, or so near to its edge that there is less to average
        looked_at += 1
        assert picture[row, column, 3] == 255
        shown = picture[row, column, :2] / 255 * (size - 1) + 0.5
        gray = size / 255
        assert (np.abs(shown - place) <= 0.5 * step + gray).all(), (case, shown, place, step)
    assert looked_at or min(case.width, case.height) < 60 or case.max_size < 100


@pytest.mark.parametrize("target", ["EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("angle", [0.0, 30.0])
def test_control_points_on_both_sides_of_the_date_line_are_neighbors(angle: float, target: str, tmp_path: Path) -> None:
    """Points at 179.9 and at -179.9 degrees make a picture a fraction of a degree wide, in its colors."""
    place = Affine.translation(179.9, -17) @ Affine.rotation(angle) @ Affine.scale(0.004, -0.004)
    corners = ((0, 0), (64, 0), (0, 64), (64, 64))
    named = [(column, row, *(place @ (column, row))) for column, row in corners]
    points = [GroundControlPoint(row=y, col=x, x=lon - 360 * (lon > 180), y=lat) for x, y, lon, lat in named]
    assert {point.x > 0 for point in points} == {True, False}
    source = Tiff(quarters(), crs=None, transform=None, gcps=(points, "EPSG:4326")).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", coordinate_system=target)
    west, _, east, _ = np.array(result.metadata["bboxLonLat"], dtype=float)
    assert 179 < west < 180 < east < 181
    picture = picture_of(result)
    quarters_of = [
        np.argwhere((picture == (*color, 255)).all(axis=2))
        for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    ]
    counts = [len(places) for places in quarters_of]
    assert min(counts) > 0.8 * max(counts) > 500, "what lies beyond the line is there too"
    assert quarters_of[0].mean(axis=0)[0] < quarters_of[2].mean(axis=0)[0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_can_be_kept(system: str) -> None:
    """Turned by 30 degrees, in its own system: the world file has all six terms, and GDAL agrees with them."""
    case = Case(
        system, 60, 40, 30.0, 1.0, mirrored=False, south_up=False, layout="strips", control=False, point=False,
        target="native", max_size=4096,
    )  # fmt: skip
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(case.write(folder / "a.tif"), folder / "out", coordinate_system="native")
        with (
            gdal_environment(GDAL_PAM_ENABLED="YES", GDAL_DISABLE_READDIR_ON_OPEN="FALSE"),
            rasterio.open(folder / "out" / "a.png") as made,
        ):
            assert made.transform.almost_equals(case.transform, precision=1e-6)
            assert made.crs == rasterio.crs.CRS.from_string(SYSTEMS[system][0])
