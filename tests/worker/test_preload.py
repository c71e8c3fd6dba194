"""The fork server has all modules of a job in memory before it forks a child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.rasters import Tiff, quarters, ramp

CONVERT_ALL = """
import asyncio, sys
from pathlib import Path
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.picture import ConversionRequest, RenderOptions
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_PNG
PRELOAD = ("geoprocessing_worker.tasks.preload", "tests.support.census")
box = Sandbox("tests.support.census:perform_and_list", TaskResult, preload=PRELOAD)
folder, *sources = map(Path, sys.argv[1:])
for source in sources:
    for kind in ("png", "jpeg", "webp"):
        options = RenderOptions(output_format=kind)
        request = ConversionRequest(source=source, output_folder=folder, stem="out", options=options, source_name="a")
        call = Call.of(GEOTIFF_TO_PNG, request)
        reach = AllowedPaths((source, Path.cwd()), (folder,))
        print(*asyncio.run(box.run(call, lambda *_: None, reach)).metadata["imported"])
"""


def test_a_child_imports_nothing(tmp_path: Path) -> None:
    """All that a job imports is imported before the fork: each child would have to do it anew."""
    sources = [
        Tiff(quarters(40)).write(tmp_path / "color.tif"),
        Tiff(ramp(40, 40, "float32"), nodata=-1).write(tmp_path / "heights.tif"),
    ]
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", CONVERT_ALL, str(tmp_path / "out"), *map(str, sources)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert ended.stdout.split() == []


ASK_AGAIN = """
import sys
from pathlib import Path
from geoprocessing_worker.tasks.picture import ConversionRequest, RenderOptions, convert, preload
from geoprocessing_worker.geo.wkt import esri_wkt
preload()
before = esri_wkt.cache_info().misses
source, folder = map(Path, sys.argv[1:])
convert(
    ConversionRequest(source=source, output_folder=folder, stem="o", options=RenderOptions(), source_name="o"),
    lambda *_: None,
)
sys.exit(esri_wkt.cache_info().misses - before)
"""


def test_a_usual_system_is_described_before_a_job_needs_it(tmp_path: Path) -> None:
    """No child asks PROJ's database for the words of EPSG:4326, as a file has it: opening it takes 12 ms."""
    source = Tiff(ramp(16, 16)).write(tmp_path / "a.tif")
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", ASK_AGAIN, str(source), str(tmp_path / "out")]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


HEAP = """
import asyncio
from geoprocessing_worker import config
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.sandbox.process import Sandbox
config.keep_harmless_environment()
box = Sandbox("tests.support.census:list_heap_flags", TaskResult, confine=False)
print(*asyncio.run(box.run(None, lambda *_: None)).metadata["flags"])
"""


@pytest.mark.skipif(
    "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this system gives huge pages to all processes or none",
)
def test_a_child_has_its_arrays_in_huge_pages() -> None:
    """Half of a small job's page faults are for fresh arrays, in pages of 4 kB."""
    ran = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert "hg" in ran.stdout.split()
