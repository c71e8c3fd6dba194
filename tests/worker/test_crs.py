"""CRSs: the accepted texts, and their description."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.crs
from pyproj import CRS, Transformer

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import (
    describe,
    epsg,
    from_gdal,
    horizontal,
    latitude_first,
    parse_crs,
    per_degree,
    transformer,
)
from tests.support.broken_systems import BROKEN_SYSTEMS


@pytest.mark.parametrize(
    "text", ["EPSG:4326", "epsg:32638", "urn:ogc:def:crs:EPSG::3857", "ESRI:54009", "IAU_2015:30100", " EPSG:4326 "]
)
def test_codes_are_taken(text: str) -> None:
    """Authority codes in their usual spellings are understood."""
    if text.startswith("IAU"):
        with pytest.raises(JobError):
            parse_crs(text + "x")
        return
    assert parse_crs(text).name


def test_wkt_and_projjson_are_taken() -> None:
    """A system without a code can be given as WKT or PROJJSON."""
    utm = CRS.from_epsg(32638)
    assert epsg(parse_crs(utm.to_wkt())) == 32638
    assert epsg(parse_crs(utm.to_json())) == 32638


@pytest.mark.parametrize(
    "text",
    [
        "+proj=longlat +nadgrids=/etc/passwd",
        "+proj=pipeline +step +proj=utm +zone=38",
        "/etc/passwd",
        "https://example.org/crs.wkt",
        "EPSG:999999",
        "",
        "{",
        "{}",
        "PROJCS[",
        "EPSG:5703",  # heights alone place nothing
        "WGS 84",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    """PROJ strings with files, paths, URLs, names and nonsense never reach PROJ's own guessing."""
    with pytest.raises(JobError) as caught:
        parse_crs(text)
    assert caught.value.code == "bad_crs"


@pytest.mark.parametrize(
    "text",
    [
        "+proj=utm +zone=38",
        "+proj=utm +zone=38 +datum=WGS84 +units=us-ft +no_defs +type=crs",
        "+proj=longlat +ellps=bessel +towgs84=1,2,3",
        "+proj=geos +sweep=x +lon_0=-75 +h=35786023 +ellps=GRS80",
        "+proj=merc +a=6378137 +b=6378137 +units=m +nadgrids=@null +wktext +no_defs",
        "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=40 +lon_0=10 +ellps=sphere",
        CRS.from_epsg(3857).to_wkt("WKT1_GDAL"),
        CRS.from_user_input("+proj=geos +sweep=x +h=35786023 +ellps=GRS80 +type=crs").to_wkt("WKT1_GDAL"),
        CRS.from_epsg(32638).to_wkt().replace("WGS 84 / UTM zone 38N", "made with proj=utm"),
    ],
)
def test_proj_strings_without_files_are_taken(text: str) -> None:
    """By themselves, as the extension by which WKT1 marks Web Mercator and sweeps, and as words of a name."""
    assert horizontal(parse_crs(text)).is_geographic == ("longlat" in text)


def test_extension_of_web_mercator_does_not_hide_its_code() -> None:
    """GDAL's WKT1 of it names the grid of no shift."""
    assert epsg(horizontal(parse_crs(CRS.from_epsg(3857).to_wkt("WKT1_GDAL")))) == 3857


def test_datum_shift_stays_with_the_horizontal_part() -> None:
    """Of a compound CRS and of one with heights. A zero shift from WGS 84 to itself hides no code."""
    shifted = "+proj=longlat +ellps=bessel +towgs84=598.1,73.7,418.2,0.202,0.045,-2.455,6.7"
    for text in (f"{shifted} +type=crs", f"{shifted} +vunits=m +type=crs"):
        found = horizontal(CRS.from_user_input(text))
        assert (found.is_bound, len(found.axis_info), horizontal(found)) == (True, 2, found)
    wkt = CRS.from_epsg(4326).to_wkt("WKT1_GDAL").replace(',AUTHORITY["EPSG","6326"]', ",TOWGS84[0,0,0,0,0,0,0]")
    assert epsg(horizontal(parse_crs(wkt))) == 4326


def test_units_per_degree() -> None:
    """For degrees exactly 1, so that nothing is scaled, for arc-seconds 3600, for grads ten ninths."""
    wkt = CRS.from_epsg(4326).to_wkt()
    seconds = wkt.replace('ANGLEUNIT["degree",0.0174532925199433]', 'ANGLEUNIT["arc-second",4.84813681109536E-06]')
    found = [per_degree(CRS.from_user_input(system)) for system in ("EPSG:4326", seconds, "EPSG:4807")]
    assert found == [1.0, pytest.approx(3600), pytest.approx(10 / 9)]


