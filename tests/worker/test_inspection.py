"""Files that are rejected before a block is decoded, and those that fail during decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.raster import Georeferencing, Level
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from tests.support.headers import header_of
from tests.support.rasters import Tiff, quarters, ramp, run


def refusal(path: Path, folder: Path) -> JobError:
    with pytest.raises(JobError) as caught:
        run(path, folder)
    return caught.value


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<VRTDataset></VRTDataset>", b"II*\0"])
def test_other_formats_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    """Empty files, other formats and a bare magic number, even named .tif."""
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    error = refusal(path, tmp_path / "out")
    assert error.code in {"not_a_tiff", "truncated"}
    assert error.message.endswith(".")


def test_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    """Half a file is reported as cut off, with advice and without the file's folder."""
    path = Tiff(np.random.default_rng(0).integers(0, 255, (3, 500, 500), dtype=np.uint8)).write(tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[:200_000])
    error = refusal(path, tmp_path / "out")
    assert error.code == "truncated"
    assert str(tmp_path) not in str(error.detail)


def test_damaged_block_is_refused_by_name(tmp_path: Path) -> None:
    """Garbage in the compressed data is reported as damage."""
    profile = {"compress": "deflate"}
    path = Tiff(np.random.default_rng(0).integers(0, 9, (1, 300, 300), dtype=np.uint8), profile=profile).write(
        tmp_path / "a.tif"
    )
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 15_000] = b"\xff" * 15_000
    path.write_bytes(bytes(content))
    assert refusal(path, tmp_path / "out").code == "corrupt_block"


def test_huge_block_is_refused_before_decoding(tmp_path: Path) -> None:
    """A sparse file with one tile of a gigabyte is small on disk and still refused, naming the limit."""
    with gdal_environment():
        import rasterio

        huge = tmp_path / "a.tif"
        with rasterio.open(
            huge,
            "w",
            driver="GTiff",
            width=30_000,
            height=30_000,
            count=1,
            dtype="uint8",
            SPARSE_OK=True,
            TILED="YES",
            BLOCKXSIZE=30_000,
            BLOCKYSIZE=30_000,
            COMPRESS="DEFLATE",
        ):
            pass
    error = refusal(huge, tmp_path / "out")
    assert (error.code, error.detail["limit"]) == ("too_large", "block")


def test_sidecars_of_strangers_are_not_read(tmp_path: Path) -> None:
    """A world file and an aux file beside the upload change nothing."""
    path = Tiff(quarters(), crs=None, transform=None).write(tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n44\n15\n")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    with gdal_environment():
        header = inspect_file(path)
    assert (header.georeferencing, header.crs, header.transform) == (Georeferencing.NONE, None, None)


def test_overviews_are_levels(tmp_path: Path) -> None:
    """Each overview is listed with its size, the full picture first."""
    path = Tiff(ramp(512, 512), overviews=(2, 4)).write(tmp_path / "a.tif")
    with gdal_environment():
        levels = inspect_file(path).levels
    assert [(level.overview, level.width) for level in levels] == [(None, 512), (0, 256), (1, 128)]


@pytest.mark.parametrize(
    ("least", "width"),
    [({}, 100), ({"width": 101}, 200), ({"height": 51}, 200), ({"side": 101}, 200), ({"width": 201}, 400)],
    ids=str,
)
def test_the_smallest_level_that_is_large_enough_is_chosen(least: dict[str, float], width: int) -> None:
    """Each minimum counts, and the full picture is used where no level meets it."""
    sizes = ((400, 200), (200, 100), (100, 50))
    levels = tuple(Level(number or None, *size, 64, 64) for number, size in enumerate(sizes))
    header = replace(header_of(400, 200, None, None), levels=levels)
    assert header.level_for(**least).width == width
    assert header.level_for(width=999) is header.full
