"""Copies by `geotiff_to_cog` of files in systems that GeoTIFF keys, or web tiles, have no room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import rasterio
import rasterio.warp
from pyproj import CRS

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import transformer
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.cog.check import check_web_copy
from tests.support.rasters import Tiff, quarters, run
from tests.worker.test_cog import cog
from tests.worker.test_declared_crs import (
    BESSEL,
    GEOS,
    MERIDIANS,
    METER,
    TMERC,
    UNITS,
    USER,
    WGS84_DATUM,
    as_proj_places,
    esri_string,
    upper_left,
    write,
)

LIKE_DEGREES = "+proj=longlat +ellps=bessel +type=crs"
PIXELS = 50
STEP = 0.001  # degrees per pixel


def system(unit: str, meridian: str) -> dict[int, Any]:
    (keys, size), (meridian_keys, longitude) = UNITS[unit], MERIDIANS[meridian]
    own = {2061: longitude * size} if meridian == "user-defined" else {}
    return {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, **keys, **meridian_keys, **own}


def write_in(unit: str, meridian: str, folder: Path) -> tuple[Path, tuple[float, float]]:
    """Write a file of 50 by 50 pixels. Return it with the longitude and latitude of its upper left corner."""
    size, longitude = UNITS[unit][1], MERIDIANS[meridian][1]
    source = write(folder / "a.tif", system(unit, meridian), 9 * size, 52 * size, STEP * size)
    return source, as_proj_places(LIKE_DEGREES, 9 + longitude, 52)


@pytest.mark.parametrize("meridian", MERIDIANS)
@pytest.mark.parametrize("unit", ["arc-seconds", "grads", "radians", "thousandths of a degree"])
def test_a_web_copy_lies_in_its_place_whatever_the_unit(unit: str, meridian: str, tmp_path: Path) -> None:
    """The visible pixels begin at the file's corner, to two pixels."""
    source, corner = write_in(unit, meridian, tmp_path)
    made = cog(source, tmp_path / "out", webOptimized=True)
    with rasterio.open(made.outputs[0].path) as copy:
        rows, columns = np.nonzero(copy.dataset_mask())
        x, y = copy.transform @ (int(columns.min()), int(rows.min()))
        (west,), (north,) = rasterio.warp.transform(copy.crs, "EPSG:4326", [x], [y])
    assert (west, north) == pytest.approx(corner, abs=2 * STEP)


def test_a_web_copy_of_wgs_84_in_arc_seconds_lies_in_its_place(tmp_path: Path) -> None:
    """GDAL reads the unit, and its warp takes the numbers for degrees all the same."""
    keys = {1024: 2, 2048: USER, 2050: WGS84_DATUM, 2054: 9104}
    source = write(tmp_path / "a.tif", keys, -292_320, 103_320, 3)
    west, south, east, north = cast(
        "list[float]", cog(source, tmp_path / "o", webOptimized=True).metadata["bboxLonLat"]
    )
    lon, lat = (-292_320 + 75) / 3600, (103_320 - 75) / 3600
    assert west < lon < east
    assert south < lat < north


@pytest.mark.parametrize("meridian", ["Paris", "user-defined"])
@pytest.mark.parametrize("unit", ["arc-seconds", "grads", "radians"])
def test_a_copy_is_in_degrees_where_keys_would_lose_its_meridian(unit: str, meridian: str, tmp_path: Path) -> None:
    """It lies where the file does, to a hundredth of a pixel, and a note has the change."""
    source, corner = write_in(unit, meridian, tmp_path)
    made = cog(source, tmp_path / "out")
    found = inspect_file(made.outputs[0].path)
    assert found.crs is not None
    assert found.transform is not None
    x, y = transformer(found.crs, inspect_file(source).crs or found.crs).transform(
        np.array([found.transform.c]), np.array([found.transform.f])
    )
    size = UNITS[unit][1]
    assert (x[0] / size, y[0] / size) == pytest.approx((9, 52), abs=STEP / 100)
    bounds: Any = made.metadata["bboxLonLat"]
    assert (bounds[0], bounds[3]) == pytest.approx(corner, abs=STEP / 100)
    block: Any = made.metadata["cog"]
    assert "the copy has an equivalent system" in block["notes"][0]


