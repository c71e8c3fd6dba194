"""Where pictures lie: sizes, transforms, the antimeridian, the poles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.layout import fit, lay_out
from geoprocessing_worker.geo.outline import lonlat_bounds, lonlat_ring
from geoprocessing_worker.geo.pixel_to_crs import period
from geoprocessing_worker.raster import Grid
from tests.support.headers import header_of

WGS84 = CRS.from_epsg(4326)
sides = st.integers(1, 100_000)


@given(sides, sides, st.integers(1, 16384))
def test_fit_never_enlarges_and_keeps_within(width: int, height: int, max_size: int) -> None:
    """The long side is at most maxSize, nothing grows, nothing vanishes, the shape is kept to a pixel."""
    w, h = fit(width, height, max_size)
    assert 1 <= w <= min(width, max_size)
    assert 1 <= h <= min(height, max_size)
    if max(width, height) <= max_size:
        assert (w, h) == (width, height)
    else:
        assert max(w, h) == max_size


@given(sides, sides, st.integers(16, 4096), st.sampled_from([1, -1]), st.sampled_from([1, -1]))
def test_same_system_keeps_the_corners_and_turns_north_up(
    width: int, height: int, max_size: int, across: int, down: int
) -> None:
    """Scaled by exactly W/w and H/h, and flipped where needed: the outline is the source's, north is up."""
    source = Affine(across * 1e-4, 0, 44.0, 0, down * 1e-4, 15.0)
    layout = lay_out(header_of(width, height, source, 4326), WGS84, max_size)
    t = layout.target.transform
    assert t is not None
    assert t.a > 0 > t.e
    xs = sorted((44.0, 44.0 + across * 1e-4 * width))
    ys = sorted((15.0, 15.0 + down * 1e-4 * height))
    right, bottom = t @ (layout.target.width, layout.target.height)
    assert (t.c, right, bottom, t.f) == pytest.approx((xs[0], xs[1], ys[0], ys[1]), abs=1e-9)


@given(
    st.integers(50, 4000),
    st.integers(50, 4000),
    st.floats(1, 60),
    st.floats(-80, 80),
    st.integers(1, 60),
    st.floats(-170, 170),
)
def test_reprojected_picture_covers_every_pixel(
    width: int, height: int, pixel: float, lat: float, zone: int, angle: float
) -> None:
    """Wherever in UTM and however rotated, every source pixel lies in the picture, which is not much too large."""
    epsg = (32600 if lat >= 0 else 32700) + zone
    lon = -183.0 + 6 * zone
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    source = Affine.translation(x, y) @ Affine.rotation(angle) @ Affine.scale(pixel, -pixel)
    layout = lay_out(header_of(width, height, source, epsg), WGS84, 4096)
    target = layout.target
    assert target.transform is not None
    columns, rows = np.random.default_rng(3).random((2, 200)) * [[width], [height]]
    xs, ys = source.a * columns + source.b * rows + source.c, source.d * columns + source.e * rows + source.f
    lons, lats = Transformer.from_crs(epsg, 4326, always_xy=True).transform(xs, ys)
    west = target.transform.c
    lons = (np.asarray(lons) - west + 1.0) % 360 + west - 1.0
    back = ~target.transform
    across, down = back.a * lons + back.c, back.e * np.asarray(lats) + back.f
    assert across.min() > -0.5
    assert across.max() < target.width + 0.5
    assert down.min() > -0.5
    assert down.max() < target.height + 0.5
    assert max(target.width, target.height) <= 4096


def test_edges_that_bulge_are_covered_too() -> None:
    """Eighty degrees of a parallel are an arc in a conical system: between the corners it lies 700 km farther south."""
    source = Affine(0.05, 0, -30, 0, -0.05, 70)
    layout = lay_out(header_of(1600, 400, source, 4326), CRS.from_epsg(3034), 1024)
    assert layout.target.transform is not None
    lons, lats = np.meshgrid(np.linspace(-30, 50, 401), (50.0, 70.0))
    xs, ys = Transformer.from_crs(4326, 3034, always_xy=True).transform(lons, lats)
    columns, rows = ~layout.target.transform @ (np.asarray(xs), np.asarray(ys))
    assert columns.min() > -0.5
    assert columns.max() < layout.target.width + 0.5
    assert rows.min() > -0.5
    assert rows.max() < layout.target.height + 0.5


def test_antimeridian_file_is_one_piece() -> None:
    """A UTM 60 file across 180° becomes a picture a few degrees wide, not a strip round the world."""
    source = Affine(100, 0, 700_000, 0, -100, 1_000_000)
    layout = lay_out(header_of(2000, 2000, source, 32660), WGS84, 1024)
    bounds = lonlat_bounds(layout.target)
    assert bounds is not None
    assert 178 < bounds[0] < 180 < bounds[2] < 182
    assert 0.8 < layout.target.width / layout.target.height < 1.25


def test_mercator_is_clamped() -> None:
    """A world in degrees becomes the square of Web Mercator, not an endless column."""
    layout = lay_out(header_of(360, 180, Affine(1, 0, -180, 0, -1, 90), 4326), CRS.from_epsg(3857), 512)
    assert layout.target.width / layout.target.height == pytest.approx(1.0, abs=0.01)


def test_polar_file_in_degrees_is_bounded() -> None:
    """A polar stereographic file round the pole becomes a picture of the cap with a bounded shape."""
    source = Affine(10_000, 0, -3_000_000, 0, -10_000, 3_000_000)
    target = lay_out(header_of(600, 600, source, 3995), WGS84, 2048).target
    bounds = lonlat_bounds(target)
    assert bounds is not None
    assert bounds[3] > 89
    assert 1 < target.width / target.height < 20