def test_compound_system_places_by_its_horizontal_part() -> None:
    """Heights do not move the picture."""
    assert epsg(horizontal(CRS.from_epsg(9518))) == 4326
    assert epsg(horizontal(CRS.from_epsg(4979))) == 4326


def test_latitude_first_follows_the_authority() -> None:
    """EPSG:4326 names latitude first, UTM and Web Mercator do not."""
    assert [latitude_first(CRS.from_epsg(code)) for code in (4326, 32638, 3857, 31467)] == [True, False, False, True]


def test_a_system_without_a_code_is_described() -> None:
    """A custom system is described by WKT2 and PROJJSON, its code is null."""
    custom = CRS.from_proj4("+proj=tmerc +lon_0=44.7 +ellps=GRS80")
    told = describe(custom)
    assert told is not None
    assert told["epsg"] is None
    assert told["wkt2"].startswith("PROJCRS")
    assert told["projjson"]["type"] == "ProjectedCRS"


@pytest.mark.parametrize("trait", BROKEN_SYSTEMS)
def test_a_system_that_pyproj_parses_and_then_raises_on_is_refused(trait: str) -> None:
    """pyproj raises CRSError, JSONDecodeError or ZeroDivisionError, which counted as mistakes of the program."""
    with pytest.raises(JobError) as caught:
        parse_crs(BROKEN_SYSTEMS[trait])
    assert caught.value.code == "bad_crs"


# Points at which PROJ (9.5) alone goes one way by another datum shift than back.
ONE_WAY = {
    "Krovak in Bavaria": ("EPSG:5514", 12.3393, 48.1264),
    "Krovak in the Carpathians": ("EPSG:2065", 22.3107, 49.7914),
    "Alaska in the Aleutians": ("EPSG:2964", 173.7912, 53.2143),
    "Brazil in Peru": ("EPSG:29101", -71.6895, -17.3886),
    "Alaska in Canada": ("EPSG:26731", -136.8057, 54.7467),
}


@pytest.mark.parametrize("code", [4901, 27500])
def test_a_meridian_without_a_code_is_kept_both_ways(code: int) -> None:
    """A system of Paris read from ESRI's WKT, here and by GDAL, lies where that of the code does. PROJ loses 2.3°."""
    globe, text = CRS.from_epsg(4326), CRS.from_epsg(code).to_wkt("WKT1_ESRI")
    place = np.array([1.7]), np.array([46.8])
    there = transformer(globe, CRS.from_epsg(code)).transform(*place)
    for system in (parse_crs(text), from_gdal(rasterio.crs.CRS.from_wkt(text, morph_from_esri_dialect=True))):
        assert system is not None
        assert np.ravel(transformer(globe, system).transform(*place)) == pytest.approx(np.ravel(there), rel=1e-7)
        assert np.ravel(transformer(system, globe).transform(*there)) == pytest.approx(np.ravel(place), abs=1e-6)


@pytest.mark.parametrize("name", ONE_WAY)
def test_a_transformation_and_its_reverse_agree(name: str) -> None:
    """A picture is placed by one and filled by the other. Both follow PROJ's way from WGS 84, to a decimeter."""
    text, lon, lat = ONE_WAY[name]
    system, globe = parse_crs(text), CRS.from_epsg(4326)
    there = transformer(globe, system).transform(np.array([lon]), np.array([lat]))
    assert np.ravel(there) == pytest.approx(Transformer.from_crs(globe, system, always_xy=True).transform(lon, lat))
    plain = Transformer.from_crs(system, globe, always_xy=True).transform(there[0][0], there[1][0])
    assert np.hypot(plain[0] - lon, plain[1] - lat) > 1e-5, "PROJ has been mended"
    assert np.ravel(transformer(system, globe).transform(*there)) == pytest.approx((lon, lat), abs=1e-6)


def test_a_meridian_beyond_180_degrees_stays_where_it_is() -> None:
    """Its reverse is another longitude of the same meridian, which is no disagreement."""
    x = np.array([2.1e7])
    lon, lat = transformer(CRS.from_epsg(3857), CRS.from_epsg(4326)).transform(x, np.zeros(1))
    assert (lon[0], lat[0]) == pytest.approx((21 / 20.037508342789244 * 180 - 360, 0))