def test_a_web_copy_follows_an_esri_string_that_gdal_does_not_parse(tmp_path: Path) -> None:
    """GDAL parses the string only in files with a user-defined model, and could not reproject this one."""
    proj = "+proj=geos +sweep=x +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 +ellps=GRS80 +units=m +no_defs"
    source = write(tmp_path / "a.tif", esri_string(GEOS, proj, 1), 1_000_000, 1_000_000, 2000)
    bounds: Any = cog(source, tmp_path / "out", webOptimized=True).metadata["bboxLonLat"]
    middle = as_proj_places(f"{proj} +type=crs", 1_050_000, 950_000)
    assert bounds[0] < middle[0] < bounds[2]
    assert bounds[1] < middle[1] < bounds[3]


@pytest.mark.parametrize("model", [1, USER])
def test_a_web_copy_does_without_a_missing_grid(model: int, tmp_path: Path) -> None:
    """It lies where the file does without the shift. The note has the grid and the cure."""
    proj = "+proj=tmerc +lon_0=9 +ellps=bessel +nadgrids=BETA2007.gsb +no_defs"
    source = write(tmp_path / "a.tif", esri_string(TMERC, proj, model), 10_000, 5_760_000, 10)
    made = cog(source, tmp_path / "out", webOptimized=True).metadata
    bounds: Any = made["bboxLonLat"]
    middle = as_proj_places("+proj=tmerc +lon_0=9 +ellps=bessel +type=crs", 10_250, 5_759_750)
    assert bounds[0] < middle[0] < bounds[2]
    assert bounds[1] < middle[1] < bounds[3]
    block: Any = made["cog"]
    assert "needs the grid 'BETA2007.gsb'" in block["notes"][0]
    assert "Reproject the file with gdalwarp where the grid is installed" in block["notes"][0]


def test_a_web_copy_in_another_place_is_found_out(tmp_path: Path) -> None:
    """A copy that shows no place of the source does not pass for want of places to compare."""
    place = rasterio.Affine(10, 0, 5e5, 0, -10, 5.5e6)
    here = Tiff(quarters(), crs="EPSG:32633", transform=place).write(tmp_path / "a.tif")
    there = Tiff(quarters(), crs="EPSG:32640", transform=place).write(tmp_path / "b.tif")
    made = cog(here, tmp_path / "out", webOptimized=True).outputs[0].path
    with pytest.raises(JobError, match="it is in another place"):
        check_web_copy(there, made, inspect_file(there), inspect_file(made), quality=None)


def test_the_note_on_a_system_without_heights_names_no_horizontal_part(tmp_path: Path) -> None:
    """A two-dimensional system in a unit of its own is copied whole, in other keys."""
    keys, per_degree = UNITS["thousandths of a degree"]
    own = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, **keys}
    source = write(tmp_path / "a.tif", own, per_degree, 50 * per_degree, 0.001 * per_degree)
    block: Any = cog(source, tmp_path / "out").metadata["cog"]
    assert block["notes"][0] == (
        "GeoTIFF keys cannot hold an unnamed geographic system as the file has it: the copy has an equivalent system"
    )
    assert ["datum" in note for note in block["notes"][1:]] == [True]


def test_a_web_copy_keeps_the_meridian_of_an_esri_string(tmp_path: Path) -> None:
    """PROJ (9.5) alone loses the meridian of Paris on the way to WGS 84."""
    keys = {1024: 2, 2048: USER, 2049: f"ESRI PE String = {CRS.from_epsg(4901).to_wkt('WKT1_ESRI')}"}
    source = write(tmp_path / "a.tif", keys, -0.7, 52, STEP)
    west, south, east, north = cast(
        "list[float]", cog(source, tmp_path / "web", webOptimized=True).metadata["bboxLonLat"]
    )
    lon, lat = as_proj_places("+proj=longlat +a=6376523 +rf=308.64 +pm=2.33720833333333 +type=crs", -0.63, 46.8)
    assert west < lon + 25 * STEP < east
    assert south < lat - 25 * STEP < north
    assert upper_left(run(source, tmp_path / "out")) == pytest.approx((lon, lat), abs=STEP)


