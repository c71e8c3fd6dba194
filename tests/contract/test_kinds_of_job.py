"""Worker and API agree on each built-in task type, and on files named by a URL."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from geoprocessing_worker.config import Settings
from geoprocessing_worker.jobs.outbox import Outbox
from geoprocessing_worker.jobs.report_sender import ReportSender
from geoprocessing_worker.jobs.runner import Ending, JobRunner, WorkerContext
from geoprocessing_worker.plugins.registry import Tasks, bind
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.worker import source_client
from tests.contract.test_wire import request
from tests.support.api import NO_TLS, WORKER_TOKEN, RunningApi
from tests.support.clients import Person, get, rows
from tests.support.rasters import UTM, Tiff
from tests.support.scripted_api import ScriptedApi
from tests.support.waiting import in_thread

MAP = Tiff(np.full((3, 300, 400), 90, "uint8"), "EPSG:32638", UTM)


async def work_off(context: WorkerContext, task_type: str) -> Ending:
    asked = request().model_copy(update={"task_types": (task_type,)})
    answer = await context.api.claim(asked)
    assert answer is not None
    (job,) = answer.jobs

    return await JobRunner(job, context, asyncio.Event()).run()


def test_the_api_has_each_task_type_as_its_handler_declares_it(context: WorkerContext, person: Person) -> None:
    """Suffixes, content types, sizes, formats and times must change on both sides."""
    for task in context.tasks:
        declared = json.loads(task.handler.announced.model_dump_json(by_alias=True))
        known = person.http.get(f"/api/task-types/{task.name}").raise_for_status().json()
        for kind in (declared, known):
            kind["outputs"] = sorted(kind["outputs"], key=lambda slot: str(slot["suffix"]))
        assert {name: known[name] for name in declared if name != "leaseSeconds"} == {
            name: value for name, value in declared.items() if name != "leaseSeconds"
        }


@pytest.mark.parametrize(
    ("task_type", "endings"),
    [("geotiff_to_cog", [".json", ".tif"]), ("geotiff_info", [".json"]), ("geotiff_to_tiles", [".json", ".pmtiles"])],
)
async def test_each_task_type_works_from_submission_to_download(
    task_type: str, endings: list[str], context: WorkerContext, person: Person, tmp_path: Path
) -> None:
    source = MAP.write(tmp_path / "map.tif").read_bytes()
    job_id = await in_thread(lambda: person.submit({}, source, taskType=task_type))
    assert await work_off(context, task_type) is Ending.COMPLETED
    job = await in_thread(person.look, job_id)
    assert job["state"] == "succeeded"
    assert job["metadata"]["crs"]["epsg"] == 32638
    answer = await in_thread(lambda: person.http.get(f"/api/geo-jobs/{job_id}/download/output"))
    outputs = {output["name"]: output["url"] for output in answer.raise_for_status().json()["outputs"]}
    assert sorted(outputs) == [f"map{ending}" for ending in endings]
    assert (await in_thread(get, outputs["map.json"])).json()["type"] == "Feature"


@pytest.fixture
async def linked(
    api_server: Callable[..., RunningApi], tmp_path: Path
) -> AsyncIterator[tuple[RunningApi, WorkerContext]]:
    """An API and a worker that both fetch files from the loopback address."""
    from geoprocessing_worker.handlers import TaskResult
    from geoprocessing_worker.plugins.registry import load
    from geoprocessing_worker.sandbox.process import Sandbox
    from geoprocessing_worker.tasks.child import perform

    api = api_server(source_hosts="127.0.0.1")
    settings = Settings(api_base_url=api.base_url, temp_dir=tmp_path / "work", source_hosts=("127.0.0.1",))
    async with (
        httpx.AsyncClient(base_url=api.base_url) as http,
        httpx.AsyncClient() as storage,
        source_client(settings, NO_TLS) as sources,
    ):
        job_api = JobApi(http, SecretStr(WORKER_TOKEN))
        outbox = Outbox(tmp_path / "work", api.base_url, max_age=3600, max_reports=10)
        yield (
            api,
            WorkerContext(
                settings=settings,
                tasks=load(settings),
                api=job_api,
                sender=ReportSender(outbox, job_api, storage),
                storage=storage,
                sources=sources,
                sandbox=Sandbox(perform, TaskResult, preload=("geoprocessing_worker.tasks.preload",)),
            ),
        )


async def test_a_source_is_rendered_once_for_each_version(
    linked: tuple[RunningApi, WorkerContext], server: ScriptedApi, tmp_path: Path
) -> None:
    """The second job of an unchanged source ends without work. A changed source is rendered again."""
    api, context = linked
    version, content = ['"v1"'], MAP.write(tmp_path / "map.tif").read_bytes()

    async def hand_out(asked: Request) -> Response:
        assert "authorization" not in asked.headers
        known = asked.headers.get("if-none-match") == version[0]
        return Response(b"" if known else content, 304 if known else 200, headers={"ETag": version[0]})

    server.on("map.tif", hand_out)
    person = Person(api)
    body = {"taskType": "geotiff_info", "inputPayload": {"sourceUrl": f"{server.base_url}/a/map.tif"}}

    async def one(**condition: str) -> dict[str, Any]:
        made = await in_thread(lambda: person.http.post("/api/geo-jobs", json=body))
        job_id = made.raise_for_status().json()["id"]
        if condition:
            # Like a schedule with skipUnchanged.
            asked = "UPDATE jobs SET source_condition = %s::jsonb WHERE id = %s"
            await in_thread(rows, api.settings.conninfo or "", asked, json.dumps(condition), job_id)
        assert await work_off(context, "geotiff_info") is Ending.COMPLETED
        return await in_thread(person.look, job_id)

    first = await one()
    assert [output["name"] for output in first["outputs"]] == ["map.json"]
    assert first["sourceValidators"]["etag"] == '"v1"'
    unchanged = await one(etag='"v1"')
    assert (unchanged["outputs"], unchanged["metadata"]) == ([], {"unchanged": True})
    version[0] = '"v2"'
    assert (await one(etag='"v1"'))["metadata"]["width"] == 400


@pytest.mark.parametrize(
    ("most", "state", "why"), [(1, "failed", "no attempts are left"), (3, "queued", "It is tried again at ")]
)
async def test_only_the_server_decides_on_another_attempt(
    most: int, state: str, why: str, context: WorkerContext, person: Person, api: RunningApi, tmp_path: Path
) -> None:
    """After its last attempt a job has failed for good, and its messages promise no other attempt."""
    admin = Person(api, "root", admin=True)
    changed = await in_thread(
        lambda: admin.http.patch("/api/task-types/geotiff_info", json={"maxAttempts": most, "backoffSeconds": [600]})
    )
    changed.raise_for_status()
    source = MAP.write(tmp_path / "map.tif").read_bytes()
    job_id = await in_thread(lambda: person.submit({}, source, taskType="geotiff_info"))
    broken = dataclasses.replace(GEOTIFF_INFO, work="geoprocessing_worker.tasks.info:no_such_function")
    tasks = Tasks({"geotiff_info": bind(broken, context.settings)})
    assert await work_off(dataclasses.replace(context, tasks=tasks), "geotiff_info") is Ending.FAILED
    job = await in_thread(person.look, job_id)
    assert job["state"] == state
    explained = (await in_thread(lambda: person.http.get(f"/api/geo-jobs/{job_id}/explain"))).json()
    assert why in explained["why"]
    error = explained["leases"][0]["error"]
    assert error["code"] == "internal_error"
    assert "again" not in error["message"]
    assert "again" not in json.dumps(job["error"])
