"""The metadata of a copy are measured before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rasterio

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.source.gdal import gdal_environment, open_source
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_COG
from geoprocessing_worker.tasks.cog import job
from geoprocessing_worker.tasks.cog.metadata import metadata_bytes
from geoprocessing_worker.tiff.gate import LARGEST_METADATA
from geoprocessing_worker.tiff.structure import TiffStructure
from geoprocessing_worker.tiff.tags import METADATA
from tests.support.crafted import metadata
from tests.support.task_runs import perform_on

ITEMS = [
    b'<Item name="a%d">&gt;&quot;\'&#10;\xc3\xa9&amp;</Item>',
    b'<Item name="&lt;%d" sample="0">x\x01y &lt;</Item>',
    b'<Item name="d%d"></Item><Item name="e" sample="0" role="description">a &amp;amp; b</Item>',
    b'<Item name="f%d" sample="0" role="unittype">&lt;m&gt;</Item>',
    b'<Item name="g%d">x</Item><Item name="h" sample="0" role="scale">0.1</Item>',
]


def written(path: Path) -> int:
    """The bytes of the tag in a file."""
    page, *_ = TiffStructure.read(path).ifds
    field = page.find(METADATA)
    return 0 if field is None else field.size


@pytest.mark.parametrize("web_optimized", [False, True])
@pytest.mark.parametrize("item", ITEMS)
def test_the_predicted_size_is_that_of_the_copy(item: bytes, web_optimized: bool, tmp_path: Path) -> None:
    """GDAL escapes twice, leaves out empty items, and adds some of its own."""
    metadata(tmp_path / "a.tif", b"".join(item % number for number in range(150)), 1)
    with gdal_environment(), open_source(tmp_path / "a.tif") as dataset:
        predicted = metadata_bytes(dataset, web_optimized=web_optimized)
    made = perform_on(GEOTIFF_TO_COG, tmp_path / "a.tif", tmp_path / "out", webOptimized=web_optimized)
    assert abs(predicted - written(made.outputs[0].path)) < 100


def test_a_copy_of_too_much_metadata_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has half of the allowed size, the copy would have three times as much."""

    def write(*_: Any) -> None:
        raise AssertionError("the copy was written")

    monkeypatch.setattr(job, "_write", write)
    metadata(tmp_path / "a.tif", b'<Item name="a">' + b"'\"" * 300_000 + b"</Item>", 1)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert len(dataset.tags()["a"]) == 600_000
    with pytest.raises(JobError) as caught:
        perform_on(GEOTIFF_TO_COG, tmp_path / "a.tif", tmp_path / "out")
    assert (caught.value.code, caught.value.detail["limit"]) == ("too_large", "metadata")
    assert caught.value.detail["found"] > LARGEST_METADATA
