"""Known CRSs equal GDAL's reading, and need no access to PROJ's database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy as copy_raster

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import from_gdal
from geoprocessing_worker.source import known_crs
from geoprocessing_worker.source.gdal import gdal_environment, open_source, read_system
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tiff.structure import TiffStructure
from tests.support.rasters import DEGREES, Tiff
from tests.support.raw_tiff import geo_tags, placed, write_raw_tiff

CORPUS = sorted((Path(__file__).parents[3] / "shared" / "corpus").glob("*.tif*"))
PLANE = np.ones((1, 8, 8), dtype=np.uint8)
# A process as the fork server makes it. inotify(7) counts how often any database of PROJ is opened.
CHILD = """
import os, sys
from pathlib import Path
import pyproj, rasterio
import ctypes
from geoprocessing_worker.source import gdal
from geoprocessing_worker.tasks import picture, preload

IN_OPEN = 0x20
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
for package in (pyproj, rasterio):
    for database in Path(package.__file__).parent.rglob("proj.db"):
        assert libc.inotify_add_watch(watch, bytes(database), IN_OPEN) > 0
if os.fork() == 0:
    with gdal.gdal_environment():
        source, folder = map(Path, sys.argv[1:])
        options = picture.RenderOptions()
        request = picture.ConversionRequest(
            source=source, output_folder=folder, stem="o", options=options, source_name="o"
        )
        picture.convert(request, lambda *_: None)
    os._exit(0)
os.wait()
try:
    print(len(os.read(watch, 65536)) // 16)
except BlockingIOError:
    print(0)
"""


@pytest.fixture(autouse=True, scope="module")
def learned() -> Iterator[None]:
    with gdal_environment():
        known_crs.learn()
        yield


@pytest.mark.parametrize("code", [*known_crs.USUAL, "EPSG:32601", "EPSG:32638", "EPSG:32760"])
@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
def test_a_known_crs_equals_the_reading_of_gdal(code: str, area_or_point: str, tmp_path: Path) -> None:
    """The CRS known by its keys is identical to GDAL's reading."""
    file, shape = tmp_path / "map.tif", {"width": 8, "height": 8, "count": 1, "dtype": "uint8"}
    with rasterio.open(file, "w", driver="GTiff", crs=code, transform=DEGREES, **shape) as dataset:
        dataset.update_tags(AREA_OR_POINT=area_or_point)
    found, read = known_crs.find(TiffStructure.read(file)), from_gdal(read_system(str(file), "GTiff"))
    assert found is not None
    assert read is not None
    assert found.to_wkt() == read.to_wkt()


@pytest.mark.parametrize("code", [*known_crs.USUAL, "EPSG:32601", "EPSG:32760"])
def test_another_spelling_of_a_known_crs_has_the_same_text(code: str, tmp_path: Path) -> None:
    """Keys without GDAL's additions are read by GDAL, and give the same words: an ensemble of datums or one."""
    place = rasterio.Affine(1, 0, 0, 0, -1, 0)
    known = Tiff(PLANE, code, place).write(tmp_path / "known.tif")
    keys = {1024: 2, 1025: 1, 2048: 4326} if code == known_crs.GLOBE else {1024: 1, 1025: 1, 3072: int(code[5:])}
    other = write_raw_tiff(tmp_path / "a.tif", PLANE.transpose(1, 2, 0), tags=geo_tags(keys) | placed(0, 0, 1))
    assert known_crs.find(TiffStructure.read(other)) is None
    one, two = (inspect_file(file).crs for file in (known, other))
    assert one is not None
    assert two is not None
    assert one.to_wkt() == two.to_wkt()


@pytest.mark.skipif(not CORPUS, reason="the corpus is not beside this checkout")
def test_no_real_file_gets_another_crs() -> None:
    """Each file of the corpus has no known CRS, or GDAL's with the same code. An ensemble equals its datum."""
    known = {}
    for file in CORPUS:
        with suppress(JobError):  # some are no TIFF
            if (crs := known_crs.find(TiffStructure.read(file))) is not None:
                known[file] = crs
    assert len(known) > len(CORPUS) // 10
    for file, crs in known.items():
        with open_source(file) as dataset:
            read = from_gdal(dataset.crs or dataset.gcps[1])
        assert read is not None
        assert (crs, crs.to_authority()) == (read, read.to_authority()), file.name


@pytest.mark.parametrize("crs", ["EPSG:4326+5773", "EPSG:4269", "EPSG:3035", None])
def test_other_crss_are_unknown(crs: str | None, tmp_path: Path) -> None:
    """GDAL reads heights, other codes and files without keys."""
    file = Tiff(PLANE, crs=crs).write(tmp_path / "map.tif")
    assert known_crs.find(TiffStructure.read(file)) is None


def test_one_byte_more_or_less_is_left_to_gdal(tmp_path: Path) -> None:
    """Another name of a CRS, or another ellipsoid, differs from the learned bytes."""
    file = Tiff(PLANE).write(tmp_path / "map.tif")
    content = file.read_bytes()
    assert known_crs.find(TiffStructure.read(file)) is not None
    for words in (b"WGS 84|", np.float64(6378137.0).tobytes()):
        assert content.count(words) == 1
        file.write_bytes(content.replace(words, words[:-2] + b"\x01" + words[-1:]))
        assert known_crs.find(TiffStructure.read(file)) is None


def test_a_unit_is_read_even_if_the_crs_is_known(tmp_path: Path) -> None:
    """GDAL reads units if the file names any."""
    file = Tiff(PLANE).write(tmp_path / "map.tif")
    with gdal_environment():
        assert inspect_file(file).bands[0].unit is None
        with rasterio.open(file, "r+") as dataset:
            dataset.units = ("metre",)
        header = inspect_file(file)
    assert header.bands[0].unit == "metre"
    assert known_crs.find(TiffStructure.read(file)) is not None


def test_every_page_has_its_own_crs(tmp_path: Path) -> None:
    """The keys of one page do not apply to the next."""
    file = tmp_path / "pages.tif"
    for number, crs in enumerate(("EPSG:3035", "EPSG:4326", "EPSG:3857")):
        page = Tiff(PLANE, crs=crs).write(tmp_path / f"{number}.tif")
        copy_raster(page, file, driver="GTiff", **({"APPEND_SUBDATASET": True} if number else {}))
    found = [known_crs.find(TiffStructure.read(file), number) for number in (1, 2, 3, 4)]
    assert [None if crs is None else crs.to_epsg() for crs in found] == [None, 4326, 3857, None]


def test_a_child_places_a_known_crs_without_projs_database(tmp_path: Path) -> None:
    """It takes a sixth of a small job's CPU time. For other CRSs the database is opened."""
    opened = {}
    for crs in ("EPSG:4326", "EPSG:32638", "EPSG:3035"):
        file = Tiff(PLANE, crs=crs).write(tmp_path / f"{crs[5:]}.tif")
        command = [sys.executable, "-c", CHILD, str(file), str(tmp_path)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        opened[crs] = int(ran.stdout)
    assert opened.pop("EPSG:3035") > 0
    assert set(opened.values()) == {0}
