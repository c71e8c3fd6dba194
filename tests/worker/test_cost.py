"""Work that cannot be afforded is refused from the header alone, with the limit and the number."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.raster import Level
from geoprocessing_worker.render.cost import EXPANSION, MAX_DECODED_BYTES, Cost, afford, allowance, stored_bytes
from geoprocessing_worker.render.task_options import CogOptions
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_TILES
from geoprocessing_worker.tasks.cog import job
from geoprocessing_worker.tasks.cog.layout import TileLayout
from tests.support.crafted import CRAFTED, Tags
from tests.support.rasters import run
from tests.support.task_runs import perform_on
from tests.support.tiffs import LONG, RawTiff, gray


def sparse(path: Path, side: int, tile: int, count: int, **profile: str) -> Path:
    """Write a file of a few kilobytes that declares side² pixels."""
    options = {"SPARSE_OK": "TRUE", "TILED": "YES", "BLOCKXSIZE": tile, "BLOCKYSIZE": tile, "COMPRESS": "DEFLATE"}
    size = {"width": side, "height": side, "count": count, "dtype": "uint8"}
    with gdal_environment(), rasterio.open(path, "w", driver="GTiff", **size, **options, **profile):
        pass
    return path


def test_files_below_the_limit_pass() -> None:
    """At the limit, and without one."""
    afford(Cost(MAX_DECODED_BYTES, 500), 500)
    afford(Cost(1, 1 << 60), None)


@pytest.mark.parametrize(
    ("predicted", "code", "numbers"),
    [
        (Cost(MAX_DECODED_BYTES + (1 << 20), 0), "too_complex", ("12,289 MB", "12,288 MB")),
        (Cost(0, 700 << 20), "too_large", ("700 MB", "600 MB")),
    ],
)
def test_refusal_names_limit_and_number(predicted: Cost, code: str, numbers: tuple[str, str]) -> None:
    """The message has the predicted cost, the limit and the advice."""
    with pytest.raises(JobError) as caught:
        afford(predicted, 600 << 20)
    assert caught.value.code == code
    assert all(number in caught.value.message for number in numbers)


def test_block_counts_with_all_its_bands(tmp_path: Path) -> None:
    """A tile of 16 384² pixels is 256 MB in one band, and a gigabyte decoded where four are interleaved."""
    source = sparse(tmp_path / "a.tif", 16_384, 16_384, 4, INTERLEAVE="PIXEL")
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out")
    assert (caught.value.code, caught.value.detail["limit"], caught.value.detail["found"]) == (
        "too_large",
        "block",
        1 << 30,
    )


PROGRAM = """
import resource, sys
from pathlib import Path
from geoprocessing_worker.errors import JobError
from tests.support.rasters import run
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20), resource.RLIM_INFINITY))
for size in (1000, 9000):
    try:
        print(run(Path(sys.argv[1]), Path(sys.argv[2]), max_size=size).metadata["width"])
    except JobError as error:
        print(error.code, error.detail["limit"])