@pytest.mark.parametrize("target", ["EPSG:4258", "ESRI:54009", "ESRI:54030", "EPSG:3857"])
@pytest.mark.parametrize("turn", [0.0, 1e-9])
def test_dust_past_the_pole_costs_no_row(target: str, turn: float) -> None:
    """A global grid slightly past the pole covers as much as one that ends there."""
    system = CRS.from_user_input(target)
    tops = []
    for dust in (0.0, 2e-7):
        source = Affine(1 + dust / 180, turn, -180 - dust, turn, -1 - dust / 90, 90 + dust)
        grid = lay_out(header_of(360, 180, source, 4326), system, 512).target
        assert grid.transform is not None
        tops.append((grid.transform.f, (grid.transform @ (grid.width, grid.height))[1]))
    assert tops[1] == pytest.approx(tops[0], rel=1e-6)
    if system.is_geographic:
        assert -90 <= tops[1][1] < tops[1][0] <= 90


def test_rotated_native_keeps_six_terms() -> None:
    """In its own system a rotated file keeps its rotation, and rows run southwards."""
    source = Affine.translation(4e5, 1.7e6) @ Affine.rotation(30) @ Affine.scale(10, -10)
    t = lay_out(header_of(100, 50, source, 32638), None, 50).target.transform
    assert t is not None
    assert tuple(t)[:6] == pytest.approx(tuple(source @ Affine.scale(2))[:6])


def test_without_a_system_nothing_is_made_up() -> None:
    """No CRS and no transform: the picture has neither."""
    target = lay_out(header_of(100, 50, None, None), WGS84, 4096).target
    assert (target.crs, target.transform, lonlat_bounds(target)) == (None, None, None)


def test_unreachable_target_is_refused_or_kept() -> None:
    """A file on the Moon keeps its own system, since degrees on Earth mean nothing there."""
    moon = CRS.from_authority("IAU_2015", "30100")
    facts = replace(header_of(100, 50, Affine(0.1, 0, 0, 0, -0.1, 5), 4326), crs=moon)
    layout = lay_out(facts, WGS84, 4096)
    assert layout.target.crs == moon
    assert "cannot be reached" in layout.reason


def test_system_that_holds_no_point_of_the_file_is_a_named_refusal() -> None:
    """A CRS with an area on the other side of the Earth fails by name, never with a traceback."""
    source = Affine(0.01, 0, 170, 0, -0.01, -40)
    far = CRS.from_proj4("+proj=ortho +lat_0=40 +lon_0=-10")
    with pytest.raises(JobError) as caught:
        lay_out(header_of(100, 100, source, 4326), far, 512)
    assert caught.value.code == "bad_crs"


def test_ring_runs_counterclockwise_from_the_upper_left() -> None:
    """Outlines follow RFC 7946."""
    ring = lonlat_ring(Grid(10, 10, Affine(1, 0, 0, 0, -1, 10), WGS84))
    assert ring is not None
    assert ring[0] == pytest.approx((0, 10))
    twice = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    assert twice / 2 == pytest.approx(100)


@pytest.mark.parametrize(("lon", "system"), [(0, "geos"), (-75, "geos"), (20, "ortho"), (140, "geos")])
def test_picture_of_the_whole_disk_reaches_the_limb(lon: int, system: str) -> None:
    """A weather satellite's view loses nothing at the edge of the Earth, where a pixel is degrees wide."""
    height = "+h=35785831" if system == "geos" else ""
    disk = CRS.from_proj4(f"+proj={system} {height} +lon_0={lon}")
    radius = 5.5e6 if system == "geos" else 6.4e6
    source = Affine(2 * radius / 400, 0, -radius, 0, -2 * radius / 400, radius)
    facts = replace(header_of(400, 400, source, 4326), crs=disk, full_crs=disk)
    target = lay_out(facts, WGS84, 4096).target
    assert target.transform is not None
    columns, rows = np.meshgrid(np.arange(400) + 0.5, np.arange(400) + 0.5)
    lons, lats = Transformer.from_crs(disk, 4326, always_xy=True).transform(
        source.a * columns + source.c, source.e * rows + source.f, errcheck=False
    )
    good = np.isfinite(lons)
    west = target.transform.c
    across = ((lons[good] - west + 5) % 360 - 5) / target.transform.a
    down = (lats[good] - target.transform.f) / target.transform.e
    assert -2 < across.min() < across.max() < target.width + 2
    assert -2 < down.min() < down.max() < target.height + 2


@pytest.mark.parametrize(
    ("system", "girth"),
    [
        ("EPSG:3857", 2 * math.pi * 6378137),
        ("+proj=merc +k=0.5 +lon_0=150 +ellps=WGS84 +units=ft +type=crs", math.pi * 6378137 / 0.3048),
        ("+proj=merc +ellps=bessel +towgs84=1,2,3 +type=crs", 2 * math.pi * 6377397.155),
        ("EPSG:4326", 360.0),
        ("EPSG:4807", 400.0),
        ("EPSG:32638", None),
    ],
)
def test_places_have_other_names_a_girth_away(system: str, girth: float | None) -> None:
    """In the units of the system, whatever its ellipsoid, scale, unit and central meridian."""
    assert period(CRS.from_user_input(system)) == (girth if girth is None else pytest.approx(girth))
