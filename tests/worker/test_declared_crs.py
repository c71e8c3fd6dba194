"""Coordinate systems that files declare: shifts, units, meridians, PROJ strings, and those that cannot be used."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.crs
import rasterio.warp
from pyproj import CRS, Transformer

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import from_gdal, transformer
from geoprocessing_worker.handlers import TaskHandler
from geoprocessing_worker.source.declared_crs import declared_crs
from geoprocessing_worker.source.gdal import gdal_environment, read_system
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO, GEOTIFF_TO_COG, GEOTIFF_TO_PNG, GEOTIFF_TO_TILES
from geoprocessing_worker.tasks.picture import ConversionResult
from tests.support.rasters import Tiff, ramp, run
from tests.support.raw_tiff import DOUBLE, Tag, geo_tags, placed, write_raw_tiff
from tests.support.task_runs import perform_on
from tests.worker.test_cog import cog
from tests.worker.test_info import info
from tests.worker.test_tiles import tiles

HANDLERS = [GEOTIFF_TO_PNG, GEOTIFF_TO_COG, GEOTIFF_TO_TILES, GEOTIFF_INFO]
GRAY = np.arange(2500, dtype=np.uint16).reshape(50, 50, 1)
BESSEL, WGS84_DATUM, USER = 7004, 6326, 32767
DEGREE = math.radians(1.0)
METER = 1 / 111_000  # in degrees, about
UNITS: dict[str, tuple[dict[int, int | float], float]] = {
    "degrees": ({2054: 9102}, 1.0),
    "arc-minutes": ({2054: 9103}, 60.0),
    "arc-seconds": ({2054: 9104}, 3600.0),
    "grads": ({2054: 9105}, 400 / 360),
    "gons": ({2054: 9106}, 400 / 360),
    "radians": ({2054: 9101}, DEGREE),
    "microradians": ({2054: 9109}, 1e6 * DEGREE),
    "thousandths of a degree": ({2054: USER, 2055: DEGREE / 1000}, 1000.0),
}
MERIDIANS: dict[str, tuple[dict[int, int], float]] = {
    "Greenwich": ({}, 0.0),
    "Paris": ({2051: 8903}, 2.33722917),
    "user-defined": ({2051: USER}, 10.0),
}
SHIFTS: dict[str, tuple[float, ...]] = {
    "no shift": (),
    "three parameters": (598.1, 73.7, 418.2),
    "seven parameters": (598.1, 73.7, 418.2, 0.202, 0.045, -2.455, 6.7),
    "zeros": (0.0,) * 7,
}

SHIFTED = "+proj=longlat +ellps=bessel +towgs84=598.1,73.7,418.2,0.202,0.045,-2.455,6.7 +type=crs"


def write(path: Path, keys: dict[int, Any], x: float, y: float, pixel: float) -> Path:
    tags: dict[int, Tag] = geo_tags({1025: 1, **keys}) | placed(x, y, pixel)
    return write_raw_tiff(path, GRAY, tags=tags)


def bounds_of(result: ConversionResult) -> tuple[float, float, float, float]:
    bounds: Any = result.metadata["bboxLonLat"]
    west, south, east, north = bounds
    return west, south, east, north


def upper_left(result: ConversionResult) -> tuple[float, float]:
    west, _, _, north = bounds_of(result)
    return west, north


def notes_of(result: ConversionResult) -> str:
    choices: Any = result.metadata["choices"]
    return " ".join(choices["notes"])


def as_proj_places(system: str, x: float, y: float) -> tuple[float, float]:
    to_globe = Transformer.from_crs(CRS.from_user_input(system), CRS.from_epsg(4326), always_xy=True)
    lon, lat = to_globe.transform(x, y)
    return lon, lat


def towgs84(shift: tuple[float, ...]) -> str:
    return f" +towgs84={','.join(map(str, shift))}" if shift else ""


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("meridian", MERIDIANS)
@pytest.mark.parametrize("unit", UNITS)
def test_geographic_systems_lie_where_proj_has_them(unit: str, meridian: str, shift: str, tmp_path: Path) -> None:
    """Any angular unit, prime meridian and datum shift: the corner is that of the same system in degrees, to 1 m."""
    (unit_keys, size), (meridian_keys, longitude) = UNITS[unit], MERIDIANS[meridian]
    keys: dict[int, Any] = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, **unit_keys, **meridian_keys}
    if meridian == "user-defined":
        keys[2061] = longitude * size
    if SHIFTS[shift]:
        keys[2062] = SHIFTS[shift]
    path = write(tmp_path / "a.tif", keys, 9 * size, 52 * size, 1e-4 * size)
    expected = as_proj_places(f"+proj=longlat +ellps=bessel{towgs84(SHIFTS[shift])} +type=crs", 9 + longitude, 52)
    result = run(path, tmp_path / "out")
    assert upper_left(result) == pytest.approx(expected, abs=METER)
    assert ("datum of the file's coordinate system is unknown" in notes_of(result)) == (shift == "no shift")


def read_by_gdal(picture: Path, x: float, y: float) -> tuple[float, float]:
    """Return where GDAL places a point of the picture's system by the files beside it."""
    with gdal_environment(GDAL_PAM_ENABLED="YES", GDAL_DISABLE_READDIR_ON_OPEN="FALSE"):
        crs = read_system(str(picture), "PNG")
    assert crs is not None
    found = from_gdal(crs)
    assert found is not None
    lons, lats = transformer(found, CRS.from_epsg(4326)).transform(np.array([x]), np.array([y]))
    return float(lons[0]), float(lats[0])


