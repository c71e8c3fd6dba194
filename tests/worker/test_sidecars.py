"""World files, projection files and GDAL's aux files, word by word."""

from __future__ import annotations

from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from geoprocessing_worker.geo.wkt import esri_wkt
from geoprocessing_worker.output.sidecars import auxiliary_file, read_world_file, shortest, world_file
from geoprocessing_worker.raster import Grid


def test_world_file_names_the_center_of_the_first_pixel() -> None:
    """a, d, b, e, then the center of the upper left pixel, a newline after the last."""
    assert world_file(Affine(2, 0.5, 100, 0.25, -4, 200)) == "2.0\n0.25\n0.5\n-4.0\n101.25\n198.125\n"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_numbers_read_back_to_the_same_double_without_exponent(value: float) -> None:
    """Full precision in positional digits."""
    text = shortest(value)
    assert float(text) == value
    assert "e" not in text.lower()


def test_world_file_reads_back() -> None:
    """Column 40 000 of a high-resolution picture stays where it is."""
    source = Affine(1.2345678901234567e-6, 0, 44.123456789012345, 0, -1.2345678901234567e-6, 15.3)
    back = read_world_file(world_file(source))
    assert abs((~source @ (back @ (40_000, 0)))[0] - 40_000) < 1e-3


def test_projection_file_is_one_line_of_esri_wkt() -> None:
    """ArcGIS knows the names, and wants one line."""
    text = esri_wkt(CRS.from_epsg(32638))
    assert text is not None
    assert "\n" not in text
    assert "D_WGS_1984" in text


def test_auxiliary_file_has_the_axis_order() -> None:
    """Latitude-first systems are mapped 2,1, others 1,2."""
    for code, mapping in ((4326, "2,1"), (32638, "1,2")):
        text = auxiliary_file(Grid(1, 1, Affine(1, 0, 0, 0, -1, 0), CRS.from_epsg(code)))
        assert f'dataAxisToSRSAxisMapping="{mapping}"' in text
