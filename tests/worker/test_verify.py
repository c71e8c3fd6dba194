"""The check before upload finds results that contradict each other or their source."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyproj import CRS

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.geo.approx_transform import source_positions
from geoprocessing_worker.geo.layout import lay_out
from geoprocessing_worker.output.verify import verify
from geoprocessing_worker.raster import Grid, SourceHeader
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from tests.support.rasters import DEGREES, Tiff, quarters, run

GRID = Grid(64, 64, DEGREES, CRS.from_epsg(4326))


def made(folder: Path) -> tuple[Path, Path, SourceHeader]:
    source = Tiff(quarters()).write(folder / "a.tif")
    picture = run(source, folder / "out").outputs[0].path
    with gdal_environment():
        return picture, picture.with_suffix(".pgw"), inspect_file(source)


def test_good_files_pass(tmp_path: Path) -> None:
    """Results of `convert` are right to a hundredth of a pixel."""
    picture, world, header = made(tmp_path)
    distance = verify(picture, world, header, GRID)
    assert distance is not None
    assert distance < 0.01


@pytest.mark.parametrize(
    ("suffix", "old", "new", "words"),
    [
        (".png.aux.xml", "16, 0", "16.02, 0", "aux file"),
        (".png.aux.xml", "WGS 84", "WGS 72", "coordinate system"),
        (".pgw", "44.005", "44.015", "world file"),
    ],
)
def test_altered_sidecar_is_caught(suffix: str, old: str, new: str, words: str, tmp_path: Path) -> None:
    """A sidecar with another place than the picture is an internal failure that names the sidecar."""
    picture, world, header = made(tmp_path)
    path = picture.with_name("a" + suffix)
    text = path.read_text()
    assert old in text
    text = text.replace(old, new)
    if words == "coordinate system":
        text = (
            text.replace("4326", "4322")
            .replace("6326", "6322")
            .replace("7030", "7043")
            .replace("298.257223563", "298.26")
        )
        text = text.replace("WGS_1984", "WGS_1972").replace("6378137", "6378135")
    path.write_text(text)
    with pytest.raises(JobError, match=words) as caught:
        verify(picture, world, header, GRID)
    assert (caught.value.code, caught.value.error_class) == ("self_check_failed", ErrorClass.INTERNAL)


def test_picture_that_cannot_be_opened_is_caught(tmp_path: Path) -> None:
    """A picture that GDAL cannot read is the worker's fault, not the uploader's."""
    picture, world, header = made(tmp_path)
    picture.write_bytes(b"")
    with pytest.raises(JobError, match="cannot open") as caught:
        verify(picture, world, header, GRID)
    assert caught.value.error_class is ErrorClass.INTERNAL


def test_cut_picture_is_caught(tmp_path: Path) -> None:
    """A picture of another size than planned does not pass."""
    picture, world, header = made(tmp_path)
    with pytest.raises(JobError, match="size"):
        verify(picture, world, header, Grid(65, 64, DEGREES, CRS.from_epsg(4326)))


def test_picture_of_another_place_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer that takes its pixels two to the right of where the source has them does not pass."""
    picture, world, header = made(tmp_path)

    def shifted(*_: object) -> object:
        inverse = source_positions(header, lay_out(header, GRID.crs, 64), 64, 64)
        return lambda columns, rows: inverse(columns + 2.0, rows)

    monkeypatch.setattr("geoprocessing_worker.output.verify.source_positions", shifted)
    with pytest.raises(JobError, match=r"2\.00 pixels"):
        verify(picture, world, header, GRID)