@pytest.mark.parametrize("shift", ["no shift", "three parameters"])
@pytest.mark.parametrize("meridian", MERIDIANS)
@pytest.mark.parametrize("unit", UNITS)
def test_native_pictures_lie_where_proj_has_them(unit: str, meridian: str, shift: str, tmp_path: Path) -> None:
    """GDAL reads any angular unit, prime meridian and datum shift again in the files beside the picture, to 1 m."""
    (unit_keys, size), (meridian_keys, longitude) = UNITS[unit], MERIDIANS[meridian]
    keys: dict[int, Any] = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, **unit_keys, **meridian_keys}
    if meridian == "user-defined":
        keys[2061] = longitude * size
    if SHIFTS[shift]:
        keys[2062] = SHIFTS[shift]
    path = write(tmp_path / "a.tif", keys, 9 * size, 52 * size, 1e-4 * size)
    result = run(path, tmp_path / "out", coordinate_system="native")
    expected = as_proj_places(f"+proj=longlat +ellps=bessel{towgs84(SHIFTS[shift])} +type=crs", 9 + longitude, 52)
    assert read_by_gdal(result.outputs[0].path, 9 * size, 52 * size) == pytest.approx(expected, abs=METER)


@pytest.mark.parametrize("meridian", MERIDIANS)
@pytest.mark.parametrize("unit", UNITS)
def test_the_angles_of_a_projection_are_in_the_files_unit(unit: str, meridian: str, tmp_path: Path) -> None:
    """Parameters and prime meridian of a projected system count in its angular unit, natively too.

    GDAL 3.10 has no parameters in a unit of the file's own. A note names the unit, and nothing is placed.
    """
    (unit_keys, size), (meridian_keys, longitude) = UNITS[unit], MERIDIANS[meridian]
    keys: dict[int, Any] = {
        1024: 1, 2048: USER, 2050: USER, 2056: BESSEL, 3072: USER, 3074: USER, 3075: 1, 3076: 9001,
        3080: 9.0 * size, 3081: 0.0, 3082: 500_000.0, 3083: 0.0, 3092: 1.0, **unit_keys, **meridian_keys,
    }  # fmt: skip
    if meridian == "user-defined":
        keys[2061] = longitude * size
    path = write(tmp_path / "a.tif", keys, 510_000, 5_760_000, 10)
    if 2055 in keys:
        assert "GDAL reads the angles of its projection in degrees" in notes_of(run(path, tmp_path / "out"))
        return
    system = "+proj=tmerc +lon_0=9 +x_0=500000 +ellps=bessel +type=crs"
    lon, lat = as_proj_places(system, 510_000, 5_760_000)
    assert upper_left(run(path, tmp_path / "out")) == pytest.approx((lon + longitude, lat), abs=2 * METER)
    picture = run(path, tmp_path / "native", coordinate_system="native").outputs[0].path
    assert read_by_gdal(picture, 510_000, 5_760_000) == pytest.approx((lon + longitude, lat), abs=METER)


