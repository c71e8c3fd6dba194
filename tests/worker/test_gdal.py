"""Restricted GDAL: small files are opened once per job, large ones for each read."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import rasterio._env
from PIL import Image
from rasterio.errors import RasterioIOError

from geoprocessing_worker.source import gdal as opening
from geoprocessing_worker.source.gdal import cached_small_sources, gdal_environment, open_source
from tests.support.rasters import Tiff, ramp


def test_a_small_file_is_opened_once_and_closed_at_the_end(tmp_path: Path) -> None:
    """Within the block every read uses the same open file. After it the file is closed, and opened again."""
    source = Tiff(ramp(32, 32)).write(tmp_path / "small.tif")
    with gdal_environment():
        with cached_small_sources():
            with open_source(source) as first:
                pass
            with open_source(source) as second:
                assert second is first
                assert not second.closed
        assert first.closed
        with open_source(source) as later:
            assert later is not first
        assert later.closed


def test_a_kept_file_that_fails_to_read_is_closed_too(tmp_path: Path) -> None:
    """An error in the middle of a job leaves no file open."""
    source = Tiff(ramp(32, 32)).write(tmp_path / "small.tif")
    opened = []

    def work() -> None:
        with gdal_environment(), cached_small_sources(), open_source(source) as dataset:
            opened.append(dataset)
            dataset.read(2)

    with pytest.raises(IndexError):
        work()
    assert opened[0].closed


def test_overviews_are_kept_apart_from_the_full_picture(tmp_path: Path) -> None:
    """A level is never taken for another one of the same file."""
    source = Tiff(ramp(64, 64), overviews=(2,)).write(tmp_path / "levels.tif")
    with gdal_environment(), cached_small_sources():
        with open_source(source) as full, open_source(source, 0) as half:
            assert (full.width, half.width) == (64, 32)
        with open_source(source, 0) as again:
            assert again.width == 32


def test_a_large_picture_is_closed_after_each_use(tmp_path: Path) -> None:
    """Decoded blocks of a large file do not stay in memory for the rest of the job."""
    data = np.zeros((1, 1, opening.SMALL_SOURCE_PIXELS + 1), dtype=np.uint8)
    source = Tiff(data, crs=None, transform=None).write(tmp_path / "large.tif")
    with gdal_environment(), cached_small_sources():
        with open_source(source) as dataset:
            pass
        assert dataset.closed


def test_a_name_that_looks_like_one_of_gdals_own_prefixes_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`GTIFF_DIR:2:other.tif`, given without a folder, is the file of that name and not another file's second page."""
    Tiff(ramp(32, 32)).write(tmp_path / "other.tif")
    named = Path("GTIFF_DIR:1:other.tif")
    Tiff(ramp(16, 16)).write(tmp_path / "plain.tif").rename(tmp_path / named)
    monkeypatch.chdir(tmp_path)
    for raw in (False, True):
        with gdal_environment(), open_source(named, raw=raw) as dataset:
            assert dataset.width == 16


BESIDE = {
    "a.tfw": b"2\n0\n0\n-2\n100\n200\n",
    "a.tif.aux.xml": b'<PAMDataset><Metadata><MDI key="KEY">beside</MDI></Metadata></PAMDataset>',
}
OPEN_DOORS = {
    "GDAL_GEOREF_SOURCES": "PAM,INTERNAL,TABFILE,WORLDFILE",
    "GDAL_PAM_ENABLED": "YES",
    "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE",
}


def said_beside(folder: Path, **doors: str) -> set[str]:
    """The data that GDAL takes from the files beside one that it opens without one of the worker's options."""
    source = Tiff(ramp(64, 64), crs=None, transform=None).write(folder / "a.tif")
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    overviews = Tiff(ramp(64, 64), crs=None, transform=None, overviews=(2,)).write(folder / "b.tif")
    overviews.rename(folder / "a.tif.ovr")
    with gdal_environment(**doors), open_source(source) as dataset:
        found = {
            "place": not dataset.transform.is_identity,
            "metadata": dataset.tags().get("KEY") == "beside",
            "overviews": bool(dataset.overviews(1)),
        }
    return {name for name, is_said in found.items() if is_said}


@pytest.mark.parametrize(
    ("wall", "kept_out"),
    [
        ("GDAL_GEOREF_SOURCES", "place"),
        ("GDAL_PAM_ENABLED", "metadata"),
        ("GDAL_DISABLE_READDIR_ON_OPEN", "overviews"),
    ],
)
def test_each_wall_before_files_beside_the_input_holds_by_itself(wall: str, kept_out: str, tmp_path: Path) -> None:
    """Without the other options the sidecar of this one is unread, and without any all would be read."""
    assert said_beside(tmp_path, **OPEN_DOORS) == {"place", "metadata", "overviews"}
    assert kept_out not in said_beside(tmp_path, **OPEN_DOORS | {wall: opening.GDAL_OPTIONS[wall]})


def test_the_cache_of_gdal_has_the_configured_size() -> None:
    """96 MB: rasterio takes the number for bytes, although GDAL's own setting would mean megabytes."""
    gdal = ctypes.CDLL(rasterio._env.__file__)
    gdal.GDALGetCacheMax64.restype = ctypes.c_int64
    with gdal_environment():
        assert gdal.GDALGetCacheMax64() == 96 << 20


def test_no_driver_but_gtiff_opens_a_source(tmp_path: Path) -> None:
    """Not even one that exists for the worker's outputs. A child has no other drivers."""
    Image.new("L", (8, 8)).save(tmp_path / "a.tif", format="PNG")
    with gdal_environment(), pytest.raises(RasterioIOError), open_source(tmp_path / "a.tif"):
        pass
