"""A failed self-check of a damaged file is the file's fault, and of a sound one the worker's."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.handlers import Payload, ProgressCallback, TaskHandler, TaskRequest, TaskResult
from geoprocessing_worker.output.verify import failed
from geoprocessing_worker.source.damage import damage
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_COG
from tests.support.rasters import Tiff, quarters
from tests.support.task_runs import perform_on
from tests.support.tiffs import LONG, SHORT, RawTiff, gray

TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}


def renamed(path: Path, tag: int, kind: int, other: int) -> Path:
    """The file, with another tag in place of this one, which has an entry after that of the height."""
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", tag, kind), content.index(struct.pack("<HHI", 257, 3, 1)))
    path.write_bytes(content[:at] + struct.pack("<HH", other, kind) + content[at + 4 :])
    return path


def without_bits(path: Path) -> Path:
    """Pixels of 8 bits, declared as 1 bit."""
    return renamed(Tiff(quarters(96), profile=TILED).write(path), 258, 3, 60_000)


def palette_of_bytes_for_one_bit(path: Path) -> Path:
    """A color table of 256 entries, where pixels have 1 bit, of which 1 is black."""
    tags = gray(64, 64, t262=(SHORT, [0]), t320=(SHORT, [*range(0, 65_536, 256)] * 3), t273=(LONG, [4000]))
    del tags[258]
    path.write_bytes(RawTiff([tags]).bytes().ljust(4000, b"\0") + bytes(range(256)) * 16)
    return path


def test_damage_that_shows_only_in_the_copy_is_not_tried_again(tmp_path: Path) -> None:
    """The refusal blames the file, and has words for its owner."""
    with pytest.raises(JobError) as caught:
        perform_on(GEOTIFF_TO_COG, without_bits(tmp_path / "a.tif"), tmp_path / "out")
    assert (caught.value.code, caught.value.error_class) == ("corrupt_block", ErrorClass.INVALID_INPUT)
    assert "damaged" in caught.value.message


def test_a_color_table_for_other_pixels_is_damage(tmp_path: Path) -> None:
    """GDAL uses the part of it that fits, and writes another one into a copy."""
    found = damage(palette_of_bytes_for_one_bit(tmp_path / "a.tif"))
    assert found is not None
    assert (found.code, found.error_class) == ("malformed_header", ErrorClass.INVALID_INPUT)


def check_fails(request: TaskRequest[Payload], _report: ProgressCallback) -> TaskResult:
    """Work with a mistake."""
    raise failed("it is not the same", request.file)


def test_a_failed_check_of_a_sound_file_stays_the_workers_fault(tmp_path: Path) -> None:
    """It is tried again, as a mistake of the worker is."""
    path = Tiff(quarters(96), profile=TILED).write(tmp_path / "a.tif")
    handler = TaskHandler(
        interface=1,
        task_type=GEOTIFF_TO_COG.task_type,
        payload=GEOTIFF_TO_COG.payload,
        stages={},
        work=f"{__name__}:check_fails",
        self_test="",
    )
    with pytest.raises(JobError) as caught:
        perform_on(handler, path, tmp_path / "out")
    assert (caught.value.code, caught.value.error_class) == ("self_check_failed", ErrorClass.INTERNAL)


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "jpeg", "lerc", None])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32}, {"interleave": "band"}])
def test_sound_files_have_no_damage(compress: str | None, layout: dict[str, object], tmp_path: Path) -> None:
    """Whatever their codec and layout, and where the last block reaches beyond the picture."""
    path = Tiff(quarters(100), profile={"compress": compress, **layout}).write(tmp_path / "a.tif")
    assert damage(path) is None


def test_numbers_that_are_none_are_no_damage(tmp_path: Path) -> None:
    """NaN is not equal to itself."""
    assert damage(Tiff(np.full((1, 20, 20), np.nan, np.float32)).write(tmp_path / "a.tif")) is None