@pytest.mark.parametrize(
    ("system", "lon", "lat"),
    [("EPSG:32661", 10, 85), ("EPSG:5041", 10, 85), ("EPSG:5482", 170, -80), ("EPSG:8353", 19, 48)],
)
def test_gdal_reads_back_natively_what_it_reads_in_the_file(
    system: str, lon: float, lat: float, tmp_path: Path
) -> None:
    """Polar systems that name northing first, and a datum that PROJ knows by its code alone."""
    crs = CRS.from_user_input(system)
    (x,), (y,) = transformer(CRS.from_epsg(4326), crs).transform(np.array([float(lon)]), np.array([float(lat)]))
    source = Tiff(ramp(20, 20), crs=system, transform=rasterio.Affine(30, 0, x, 0, -30, y)).write(tmp_path / "a.tif")
    picture = run(source, tmp_path / "out", coordinate_system="native").outputs[0].path
    with gdal_environment(GDAL_PAM_ENABLED="YES", GDAL_DISABLE_READDIR_ON_OPEN="FALSE"):
        gdals = read_system(str(picture), "PNG")
    found = np.ravel(rasterio.warp.transform(gdals, "EPSG:4326", [x], [y]))
    assert found == pytest.approx((lon, lat), abs=METER)


@pytest.mark.parametrize("code", [2326, 3407, 29701, 31467])
def test_an_esri_string_of_a_northing_first_system_is_read_back_natively(code: int, tmp_path: Path) -> None:
    """The string has no axes. GDAL reads them in the picture's files by the code, and the self-check compares both."""
    keys: dict[int, Any] = {1024: 1, 3072: USER, 3073: f"ESRI PE String = {CRS.from_epsg(code).to_wkt('WKT1_ESRI')}"}
    result = run(write(tmp_path / "a.tif", keys, 400_000, 800_000, 10), tmp_path / "out", coordinate_system="native")
    expected = as_proj_places(f"EPSG:{code}", 400_000, 800_000)
    assert read_by_gdal(result.outputs[0].path, 400_000, 800_000) == pytest.approx(expected, abs=METER)


@pytest.mark.parametrize("code", ["ESRI:102698", "ESRI:26788"])
@pytest.mark.parametrize("model", [1, USER])
def test_a_long_esri_string_is_read_to_its_end(model: int, code: str, tmp_path: Path) -> None:
    """GDAL cuts the strings of many state planes after 511 bytes, and they counted as damaged."""
    string = CRS.from_user_input(code).to_wkt("WKT1_ESRI")
    keys: dict[int, Any] = {1024: model, 3072: USER, 3073: f"ESRI PE String = {string}"}
    result = run(write(tmp_path / "a.tif", keys, 2_700_000, 400_000, 10), tmp_path / "out")
    assert upper_left(result) == pytest.approx(as_proj_places(code, 2_700_000, 400_000), abs=200 * METER)


def test_krovak_of_an_esri_string_has_its_axes_turned(tmp_path: Path) -> None:
    """The string has the turn in three parameters, which WKT1 loses. GDAL's other Krovak is 2,000 km off."""
    crs = CRS.from_epsg(5514)
    (x,), (y,) = transformer(CRS.from_epsg(4326), crs).transform(np.array([15.0]), np.array([50.0]))
    string = crs.to_wkt("WKT1_ESRI").replace("D_S_JTSK", "D_Mine").replace("GCS_S_JTSK", "GCS_Mine")
    keys: dict[int, Any] = {1024: USER, 3072: USER, 3073: f"ESRI PE String = {string}"}
    result = run(write(tmp_path / "a.tif", keys, x, y, 10), tmp_path / "out")
    assert upper_left(result) == pytest.approx((15, 50), abs=200 * METER)
    native = run(tmp_path / "a.tif", tmp_path / "native", coordinate_system="native")
    assert read_by_gdal(native.outputs[0].path, x, y) == pytest.approx((15, 50), abs=200 * METER)


@pytest.mark.parametrize(("code", "size", "metres"), [(9001, None, 1.0), (9003, None, 1200 / 3937), (USER, 20.0, 20.0)])
@pytest.mark.parametrize("shift", SHIFTS)
def test_projected_systems_lie_where_proj_has_them(
    code: int, size: float | None, metres: float, shift: str, tmp_path: Path
) -> None:
    """A projection on a datum of the file's own, in meters, feet and a unit of the file's own, to 1 m."""
    keys: dict[int, Any] = {
        1024: 1, 2048: USER, 2050: USER, 2056: BESSEL, 3072: USER, 3074: USER, 3075: 1, 3076: code,
        3080: 9.0, 3081: 0.0, 3082: 500_000 / metres, 3083: 0.0, 3092: 1.0,
    }  # fmt: skip
    if size:
        keys[3077] = size
    if SHIFTS[shift]:
        keys[2062] = SHIFTS[shift]
    path = write(tmp_path / "a.tif", keys, 510_000 / metres, 5_760_000 / metres, 10 / metres)
    system = f"+proj=tmerc +lon_0=9 +x_0=500000 +ellps=bessel{towgs84(SHIFTS[shift])} +type=crs"
    expected = as_proj_places(system, 510_000, 5_760_000)
    west, north = upper_left(run(path, tmp_path / "out"))
    # The box of a picture that is turned by 0.1 degrees is a meter wider than its corner.
    assert (west, north) == pytest.approx(expected, abs=2 * METER)


