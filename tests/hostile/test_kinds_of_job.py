"""The gates refuse a file for every task type, before its work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.handlers import Opens, TaskRequest, TaskResult
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.sandbox import landlock
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.child import perform
from tests.hostile.test_bombs import (
    gigapixels,
    highly_compressed,
    jpeg_of_gigapixels,
    million_directories,
    old_codec,
    one_huge_tile,
    strip_beyond_the_end,
)
from tests.hostile.test_metadata import hostile
from tests.support.canary import Canary
from tests.support.processes import ROOT
from tests.support.rasters import DEGREES, Tiff, quarters

LOADED = registry.load(Settings())
KINDS = [name for name in LOADED.names if name != "geotiff_to_png"]
MEMORY = 2 << 30
pytestmark = pytest.mark.skipif(
    bool(landlock.missing_layers()), reason=f"not in this kernel: {landlock.missing_layers()}"
)


async def do(path: Path, kind: str, *, validate_headers: bool = True, work: str | None = None) -> TaskResult:
    """Run like the worker: in a child, with its limits and sandbox."""
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    task = LOADED.usable[kind]
    request = TaskRequest(path, out, "a", task.options({}), "a.tif", validate_headers)
    box: Sandbox[Call, TaskResult] = Sandbox(
        perform,
        TaskResult,
        preload=("geoprocessing_worker.tasks.preload",),
        limits=Limits(memory_bytes=MEMORY, cpu_seconds=60),
    )
    call = Call(work or task.handler.work, request, task.handler.opens)
    readable = (path,) if work is None else (path, ROOT)
    return await box.run(call, lambda *_: None, AllowedPaths(readable, (out,)))


def page(path: Path) -> None:
    path.write_bytes(b"<!doctype html><p>This is no map.</p>")


BOMBS: list[tuple[Callable[[Path], None], str]] = [
    (page, "not_a_tiff"),
    (gigapixels, "too_large"),
    (one_huge_tile, "too_large"),
    (million_directories, "malformed_header"),
    (strip_beyond_the_end, "truncated"),
    (old_codec, "unsupported_compression"),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hostile_file_is_refused_by_every_task_type(kind: str, bird: Canary, tmp_path: Path) -> None:
    """With the same codes. No file named in its metadata is opened."""
    for make, code in BOMBS:
        make(tmp_path / "a.tif")
        with pytest.raises(JobError) as caught:
            await do(tmp_path / "a.tif", kind)
        assert caught.value.code == code, make
    path = hostile(tmp_path / "b.tif", "OVERVIEWS", OVERVIEW_FILE=str(bird.path))
    for headers in (True, False):
        with pytest.raises(JobError) as caught:
            await do(path, kind, validate_headers=headers)
        assert caught.value.code == "hostile_metadata"
    assert bird.touched() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_false_size_costs_no_more_than_a_job_may_use(kind: str, tmp_path: Path) -> None:
    """A JPEG of gigapixels in a tile of sixteen pixels is damage or a refusal. The worker continues."""
    path = tmp_path / "a.tif"
    jpeg_of_gigapixels(path)
    if kind == "geotiff_info":
        assert (await do(path, kind)).metadata["damage"] == "corrupt_block"
        return
    with pytest.raises(JobError) as caught:
        await do(path, kind)
    assert caught.value.code in {"corrupt_block", "not_georeferenced"}


async def test_a_large_strip_is_not_decoded_for_each_row_of_tiles(tmp_path: Path) -> None:
    """144 megapixels in one strip of 140 kB: a copy takes seconds of processor time, not minutes."""
    highly_compressed(tmp_path / "a.tif")
    assert (await do(tmp_path / "a.tif", "geotiff_to_cog")).outputs


@pytest.mark.parametrize("kind", ["geotiff_to_png", *KINDS])
async def test_a_tiling_scheme_name_is_not_followed(kind: str, bird: Canary, tmp_path: Path) -> None:
    """The one allowed domain, which our own results have. Its content is not followed."""
    path = hostile(tmp_path / "a.tif", "TILING_SCHEME", NAME=str(bird.path), ZOOM_LEVEL="999999999")
    assert (await do(path, kind)).outputs
    assert bird.touched() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_legitimate_file_works_in_the_sandbox(kind: str, tmp_path: Path) -> None:
    """Libraries find their data and temporary files. Only results remain in the folder."""
    profile = {"compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256}
    path = Tiff(quarters(1024), transform=DEGREES, profile=profile).write(tmp_path / "a.tif")
    result = await do(path, kind)
    assert {output.name for output in result.outputs} == {found.name for found in (tmp_path / "out").iterdir()}


async def test_the_gates_run_before_any_handler(bird: Canary, tmp_path: Path) -> None:
    """The gates precede any handler. The work of one that would open any file does not start."""
    assert all(task.handler.opens is Opens.GEOTIFF for task in LOADED)
    path = hostile(tmp_path / "a.tif", "GEOLOCATION", X_DATASET=str(bird.path))
    with pytest.raises(JobError) as caught:
        await do(path, "geotiff_info", work="tests.support.child_work:make_of_anything")
    assert caught.value.code == "hostile_metadata"
    honest = Tiff(np.zeros((1, 8, 8), "uint8")).write(tmp_path / "b.tif")
    made = await do(honest, "geotiff_info", work="tests.support.child_work:make_of_anything")
    assert made.metadata == {"begun": True}
