"""Crafted files through all task types, each in a real child: a result or an error code, at a bounded cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.handlers import TaskRequest, TaskResult
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.plugins.registry import load
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import Sandbox
from tests.support.child_work import Spent, perform_and_measure, spent_in
from tests.support.crafted import CRAFTED

TYPES = ("geotiff_to_png", "geotiff_to_cog", "geotiff_to_tiles", "geotiff_info")
SETTINGS = Settings(api_base_url="http://127.0.0.1:1", worker_auth_token="x" * 40)
TASKS = load(SETTINGS, only=TYPES)
BUDGET = Spent(cpu_seconds=30.0, memory_bytes=1 << 30)
"""A job may cost 60 s. Half of it leaves room for slow machines."""


def box() -> Sandbox[Call, TaskResult]:
    """The worker's own sandbox, with a limit of half a minute."""
    limits = Limits(cpu_seconds=round(BUDGET.cpu_seconds))
    preload = (*TASKS.preload, "geoprocessing_worker.tasks.preload")
    return Sandbox(perform_and_measure, TaskResult, preload=preload, limits=limits)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", CRAFTED)
async def test_a_crafted_file_ends_within_its_bounds_in_every_task_type(kind: str, tmp_path: Path) -> None:
    """In a result, or in an error that blames the file and is final."""
    source = tmp_path / "a.tif"
    CRAFTED[kind](source)
    for name in TYPES:
        out = tmp_path / name
        out.mkdir()
        task = TASKS.usable[name]
        options = task.options({"maxSize": 256} if name == "geotiff_to_png" else {})
        request = TaskRequest(source, out, "a", options, "a.tif")
        try:
            await box().run(Call.of(task.handler, request), lambda *_: None, task.reach(source, out))
        except JobError as error:
            assert error.error_class == ErrorClass.INVALID_INPUT, (name, error.code, error)  # noqa: PT017 - both outcomes are right
        spent = spent_in(out)
        assert spent.cpu_seconds < BUDGET.cpu_seconds, (name, spent)
        assert spent.memory_bytes < BUDGET.memory_bytes, (name, spent)