@pytest.mark.parametrize("projected", [False, True])
def test_sidecars_of_native_keep_the_shift(projected: bool, tmp_path: Path) -> None:
    """GDAL places the picture by its aux.xml where it places the file, and the metadata hold a bound system.

    A note names the part that the `.prj` lacks.
    """
    keys: dict[int, Any] = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, 2062: SHIFTS["seven parameters"]}
    x, y, pixel = 9.0, 52.0, 1e-4
    if projected:
        keys |= {1024: 1, 3072: USER, 3074: 16032, 3076: 9001}
        x, y, pixel = 410_000, 5_760_000, 10
    path = write(tmp_path / "a.tif", keys, x, y, pixel)
    result = run(path, tmp_path / "out", coordinate_system="native")
    crs: Any = result.metadata["crs"]
    assert crs["wkt2"].startswith("BOUNDCRS[")
    assert crs["projjson"]["type"] == "BoundCRS"
    with rasterio.open(path) as source, rasterio.open(result.outputs[0].path) as picture:
        found, expected = (rasterio.warp.transform(one.crs, "EPSG:4326", [x], [y]) for one in (picture, source))
    assert np.ravel(found) == pytest.approx(np.ravel(expected), abs=METER / 100)
    assert crs["epsg"] is None
    assert "the .prj cannot express the datum shift (TOWGS84): the .aux.xml has it" in notes_of(result)
    assert ".prj" not in notes_of(run(path, tmp_path / "degrees"))


@pytest.mark.parametrize(
    "system",
    [
        SHIFTED,
        CRS.from_user_input(SHIFTED).to_wkt("WKT1_GDAL"),
        CRS.from_user_input(SHIFTED).to_wkt("WKT2_2019"),
    ],
    ids=["PROJ", "WKT1", "WKT2"],
)
def test_source_crs_brings_its_own_shift(system: str, tmp_path: Path) -> None:
    """A job's numbers count as a file's do, in any language."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=placed(9, 52, 1e-4))
    result = run(path, tmp_path / "out", source_crs=system)
    expected = as_proj_places(f"+proj=longlat +ellps=bessel{towgs84(SHIFTS['seven parameters'])} +type=crs", 9, 52)
    assert upper_left(result) == pytest.approx(expected, abs=METER)


def esri_string(projection: str, extension: str, model: int = USER) -> dict[int, Any]:
    """The keys by which GDAL keeps a system that GeoTIFF has no keys for."""
    geographic = (
        'GEOGCS["GCS_unknown",DATUM["D_Unknown",SPHEROID["GRS_1980",6378137,298.257222101]],PRIMEM["Greenwich",0],'
        'UNIT["Degree",0.0174532925199433]]'
    )
    extension = extension and f',EXTENSION["PROJ4","{extension}"]'
    return {
        1024: model,
        3072: USER,
        3073: f'ESRI PE String = PROJCS["disk",{geographic},{projection},UNIT["Meter",1]{extension}]',
    }


GEOS = (
    'PROJECTION["Geostationary_Satellite"],PARAMETER["central_meridian",-75],PARAMETER["satellite_height",35786023],'
    'PARAMETER["false_easting",0],PARAMETER["false_northing",0]'
)
TMERC = 'PROJECTION["Transverse_Mercator"],PARAMETER["central_meridian",9],PARAMETER["scale_factor",1]'


@pytest.mark.parametrize("model", [1, USER])
@pytest.mark.parametrize("sweep", ["x", "y"])
def test_a_proj_string_in_an_esri_string_is_followed(sweep: str, model: int, tmp_path: Path) -> None:
    """Its sweep is 5 km off with the other axis, in the picture and in GDAL's reading of the native sidecars."""
    proj = f"+proj=geos +sweep={sweep} +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 +ellps=GRS80 +units=m +no_defs"
    path = write(tmp_path / "a.tif", esri_string(GEOS, proj, model), 2_000_000, 3_000_000, 2000)
    expected = as_proj_places(f"{proj} +type=crs", 2_050_000, 2_950_000)
    swept = f"+sweep={'y' if sweep == 'x' else 'x'}"
    other = as_proj_places(f"{proj.replace(f'+sweep={sweep}', swept)} +type=crs", 2_050_000, 2_950_000)
    result = run(path, tmp_path / "out", coordinate_system="native")
    with rasterio.open(result.outputs[0].path) as picture:
        found = np.ravel(rasterio.warp.transform(picture.crs, "EPSG:4326", [2_050_000], [2_950_000]))
    assert found == pytest.approx(expected, abs=METER)
    assert math.dist(found, other) > 1000 * METER
    # ESRI's words for the projection have no sweep, and are read as y.
    assert any(output.path.suffix == ".prj" for output in result.outputs) == (sweep == "y")
    assert ("there is no .prj" in notes_of(result)) == (sweep == "x")
    placed_picture = run(path, tmp_path / "degrees")
    west, south, east, north = bounds_of(placed_picture)
    assert west < expected[0] < east
    assert south < expected[1] < north


