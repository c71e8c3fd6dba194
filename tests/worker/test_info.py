"""The description of a file by `geotiff_info`, also of damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.handlers import TaskRequest
from geoprocessing_worker.render.task_options import InfoOptions
from geoprocessing_worker.tasks.info import describe_file
from tests.support.rasters import UTM, Tiff, quarters, quiet
from tests.support.tiffs import LONG, RawTiff, gray
from tests.worker.test_cog import CORNERS


def info(source: Path, folder: Path, **payload: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    options = InfoOptions.from_payload(payload)
    request = TaskRequest(source=source, output_folder=folder, stem="map", options=options, source_name="map.tif")
    result = describe_file(request, quiet)
    (made,) = result.outputs
    assert made.name == "map.json"
    item: dict[str, Any] = json.loads(made.path.read_text())
    assert item["geoprocessing"] == result.metadata
    return item


def test_the_description_has_place_bands_and_values(tmp_path: Path) -> None:
    heights = np.full((1, 50, 60), 2000, dtype="float32")
    heights[0, :10] = -9999
    source = Tiff(heights, "EPSG:32638", UTM, nodata=-9999, descriptions=("height",)).write(tmp_path / "a.tif")
    told = info(source, tmp_path / "out")
    block = told["geoprocessing"]
    assert (block["width"], block["height"], block["crs"]["epsg"]) == (60, 50, 32638)
    assert block["bounds"] == [400_000, 1_698_500, 401_800, 1_700_000]
    assert block["source"]["bands"][0] | {"description": "height", "nodata": -9999} == block["source"]["bands"][0]
    assert block["statistics"]["valid"] == 2400
    assert block["statistics"]["bands"][0]["maximum"] == 2000
    assert told["bbox"] == pytest.approx(block["bboxLonLat"])
    assert block["damage"] is None


def test_a_file_in_strips_is_no_cloud_optimized_one(tmp_path: Path) -> None:
    source = Tiff(quarters(1024)).write(tmp_path / "a.tif")
    told = info(source, tmp_path / "out")["geoprocessing"]["cloudOptimized"]
    assert not told["valid"]
    assert "not tiled" in told["errors"][0]


def test_control_points_outline_a_file_in_degrees(tmp_path: Path) -> None:
    source = Tiff(quarters(700)[:, :600], None, None, gcps=(CORNERS, "EPSG:4326")).write(tmp_path / "a.tif")
    told = info(source, tmp_path / "out")
    assert told["bbox"] == pytest.approx([44, 15, 45.1, 16.1], abs=0.01)


def test_source_crs_places_a_file_without_a_system(tmp_path: Path) -> None:
    source = Tiff(quarters(32), None, UTM).write(tmp_path / "a.tif")
    assert info(source, tmp_path / "out")["geometry"] is None
    assert info(source, tmp_path / "out", sourceCrs="EPSG:32638")["geoprocessing"]["crs"]["epsg"] == 32638


def test_damaged_pixels_are_reported_beside_the_header(tmp_path: Path) -> None:
    """A person may ask just because no picture comes out."""
    source = Tiff(quarters(256), profile={"compress": "deflate"}).write(tmp_path / "a.tif")
    content = bytearray(source.read_bytes())
    content[-2000:-100] = bytes(1900)
    source.write_bytes(content)
    block = info(source, tmp_path / "out")["geoprocessing"]
    assert (block["width"], block["statistics"], block["damage"]) == (256, None, "corrupt_block")


def test_files_refused_by_the_gate_are_refused_here_too(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(JobError) as caught:
        info(source, tmp_path / "out")
    assert caught.value.code == "truncated"


def test_an_overview_larger_than_its_picture_is_a_fault_of_the_layout(tmp_path: Path) -> None:
    """rio-cogeo divides by zero there."""
    larger = gray(64, 64, t254=(LONG, [1]), t273=(LONG, [8]))
    source = RawTiff([gray(16, 16), larger], data=bytes(5000)).write(tmp_path / "a.tif")
    told = info(source, tmp_path / "out")["geoprocessing"]["cloudOptimized"]
    assert told["valid"] is False
    assert "larger than the picture" in told["errors"][0]
