"""Fixtures of the contract: the real worker's client and the real API, over a socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from geoprocessing_worker.config import Settings
from geoprocessing_worker.handlers import TaskResult
from geoprocessing_worker.jobs.outbox import Outbox
from geoprocessing_worker.jobs.report_sender import ReportSender
from geoprocessing_worker.jobs.runner import WorkerContext
from geoprocessing_worker.plugins.registry import load
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.child import perform
from geoprocessing_worker.wire.client import JobApi
from tests.support.api import WORKER_TOKEN, RunningApi
from tests.support.clients import Person


@pytest.fixture
def person(api: RunningApi) -> Person:
    """A caller."""
    return Person(api)


@pytest.fixture
async def context(api: RunningApi, tmp_path: Path) -> AsyncIterator[WorkerContext]:
    """A real worker's context, pointed at the real API."""
    async with httpx.AsyncClient(base_url=api.base_url) as http, httpx.AsyncClient() as storage:
        job_api = JobApi(http, SecretStr(WORKER_TOKEN))
        outbox = Outbox(tmp_path / "work", api.base_url, max_age=3600, max_reports=10)
        settings = Settings(api_base_url=api.base_url, temp_dir=tmp_path / "work", poll_interval=0.1)
        yield WorkerContext(
            settings=settings,
            tasks=load(settings),
            api=job_api,
            sender=ReportSender(outbox, job_api, storage),
            storage=storage,
            sources=storage,
            sandbox=Sandbox(perform, TaskResult, preload=("geoprocessing_worker.tasks.preload",)),
        )
