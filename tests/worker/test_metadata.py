"""Metadata of a picture: places, statistics and footprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import CRS

from geoprocessing_worker.output.metadata import _of_band
from tests.support.rasters import DEGREES, UTM, Tiff, picture_of, quarters, ramp, run


def item_of(folder: Path) -> Any:
    return json.loads((folder / "a.json").read_text())


def test_scaled_statistics_have_the_files_own_unit(tmp_path: Path) -> None:
    """Raw and scaled, while the picture stays that of the raw values."""
    source = Tiff(ramp(60, 60, "int16", 0, 1000)).write(tmp_path / "a.tif")
    plain = run(source, tmp_path / "plain")
    with rasterio.open(source, "r+") as dataset:
        dataset.scales, dataset.offsets, dataset.units = (0.1,), (-20.0,), ("degC",)
    scaled = run(source, tmp_path / "scaled")
    band: Any = scaled.metadata["statistics"]["bands"][0]  # type: ignore[call-overload, index]
    assert (band["minimum"], band["maximum"]) == (0, 1000)
    assert (band["scaled"]["minimum"], band["scaled"]["maximum"]) == pytest.approx((-20, 80))
    assert band["scaled"]["stddev"] == pytest.approx(band["stddev"] * 0.1)
    facts: Any = scaled.metadata["source"]
    assert facts["bands"][0]["unit"] == "degC"
    assert (picture_of(plain) == picture_of(scaled)).all()


def test_statistics_and_histogram_are_those_of_the_valid_pixels(tmp_path: Path) -> None:
    """No statistic counts nodata. The buckets add up to the valid pixels."""
    data = ramp(50, 50, "float32", 10, 20)
    data[0, :10] = -9999
    result = run(Tiff(data, nodata=-9999).write(tmp_path / "a.tif"), tmp_path / "out")
    told: Any = result.metadata["statistics"]
    band, valid = told["bands"][0], data[data > 0].astype(float)
    assert (told["pixels"], told["valid"]) == (2500, 2000)
    assert (band["minimum"], band["maximum"], band["mean"]) == pytest.approx((valid.min(), valid.max(), valid.mean()))
    assert sum(band["histogram"]["buckets"]) == 2000


def test_pixel_is_point_is_not_shifted_twice(tmp_path: Path) -> None:
    """GDAL puts the corner half a pixel beyond the point: the place without the tag, with a note."""
    source = Tiff(quarters()).write(tmp_path / "a.tif")
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
        dataset.transform = DEGREES
    with rasterio.open(source) as dataset:
        expected = dataset.bounds
    result = run(source, tmp_path / "out")
    facts: Any = result.metadata["source"]
    assert facts["pixelIs"] == "point"
    assert result.metadata["bounds"] == pytest.approx(list(expected))
    assert result.metadata["bounds"] == pytest.approx([44, 15.36, 44.64, 16])


def test_compound_system_is_described_whole_and_places_by_its_first_part(tmp_path: Path) -> None:
    """Heights above the geoid do not move the picture. The metadata of the source have them."""
    flat = run(Tiff(quarters(), crs="EPSG:32638", transform=UTM).write(tmp_path / "a.tif"), tmp_path / "flat")
    compound = CRS.from_user_input("EPSG:32638+5773").to_wkt()
    high = run(Tiff(quarters(), crs=compound, transform=UTM).write(tmp_path / "a.tif"), tmp_path / "high")
    assert high.metadata["bboxLonLat"] == flat.metadata["bboxLonLat"]
    facts: Any = high.metadata["source"]
    assert facts["crs"]["projjson"]["type"] == "CompoundCRS"
    assert (picture_of(high) == picture_of(flat)).all()


def test_local_system_counts_as_none(tmp_path: Path) -> None:
    """A builder's grid has no place on Earth, but a payload may give it one."""
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'
    source = Tiff(quarters(), crs=local, transform=UTM).write(tmp_path / "a.tif")
    assert run(source, tmp_path / "one").metadata["crs"] is None
    helped: Any = run(source, tmp_path / "two", source_crs="EPSG:32638").metadata["bboxLonLat"]
    assert helped == pytest.approx([44.068, 15.357, 44.086, 15.375], abs=0.001)


def test_system_without_a_code_is_described_in_full(tmp_path: Path) -> None:
    """`epsg` null, WKT2 and PROJJSON instead, in the Item too."""
    custom = "+proj=tmerc +lon_0=44.7 +ellps=GRS80 +units=m"
    source = Tiff(quarters(), crs=custom, transform=Affine(30, 0, 0, 0, -30, 1.7e6)).write(tmp_path / "a.tif")
    crs: Any = run(source, tmp_path / "out", coordinate_system="native").metadata["crs"]
    properties = item_of(tmp_path / "out")["properties"]
    assert (crs["epsg"], properties["proj:code"]) == (None, None)
    assert CRS.from_wkt(crs["wkt2"]).equals(CRS.from_json_dict(properties["proj:projjson"]))


def test_footprint_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    """Two polygons on either side of 180°, and a bbox with west greater than east, as in RFC 7946."""
    source = Tiff(quarters(), transform=Affine(0.01, 0, 179.8, 0, -0.01, 16)).write(tmp_path / "a.tif")
    run(source, tmp_path / "out")
    item = item_of(tmp_path / "out")
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"] == pytest.approx([179.8, 15.36, -179.56, 16])
    for polygon in item["geometry"]["coordinates"]:
        lons = [lon for lon, _ in polygon[0]]
        assert -180 <= min(lons) < max(lons) <= 180


def test_footprint_of_degrees_from_0_to_360_is_the_world(tmp_path: Path) -> None:
    """Not a strip that ends at 180°."""
    run(Tiff(quarters(90), transform=Affine(4, 0, 0, 0, -1.8, 81)).write(tmp_path / "a.tif"), tmp_path / "out")
    assert item_of(tmp_path / "out")["bbox"] == pytest.approx([-180, -81, 180, 81])


@pytest.mark.parametrize(
    "values", [(0.0, 5e-324), (1e20, 1e20), (-1e300, -1e300), (1.0, 1 + 2**-52), (1.7976931348623157e308, -1e308)]
)
def test_values_too_close_or_too_far_apart_to_be_counted_in_steps_still_have_statistics(values: tuple[float]) -> None:
    """Minimum and maximum are exact. A histogram needs distinct doubles between them."""
    found: Any = _of_band(np.array(values), 1.0, 0.0)
    assert (found["minimum"], found["maximum"]) == (min(values), max(values))
    assert sum(found.get("histogram", {"buckets": [2]})["buckets"]) == 2
