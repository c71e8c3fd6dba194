"""Coordinate systems: what text is taken, and what is told about them."""

from __future__ import annotations

import pytest
from pyproj import CRS

from geoprocessing_worker.crs import describe, epsg, horizontal, latitude_first, parse_crs
from geoprocessing_worker.errors import JobError


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
    """PROJ strings, paths, URLs, names and nonsense never reach PROJ's own guessing."""
    with pytest.raises(JobError) as caught:
        parse_crs(text)
    assert caught.value.code == "bad_crs"


def test_compound_system_places_by_its_horizontal_part() -> None:
    """Heights do not move the picture."""
    assert epsg(horizontal(CRS.from_epsg(9518))) == 4326
    assert epsg(horizontal(CRS.from_epsg(4979))) == 4326


def test_latitude_first_follows_the_authority() -> None:
    """EPSG:4326 names latitude first, UTM and Web Mercator do not."""
    assert [latitude_first(CRS.from_epsg(code)) for code in (4326, 32638, 3857, 31467)] == [True, False, False, True]


def test_system_without_code_says_so() -> None:
    """A custom system is described by WKT2 and PROJJSON, its code is null."""
    custom = CRS.from_proj4("+proj=tmerc +lon_0=44.7 +ellps=GRS80")
    told = describe(custom)
    assert told is not None
    assert told["epsg"] is None
    assert told["wkt2"].startswith("PROJCRS")
    assert told["projjson"]["type"] == "ProjectedCRS"