@pytest.mark.parametrize("model", [1, USER])
@pytest.mark.parametrize("ellipsoid", ["GRS80", "WGS84"])
@pytest.mark.parametrize(
    ("datum", "unknown"), [("D_WGS_1984", False), ("D_North_American_1983", False), ("D_Unknown", True)]
)
def test_the_datum_beside_a_proj_string_is_known(
    datum: str, unknown: bool, ellipsoid: str, model: int, tmp_path: Path
) -> None:
    """The string has an ellipsoid only. A note on an unknown datum is untrue where the words around it have one."""
    proj = f"+proj=geos +sweep=x +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 +ellps={ellipsoid} +units=m +no_defs"
    keys = esri_string(GEOS, proj, model)
    keys[3073] = keys[3073].replace("D_Unknown", datum)
    path = write(tmp_path / "a.tif", keys, 2_000_000, 3_000_000, 2000)
    result = run(path, tmp_path / "out", coordinate_system="native")
    assert ("datum of the file's coordinate system is unknown" in notes_of(result)) == unknown
    expected = as_proj_places(f"{proj} +type=crs", 2_050_000, 2_950_000)
    assert read_by_gdal(result.outputs[0].path, 2_050_000, 2_950_000) == pytest.approx(expected, abs=2 * METER)


def test_a_disk_is_transparent_beside_the_globe(tmp_path: Path) -> None:
    """Of a whole disk the corners show nothing, natively and in degrees."""
    proj = "+proj=geos +sweep=x +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 +ellps=GRS80 +units=m +no_defs"
    path = write(tmp_path / "a.tif", esri_string(GEOS, proj), -5_434_895, 5_434_895, 5_434_895 / 25)
    result = run(path, tmp_path / "out")
    fraction: Any = result.metadata["validFraction"]
    assert 0.5 < fraction < 0.95
    assert bounds_of(result) == pytest.approx((-156, -81, 6, 81), abs=3)


@pytest.mark.parametrize("projection", [GEOS, TMERC])
def test_a_proj_string_that_opens_files_is_named_in_the_note(projection: str, tmp_path: Path) -> None:
    """The note names the system and the reason, and never has the file without one. A job's system helps."""
    keys = esri_string(projection, "+proj=tinshift +file=/etc/hostname")
    path = write(tmp_path / "a.tif", keys, 510_000, 5_760_000, 10)
    result = run(path, tmp_path / "out")
    assert result.metadata["crs"] is None
    assert "coordinate system 'disk' cannot be used, since it holds PROJ operations" in notes_of(result)
    assert "says no place" not in notes_of(result)
    helped = run(path, tmp_path / "helped", source_crs="EPSG:25832")
    assert helped.metadata["crs"] is not None


def test_a_grid_that_is_not_there_costs_its_shift_alone(tmp_path: Path) -> None:
    """The picture lies where it would without the grid, and a note names the grid."""
    proj = "+proj=tmerc +lon_0=9 +ellps=bessel +nadgrids=BETA2007.gsb +no_defs"
    path = write(tmp_path / "a.tif", esri_string(TMERC, proj), 10_000, 5_760_000, 10)
    result = run(path, tmp_path / "out")
    expected = as_proj_places("+proj=tmerc +lon_0=9 +ellps=bessel +type=crs", 10_000, 5_760_000)
    assert upper_left(result) == pytest.approx(expected, abs=2 * METER)
    assert "needs the grid 'BETA2007.gsb', which is not available" in notes_of(result)