def write_at(folder: Path, code: int, lon: float, lat: float) -> Path:
    """Write a file with pixels of 5 meters and its upper left corner at a place."""
    system = CRS.from_epsg(code)
    x, y = (float(side[0]) for side in transformer(CRS.from_epsg(4326), system).transform(*np.array([[lon], [lat]])))
    keys = {1024: 2, 2048: code, 2054: 9102} if system.is_geographic else {1024: 1, 3072: code}
    return write(folder / "a.tif", keys, x, y, 5e-5 if system.is_geographic else 5)


@pytest.mark.parametrize(
    ("code", "lon", "lat"),
    [(4801, 8.0, 46.8), (20790, -8.1, 39.7), (21897, -79.1019, -3.532)],
)
def test_a_web_copy_has_the_datum_shift_of_its_place(code: int, lon: float, lat: float, tmp_path: Path) -> None:
    """GDAL alone (3.10) finds none for the meridians of Bern and Lisbon, and none beside Colombia: 100 meters off."""
    made = cog(write_at(tmp_path, code, lon, lat), tmp_path / "web", webOptimized=True)
    with rasterio.open(made.outputs[0].path) as copy:
        rows, columns = np.nonzero(copy.dataset_mask())
        x, y = copy.transform @ (int(columns.min()), int(rows.min()))
        (west,), (north,) = rasterio.warp.transform(copy.crs, "EPSG:4326", [x], [y])
    assert (west, north) == pytest.approx((lon, lat), abs=20 * METER)


def test_a_web_copy_that_gdal_would_shift_is_refused(tmp_path: Path) -> None:
    """GeoTIFF keys have no room for a shift of Krovak's projection beside the meridian of Ferro."""
    source = write_at(tmp_path, 2065, 15.5, 49.8)
    with pytest.raises(JobError, match="by the datum shift for the file's place") as refused:
        cog(source, tmp_path / "web", webOptimized=True)
    assert (refused.value.code, refused.value.error_class) == ("unsupported_crs", "invalid_input")
    assert refused.value.detail["crs"] in refused.value.message
    assert cog(source, tmp_path / "out").outputs


def test_a_web_copy_of_an_unparsed_string_at_the_antimeridian_lies_where_proj_has_it(tmp_path: Path) -> None:
    """GDAL has no transformation for the string (links of Fiji), and no place there is tried."""
    keys = {1024: 1, 3072: USER, 3073: f"ESRI PE String = {CRS.from_epsg(3140).to_wkt('WKT1_ESRI')}"}
    source = write(tmp_path / "a.tif", keys, 530_000, 820_000, 50)
    bounds: Any = cog(source, tmp_path / "web", webOptimized=True).metadata["bboxLonLat"]
    west, south, east, north = bounds
    lon, lat = as_proj_places("EPSG:3140", 531_250, 818_750)
    assert (west < lon < east, south < lat < north) == (True, True)


def test_a_web_copy_that_gdal_would_turn_about_its_middle_is_refused(tmp_path: Path) -> None:
    """GDAL reads Adams Square II as a turned projection, which leaves the corner of a box round the middle in place."""
    keys = {1024: 1, 3072: USER, 3073: f"ESRI PE String = {CRS.from_user_input('ESRI:54098').to_wkt('WKT1_ESRI')}"}
    with pytest.raises(JobError, match="GDAL cannot align"):
        cog(write(tmp_path / "a.tif", keys, -5000, 5000, 200), tmp_path / "web", webOptimized=True)


def test_pixels_too_small_for_web_tiles_are_refused(tmp_path: Path) -> None:
    """A micrometer is beyond the last zoom of GDAL's tiles."""
    source = write(tmp_path / "a.tif", {1024: 1, 3072: 32633}, 500_000, 5_700_000, 1e-6)
    with pytest.raises(JobError, match="too small or too large on Earth for web tiles") as refused:
        cog(source, tmp_path / "web", webOptimized=True)
    assert refused.value.code == "not_georeferenced"


def test_a_copy_is_refused_where_keys_would_make_an_impossible_system_possible(tmp_path: Path) -> None:
    """GDAL reads degrees instead of the unit, and the copy would have a place that the file has not."""
    source = write(
        tmp_path / "a.tif", {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, 2054: USER, 2055: 1e-320}, 9, 52, STEP
    )
    with pytest.raises(JobError, match=r"the size of its unit is impossible\. Give the file another") as refused:
        cog(source, tmp_path / "out")
    assert refused.value.code == "unsupported_crs"