"""


def test_picture_that_outgrows_the_jobs_memory_is_refused_and_a_smaller_one_is_made(tmp_path: Path) -> None:
    """In a process with 700 MB left, 9000² pixels in color are refused by name and 1000² are not."""
    source = sparse(tmp_path / "a.tif", 9000, 512, 3, PHOTOMETRIC="RGB")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["1000", "too_large memory"]


@pytest.mark.parametrize(("stored", "expected"), [(0, 10), (100, 10 + 100 * EXPANSION), (1 << 30, 1 << 20)])
def test_a_larger_file_may_cost_more_up_to_a_limit(stored: int, expected: int) -> None:
    """Any file may cost the least."""
    assert allowance(stored, 10, 1 << 20) == expected


def blocks(path: Path, starts: list[int], lengths: list[int], pages: int = 1) -> Path:
    """A file of 4,000 bytes with pages of 16 strips of a row of 16 bytes."""
    own: Tags = {278: (LONG, [1]), 273: (LONG, starts), 279: (LONG, lengths)}
    RawTiff([gray(16, 16) | own, *[gray(16, 16)] * (pages - 1)], data=bytes(4000)).write(path)
    with path.open("r+b") as file:
        file.truncate(4000)
    return path


@pytest.mark.parametrize(
    ("starts", "lengths", "stored"),
    [
        (range(2000, 2256, 16), [16] * 16, 256),
        (range(2000, 2256, 16), [9] * 16, 144),
        ([2000] * 16, [16] * 16, 16),
        (range(2000, 2016), [16] * 16, 31),
        (range(2000, 3600, 100), [100] * 16, 256),
        ([2000, *[3990] * 15], [16] * 16, 26),
        ([0] * 16, [0] * 16, 0),
    ],
    ids=["distinct", "compressed", "shared", "overlapping", "padded", "beyond the end", "missing"],
)
def test_only_distinct_bytes_of_blocks_earn_work(
    starts: Sequence[int], lengths: list[int], stored: int, tmp_path: Path
) -> None:
    """Neither shared bytes nor those that a block does not need count."""
    assert stored_bytes(blocks(tmp_path / "a.tif", list(starts), lengths), 1) == stored


def test_bytes_of_other_pages_and_behind_the_file_earn_no_work(tmp_path: Path) -> None:
    source = blocks(tmp_path / "a.tif", [2000] * 16, [16] * 16, pages=3)
    with source.open("ab") as file:
        file.write(bytes(1_000_000))
    assert stored_bytes(source, 1) == 16
    assert stored_bytes(source, 9) == 0


def test_a_file_without_compression_needs_no_lengths_of_blocks(tmp_path: Path) -> None:
    tags = {tag: value for tag, value in gray(16, 16).items() if tag != 279}
    RawTiff([tags], data=bytes(400)).write(tmp_path / "a.tif")
    assert stored_bytes(tmp_path / "a.tif", 1) == 256


def test_a_single_strip_counts_as_decoded_from_its_top(tmp_path: Path) -> None:
    """GDAL gives it as rows, but decodes all rows above the one that is read. Other strips are read by themselves."""
    for name, rows, sequential in (("whole", 9000, True), ("rows", 16, False)):
        path = tmp_path / f"{name}.tif"
        size = {"width": 9000, "height": 9000, "count": 1, "dtype": "uint8", "compress": "deflate"}
        with gdal_environment(), rasterio.open(path, "w", driver="GTiff", blockysize=rows, **size) as dataset:
            dataset.write(np.zeros((1, 9000, 9000), np.uint8))
        with gdal_environment():
            full = inspect_file(path).full
        assert full.sequential is sequential
        assert full.block_height < 9000


def test_a_small_file_of_one_huge_strip_is_no_source_of_tiles_but_of_a_cog(tmp_path: Path) -> None:
    """Each square of tiles would decode the strip from its top. GDAL writes the copy from top to bottom."""
    CRAFTED["one strip of 676 MB"](tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        perform_on(GEOTIFF_TO_TILES, tmp_path / "a.tif", tmp_path / "tiles")
    assert caught.value.code == "too_complex"


def cog_work(block: int, bands: int, tmp_path: Path) -> str | None:
    """The code with which a file of 20,000 pixels a side is refused."""
    source = sparse(tmp_path / "a.tif", 64, 16, 1)
    with gdal_environment():
        header = inspect_file(source)
    level = Level(None, 20_000, 20_000, block, block)
    header = replace(
        header, width=20_000, height=20_000, levels=(level,), bands=header.bands * bands, pixel_interleaved=True
    )
    try:
        job._afford(source, header, CogOptions(), TileLayout.of(20_000, 20_000, None, bands))
    except JobError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("block", "bands", "size", "code"),
    [
        (512, 1, 100_000, None),
        (512, 3, 100_000, None),
        (512, 12, 100_000, "too_complex"),
        (512, 12, 100_000_000, None),
        (16_384, 1, 100_000, "too_complex"),
        (16_384, 1, 100_000_000, None),
        (512, 20_000, 1 << 40, "too_large"),
    ],
)
def test_predicted_work_decides_about_a_cog(
    block: int, bands: int, size: int, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that GDAL cannot keep count for each row of tiles, and a large file may cost more than a small one."""
    monkeypatch.setattr(job, "stored_bytes", lambda *_: size)
    assert cog_work(block, bands, tmp_path) == code


def test_tiles_of_many_bands_are_smaller() -> None:
    """GDAL holds several in memory. A size that the job asks for is kept."""
    assert [TileLayout.of(4000, 4000, None, size).block for size in (4, 256, 257, 4096)] == [512, 512, 256, 128]
    assert TileLayout.of(4000, 4000, 512, 4096).block == 512