@pytest.mark.parametrize(
    ("wkt", "caveat"),
    [
        (',EXTENSION["PROJ4_GRIDS","a.gsb"]]', "a.gsb"),
        (",TOWGS84[1,2,3,0,0,0,0]]", None),
        ("]", "unknown ('mine')"),
    ],
)
def test_a_system_that_gdal_reads_is_kept_with_its_caveat(wkt: str, caveat: str | None) -> None:
    """Bound to a grid, bound to numbers, and bound to nothing."""
    text = f'GEOGCS["a",DATUM["mine",SPHEROID["a",6378137,298.3]{wkt},PRIMEM["Greenwich",0],UNIT["degree",0.01745329]]'
    found = declared_crs(rasterio.crs.CRS.from_wkt(text), {})
    assert found.crs is not None
    assert found.crs.is_bound == ("TOWGS84" in wkt)
    assert (caveat is None and found.caveat is None) or (caveat or "nothing") in (found.caveat or "")


def test_a_grid_for_heights_is_no_matter() -> None:
    """The horizontal part places a picture, and has no caveat for the geoid that heights refer to."""
    wkt = (
        'COMPD_CS["a",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
        'UNIT["degree",0.0174532925199433]],VERT_CS["h",VERT_DATUM["g",2005,EXTENSION["PROJ4_GRIDS","egm96_15.gtx"]],'
        'UNIT["metre",1],AXIS["Up",UP]]]'
    )
    found = declared_crs(rasterio.crs.CRS.from_wkt(wkt), {})
    assert found.crs is not None
    assert (found.crs.is_geographic, found.caveat) == (True, None)


MODERN = "positions can be off by some meters"


@pytest.mark.parametrize(
    ("crs", "words"),
    [
        ("+proj=utm +zone=33 +ellps=intl", "positions can be off by some hundred meters"),
        ("+proj=utm +zone=33 +ellps=GRS80", MODERN),
        ("+proj=utm +zone=33 +ellps=WGS84", MODERN),
        ("+proj=utm +zone=33 +datum=WGS84", None),
        ("EPSG:23033", None),
        ("+proj=eqc +R=1562090", None),
        ("EPSG:3067", None),
        ("EPSG:6151", None),
        ("ESRI:54009", None),
        ("EPSG:2154", None),
    ],
)
def test_an_unknown_datum_gets_a_note(crs: str, words: str | None, tmp_path: Path) -> None:
    """It is taken for WGS 84. A datum that an authority lists gets none, whatever database lists it."""
    source = Tiff(ramp(20, 20), crs=crs, transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6.7e6)).write(tmp_path / "a.tif")
    notes = notes_of(run(source, tmp_path / "out", coordinate_system="native"))
    assert ("datum" in notes, words or "") == (words is not None, words if words and words in notes else "")


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, 2054: 9102}, "the datum of the file's coordinate system"),
        ({1024: 1, 3072: 29999}, "'EPSG:29999' cannot be used, since its code is unknown"),
    ],
)
def test_every_kind_of_job_has_the_doubts_about_a_place(
    handler: TaskHandler, keys: dict[int, Any], words: str, tmp_path: Path
) -> None:
    """A place that can be off, and one that is not used, are in `source.notes`, of a COG in `cog.notes` too."""
    path = write(tmp_path / "a.tif", keys, 9, 52, 1e-4)
    if handler is GEOTIFF_TO_TILES and 3072 in keys:
        with pytest.raises(JobError, match="EPSG:29999"):
            perform_on(handler, path, tmp_path / "out")
        return
    metadata: Any = perform_on(handler, path, tmp_path / "out").metadata
    told = [metadata["source"]["notes"], *([metadata["cog"]["notes"]] if "cog" in metadata else [])]
    assert [sum(words in note for note in notes) for notes in told] == [1] * len(told)
    assert len(told) == 1 + (handler is GEOTIFF_TO_COG)
    companion = json.loads((tmp_path / "out" / "a.json").read_text())
    assert companion["geoprocessing"]["source"]["notes"] == told[0]


