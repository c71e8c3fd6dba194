"""Work that cannot be afforded is refused from the header alone, with the limit and the number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from geoprocessing_worker.cost import MAX_DECODED_BYTES, Cost, afford
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.opening import gdal_environment
from tests.support.rasters import run


def sparse(path: Path, side: int, tile: int, count: int, **profile: str) -> Path:
    """A file of a few kilobytes that says it holds side² pixels."""
    options = {"SPARSE_OK": "TRUE", "TILED": "YES", "BLOCKXSIZE": tile, "BLOCKYSIZE": tile, "COMPRESS": "DEFLATE"}
    size = {"width": side, "height": side, "count": count, "dtype": "uint8"}
    with gdal_environment(), rasterio.open(path, "w", driver="GTiff", **size, **options, **profile):
        pass
    return path


def test_what_can_be_afforded_passes() -> None:
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
    """What it would cost, what is allowed, and what to do."""
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
    """In a process with 700 MB left, 9000² pixels in colour are refused by name and 1000² are not."""
    source = sparse(tmp_path / "a.tif", 9000, 512, 3, PHOTOMETRIC="RGB")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["1000", "too_large memory"]
