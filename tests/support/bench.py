"""A worker's context, against a scripted API in its own folder."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydantic import SecretStr
from starlette.responses import Response

from geoprocessing_worker.config import Settings
from geoprocessing_worker.handlers import InputRule, TaskResult
from geoprocessing_worker.jobs.outbox import Outbox
from geoprocessing_worker.jobs.report_sender import ReportSender
from geoprocessing_worker.jobs.runner import Ending, JobRunner, WorkerContext
from geoprocessing_worker.plugins.registry import Tasks, bind
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_PNG
from geoprocessing_worker.tasks.child import perform
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import ClaimedJob
from tests.support.processes import ROOT
from tests.support.rasters import Tiff
from tests.support.scripted_api import ScriptedApi, answer
from tests.support.wire import claimed_job, renewed

SUFFIXES = (".png", ".pgw", ".prj", ".png.aux.xml", "_thumb.png", ".json")
SUCCEEDED = {"state": "succeeded", "replayed": False}


class Bench:
    """A runner for one job, and its server."""

    def __init__(
        self,
        server: ScriptedApi,
        http: httpx.AsyncClient,
        folder: Path,
        work: str = GEOTIFF_TO_PNG.work,
        *,
        confine: bool = True,
        needs_input: bool = True,
        most: int = 0,
    ) -> None:
        self.server = server
        self.folder = folder
        self.interrupt = asyncio.Event()
        self.source = Tiff(np.full((3, 60, 80), 90, "uint8")).write(folder / "made.tif").read_bytes()
        self.api = httpx.AsyncClient(base_url=server.base_url)
        settings = Settings(temp_dir=folder / "work", heartbeat_interval=0.05)
        api = JobApi(self.api, SecretStr("t"))
        self.outbox = Outbox(folder / "work", server.base_url, max_age=3600, max_reports=10)
        rule = InputRule.REQUIRED if needs_input else InputRule.NONE
        handler = dataclasses.replace(
            GEOTIFF_TO_PNG, work=work, task_type=GEOTIFF_TO_PNG.task_type.model_copy(update={"input": rule})
        )
        self.tools = WorkerContext(
            settings=settings,
            # The first test starts the fork server. Children of later tests import other modules themselves.
            tasks=Tasks({"geotiff_to_png": bind(handler, settings, (ROOT,))}),
            api=api,
            sender=ReportSender(self.outbox, api, http),
            storage=http,
            sources=http,
            sandbox=Sandbox(
                perform,
                TaskResult,
                preload=("geoprocessing_worker.tasks.preload",),
                confine=confine,
                most=most,
            ),
        )
        server.on("in", Response(self.source))
        for suffix in SUFFIXES:
            server.on("map" + suffix, Response(status_code=200))
        server.on("heartbeat", answer(renewed()))
        server.on("progress", answer(renewed()))
        server.on("complete", answer(SUCCEEDED))
        server.on("fail", answer({"state": "failed", "nextAttemptAt": None, "replayed": False}))

    def job(self, **more: Any) -> dict[str, Any]:
        message = claimed_job(download_url=f"{self.server.base_url}/in")
        message["input"]["sizeBytes"] = len(self.source)
        message["uploads"] = [
            {"name": f"map{suffix}", "url": f"{self.server.base_url}/map{suffix}", "maxBytes": 10**8}
            for suffix in SUFFIXES
        ]
        return message | more

    def with_tools(self, **changed: Any) -> WorkerContext:
        """Return the context with changes."""
        return dataclasses.replace(self.tools, **changed)

    def serve(self, content: bytes) -> None:
        """Put another file into storage."""
        self.source = content
        self.server.on("in", Response(content))

    async def run(self, **more: Any) -> Ending:
        return await JobRunner(ClaimedJob.model_validate(self.job(**more)), self.tools, self.interrupt).run()

    def failure(self) -> dict[str, Any]:
        assert self.server.calls("complete") == []
        return self.failure_after_completion()

    def failure_after_completion(self) -> dict[str, Any]:
        (asked,) = self.server.calls("fail")
        error: dict[str, Any] = asked.json["error"]
        return error

    def folders(self) -> list[Path]:
        """Return the folders of jobs and reports on disk."""
        return [*(self.folder / "work").glob("geojob_*"), *(self.folder / "work" / "outbox").glob("*")]