@pytest.mark.parametrize(("given", "used"), [("EPSG:23033", True), ("EPSG:4326", False)])
def test_source_crs_settles_an_unknown_datum(given: str, used: bool, tmp_path: Path) -> None:
    """The note asks for it. A geographic one cannot be meant for a file in meters."""
    place = rasterio.Affine(10, 0, 5e5, 0, -10, 5.5e6)
    source = Tiff(ramp(20, 20), crs="+proj=utm +zone=33 +ellps=intl", transform=place).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", source_crs=given, coordinate_system="native")
    crs: Any = result.metadata["crs"]
    assert ("placed by sourceCrs" in notes_of(result), crs["epsg"] == 23033) == (used, used)


def test_source_crs_in_meters_is_not_meant_for_degrees(tmp_path: Path) -> None:
    """The file's numbers could be meters a stone's throw from the system's origin, and are not."""
    place = rasterio.Affine(0.01, 0, 15, 0, -0.01, 50)
    source = Tiff(ramp(20, 20), crs="+proj=longlat +ellps=intl", transform=place).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", source_crs="EPSG:23033")
    assert upper_left(result) == pytest.approx((15, 50), abs=METER)


def test_a_datum_with_a_code_is_known() -> None:
    """An authority that lists it can be newer than the database here."""
    datum = 'DATUM["Datum of 2030",ELLIPSOID["GRS 1980",6378137,298.257222101],ID["EPSG",1999]]'
    axes = 'CS[ellipsoidal,2],AXIS["lat",north],AXIS["lon",east],ANGLEUNIT["degree",0.0174532925199433]'
    for text, known in ((datum, True), (datum.replace(',ID["EPSG",1999]', ""), False)):
        found = declared_crs(rasterio.crs.CRS.from_wkt(f'GEOGCRS["a",{text},{axes}]'), {})
        assert (found.caveat is None) == known


OWN_DEGREES: dict[int, Any] = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL}
OWN_METERS: dict[int, Any] = {
    1024: 1,
    2048: USER,
    2050: USER,
    2056: BESSEL,
    3072: USER,
    3074: USER,
    3075: 1,
    3080: 9.0,
    3081: 0.0,
    3082: 500_000.0,
    3083: 0.0,
    3092: 1.0,
}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({1024: 1, 3072: 29999}, "'EPSG:29999' cannot be used, since its code is unknown"),
        ({1024: 1, 3072: USER, 3073: "Mine 7"}, "'Mine 7' cannot be used"),
        (
            {1024: 1, 2048: 4267, 3072: USER, 3074: USER, 3075: 7, 3076: 9001, 3080: -90.0, 3081: 30.0, 3092: 0.8},
            "PROJ cannot parse it",
        ),
        (
            {**OWN_DEGREES, 2054: USER, 2055: 1e-320},
            "'unknown' cannot be used, since the size of its unit is impossible",
        ),
        (
            {**OWN_DEGREES, 2054: USER, 2055: 1e-30},
            "'unknown' cannot be used, since the size of its unit is impossible",
        ),
        ({**OWN_METERS, 3076: USER, 3077: 1e-30}, "'unnamed' cannot be used, since the size of its unit is impossible"),
        ({**OWN_METERS, 3076: USER, 3077: 1e30}, "'unnamed' cannot be used, since the size of its unit is impossible"),
        ({1024: 3, 2048: 4978}, "neither geographic nor projected (Geocentric)"),
    ],
)
def test_a_system_that_cannot_be_used_is_named(keys: dict[int, Any], words: str, tmp_path: Path) -> None:
    """The note has its code or name, and never a file without a system. Tiles and web copies are refused by it."""
    source = write(tmp_path / "a.tif", keys, 10_000, 20_000, 10)
    with pytest.raises(JobError, match=re.escape(words[-12:])) as no_web_copy:
        cog(source, tmp_path / "web", webOptimized=True)
    with pytest.raises(JobError, match=re.escape(words[-12:])) as no_tiles:
        tiles(source, tmp_path / "tiles")
    assert no_web_copy.value.code == no_tiles.value.code == "not_georeferenced"
    result = run(source, tmp_path / "out")
    assert result.metadata["crs"] is None
    assert words in notes_of(result)
    assert "says no place" not in notes_of(result)


@pytest.mark.parametrize("placing", ["transform", "tie points"])
@pytest.mark.parametrize(
    "shift", [(math.nan, 105.0, 414.0), (-math.inf, 0.0, 0.0), (1e9, 0.0, 0.0), (0.0,) * 6 + (1e30,)]
)
def test_a_datum_shift_that_is_none_leaves_the_picture_unplaced(
    shift: tuple[float, ...], placing: str, tmp_path: Path
) -> None:
    """NaN, infinite and absurd numbers make the system unusable. A note names it, and each kind of job ends well."""
    keys: dict[int, Any] = {1024: 2, 1025: 1, 2048: USER, 2050: USER, 2054: 9102, 2056: BESSEL, 2062: shift}
    corners = (0, 0, 0, 10, 50, 0, 50, 0, 0, 10.05, 50, 0, 50, 50, 0, 10.05, 49.95, 0)
    place: dict[int, Tag] = {33922: (DOUBLE, corners)} if placing == "tie points" else placed(10, 50, 0.001)
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=geo_tags(keys) | place)
    assert info(path, tmp_path / "info")["geoprocessing"]["crs"] is None
    with pytest.raises(JobError) as no_tiles:
        tiles(path, tmp_path / "tiles")
    assert no_tiles.value.code == "not_georeferenced"
    if math.isfinite(sum(shift)) or placing == "tie points":
        assert cog(path, tmp_path / "cog").metadata["crs"] is None
    else:
        with pytest.raises(JobError) as no_copy:
            cog(path, tmp_path / "cog")
        assert no_copy.value.code == "unsupported_crs"
    result = run(path, tmp_path / "out")
    assert (result.metadata["crs"], result.metadata["validFraction"]) == (None, 1.0)
    assert "the file's coordinate system '" in notes_of(result)
    assert "cannot be used, since" in notes_of(result)


def test_a_system_without_a_place_is_not_called_missing(tmp_path: Path) -> None:
    """The file has a system, and lacks the transform."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=geo_tags({1024: 1, 1025: 1, 3072: 32633}))
    assert "has a coordinate system, but no transform" in notes_of(run(path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("code", "x", "y"), [(32662, 1_000_000, 5_000_000), (9311, -1_000_000, 500_000), (3295, 40_000, 60_000)]
)
def test_a_code_counts_more_than_the_method_that_gdal_reads(code: int, x: float, y: float, tmp_path: Path) -> None:
    """From these codes in a file GDAL reads other methods with the same numbers, up to 20 km off."""
    result = run(write(tmp_path / "a.tif", {1024: 1, 3072: code}, x, y, 10), tmp_path / "out")
    west, south, east, north = bounds_of(result)
    lon, lat = as_proj_places(f"EPSG:{code}", x + 250, y - 250)
    assert ((west + east) / 2, (south + north) / 2) == pytest.approx((lon, lat), abs=10 * METER)


@pytest.mark.parametrize("code", [3067, 3879, 4747, 5972])
def test_a_code_survives_a_newer_database(code: int) -> None:
    """GDAL's database gives these a datum that pyproj's does not list. They are the same systems."""
    found = from_gdal(rasterio.crs.CRS.from_epsg(code))
    assert found == CRS.from_epsg(code)


def test_a_code_that_does_not_fit_is_not_believed() -> None:
    """A file that calls its own ellipsoid EPSG:3067 keeps its own numbers."""
    wkt = CRS.from_epsg(3067).to_wkt("WKT1_GDAL").replace("6378137", "6378388").replace("298.257222101", "297")
    found = from_gdal(rasterio.crs.CRS.from_wkt(wkt))
    assert found is not None
    assert found.ellipsoid is not None
    assert found.ellipsoid.semi_major_metre == 6378388


CASES = Path(__file__).parents[2].parent / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize(
    ("name", "system", "x", "y"),
    [
        ("towgs84-degrees", "+proj=longlat +ellps=bessel", 9.0, 52.0),
        ("towgs84-meters", "+proj=tmerc +lon_0=9 +x_0=500000 +ellps=bessel", 510_000, 5_760_000),
        ("arc-second", "+proj=longlat +datum=WGS84", -292_320 / 3600, 103_320 / 3600),
    ],
)
def test_cases_lie_where_proj_has_them(name: str, system: str, x: float, y: float, tmp_path: Path) -> None:
    """The files of the issue, to 2 m."""
    shift = towgs84(SHIFTS["seven parameters"]) if "towgs84" in name else ""
    result = run(CASES / f"{name}.tif", tmp_path / "out")
    assert upper_left(result) == pytest.approx(as_proj_places(f"{system}{shift} +type=crs", x, y), abs=2 * METER)
