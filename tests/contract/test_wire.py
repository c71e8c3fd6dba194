"""The worker's client and the API mean the same by every call and every answer."""

import asyncio
import hashlib
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from geoprocessing_worker.errors import CancelRequested, ErrorClass, JobError, LeaseLost, Rejected, TokenRefused
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper
from geoprocessing_worker.jobs.runner import Ending, JobRunner, WorkerContext
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import ClaimedJob, ClaimRequest, Completion, Failure, Progress, ReportedOutput
from tests.support.api import RunningApi
from tests.support.clients import Person, expire_leases
from tests.support.rasters import Tiff
from tests.support.waiting import in_thread


def request(*, wait_seconds: float = 5, max_jobs: int = 1, claim_id: str | None = None) -> ClaimRequest:
    return ClaimRequest(
        claim_id=claim_id or str(uuid.uuid4()),
        worker_id=str(uuid.uuid4()),
        worker_name="contract",
        task_types=("geotiff_to_png",),
        max_jobs=max_jobs,
        wait_seconds=wait_seconds,
    )


async def claimed(tools: WorkerContext) -> tuple[ClaimedJob, Lease]:
    answer = await tools.api.claim(request())
    assert answer is not None
    (job,) = answer.jobs
    return job, Lease(job)


async def put(tools: WorkerContext, job: ClaimedJob, ending: str, content: bytes) -> ReportedOutput:
    slot = next(slot for slot in job.uploads if slot.name.endswith(ending))
    answer = await tools.storage.request(slot.method, slot.url, content=content, headers=slot.headers)
    assert answer.is_success
    digest = hashlib.sha256(content).hexdigest()
    return ReportedOutput(name=slot.name, size_bytes=len(content), sha256=digest, content_type=slot.content_type)


async def test_an_idle_queue_answers_none(tools: WorkerContext) -> None:
    assert await tools.api.claim(request(wait_seconds=0)) is None


async def test_a_claim_says_all_that_a_worker_needs(tools: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit, {"maxSize": 77})
    job, _ = await claimed(tools)
    assert (job.id, job.attempt, job.input_payload) == (job_id, 1, {"maxSize": 77})
    assert job.lease_seconds == 15
    assert job.input is not None
    assert job.input.size_bytes == len((await tools.storage.get(job.input.download_url)).content)
    endings = {slot.name.removeprefix("map") for slot in job.uploads}
    assert endings == {".png", ".pgw", ".prj", ".png.aux.xml", "_thumb.png", ".json"}


async def test_the_same_claim_id_brings_the_same_lease_again(tools: WorkerContext, person: Person) -> None:
    await in_thread(person.submit)
    again = request()
    first, second = await tools.api.claim(again), await tools.api.claim(again)
    assert first is not None
    assert second is not None
    assert first.jobs[0].lease_token == second.jobs[0].lease_token


async def test_heartbeats_and_progress_renew_and_progress_reaches_the_person(
    tools: WorkerContext, person: Person
) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(tools)
    renewed = await tools.api.heartbeat(lease)
    assert (renewed.lease_seconds, renewed.cancel) == (60, None)
    await tools.api.progress(lease, Progress(percent=40, stage="render", message="Rendering"))
    await tools.api.progress(lease, Progress(percent=10, stage="download", message="late"))
    seen = await in_thread(person.look, job_id)
    assert seen["percent"] == 40


async def test_a_completion_publishes_and_its_repetition_is_replayed(tools: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit)
    job, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    output = await put(tools, job, ".png", b"picture")
    completion = Completion(outputs=(output,), metadata={"width": 1}, timings={"render": 0.5})
    assert not (await tools.api.complete(lease, completion)).replayed
    assert (await tools.api.complete(lease, completion)).replayed
    other = completion.model_copy(update={"metadata": {"width": 2}})
    with pytest.raises(LeaseLost, match="already_finalized"):
        await tools.api.complete(lease, other)
    assert (await in_thread(person.look, job_id))["metadata"] == {"width": 1}


async def test_outputs_that_are_not_there_are_rejected(tools: WorkerContext, person: Person) -> None:
    await in_thread(person.submit)
    job, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    output = await put(tools, job, ".png", b"picture")
    lie = output.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Rejected, match="output_mismatch"):
        await tools.api.complete(lease, Completion(outputs=(lie,), metadata={}, timings={}))


@pytest.mark.parametrize(
    ("error_class", "state"),
    [
        (ErrorClass.INVALID_INPUT, "failed"),
        (ErrorClass.TRANSIENT, "queued"),
        (ErrorClass.RESOURCE, "queued"),
        (ErrorClass.TIMEOUT, "queued"),
        (ErrorClass.INTERNAL, "queued"),
        (ErrorClass.INTERRUPTED, "queued"),
    ],
)
async def test_the_server_decides_what_becomes_of_each_class_of_failure(
    tools: WorkerContext, person: Person, error_class: ErrorClass, state: str
) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    failure = Failure.of(JobError("some_code", "Some words.", error_class, {"n": 1}))
    answer = await tools.api.fail(lease, failure)
    assert (answer.state, answer.next_attempt_at is not None) == (state, state == "queued")
    assert (await tools.api.fail(lease, failure)).replayed
    seen = await in_thread(person.look, job_id)
    blameless = error_class is ErrorClass.INTERRUPTED
    assert seen["attempt"] == (0 if blameless else 1)
    assert seen["error"] is None if blameless else seen["error"]["code"] == "some_code"


async def test_a_cancel_reaches_the_worker_and_its_answer_ends_the_job(tools: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(tools)
    keeper = LeaseKeeper(tools.api, lease, interval=0.05)
    await keeper.take_up()
    await in_thread(person.cancel, job_id, "wrong file")
    with pytest.raises(CancelRequested, match="wrong file"):
        await keeper.keep()
    answer = await tools.api.fail(lease, Failure.of(JobError("job_cancelled", "Stopped.", ErrorClass.CANCELLED)))
    assert answer.state == "cancelled"


async def test_a_heartbeat_that_is_held_open_is_answered_when_the_job_is_cancelled(
    tools: WorkerContext, person: Person
) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    held = asyncio.create_task(tools.api.heartbeat(lease, 40))
    await in_thread(person.cancel, job_id, "wrong file")
    async with asyncio.timeout(20):
        answer = await held
    assert answer.cancel is not None
    assert answer.cancel.reason == "wrong file"


async def test_a_heartbeat_is_held_open_no_longer_than_it_asked_for(tools: WorkerContext, person: Person) -> None:
    await in_thread(person.submit)
    _, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    async with asyncio.timeout(20):
        assert (await tools.api.heartbeat(lease, 0.3)).cancel is None


async def test_a_stale_lease_can_do_nothing_and_its_files_are_never_seen(
    tools: WorkerContext, person: Person, api: RunningApi
) -> None:
    job_id = await in_thread(person.submit)
    stale_job, stale = await claimed(tools)
    await tools.api.heartbeat(stale)
    await in_thread(expire_leases, api.settings.conninfo)
    job, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    old = await put(tools, stale_job, ".png", b"stale picture")
    for call in (
        tools.api.heartbeat(stale),
        tools.api.progress(stale, Progress(percent=1, stage="render", message="")),
        tools.api.complete(stale, Completion(outputs=(old,), metadata={}, timings={})),
        tools.api.fail(stale, Failure.of(JobError("x", "y", ErrorClass.INTERNAL))),
    ):
        with pytest.raises(LeaseLost, match="lease_lost"):
            await call
    new = await put(tools, job, ".png", b"fresh picture")
    await tools.api.complete(lease, Completion(outputs=(new,), metadata={}, timings={}))
    links = (await in_thread(person.http.get, f"/api/geo-jobs/{job_id}/download/output")).json()["outputs"]
    assert [(await tools.storage.get(link["url"])).content for link in links] == [b"fresh picture"]


async def test_a_wrong_token_is_refused_and_not_mistaken_for_anything_else(api: RunningApi) -> None:
    async with httpx.AsyncClient(base_url=api.base_url) as http:
        with pytest.raises(TokenRefused, match="token_invalid"):
            await JobApi(http, SecretStr("wrong-token-of-some-length")).claim(request())


@pytest.mark.parametrize(
    "name",
    [
        "map.tif",
        "خريطة صنعاء.tiff",
        "../../etc/passwd",
        "a b (1) copy.v2.TIF",
        "....tif",
        "no-extension",
        "x" * 300 + ".tif",
        "م" * 200 + ".tif",
        "tab\tand\nline.tif",
    ],
)
async def test_whatever_a_file_is_called_worker_and_api_agree_on_the_names_of_its_results(
    tools: WorkerContext, person: Person, tmp_path: Path, name: str
) -> None:
    content = Tiff(np.full((3, 20, 30), 90, "uint8")).write(tmp_path / "made.tif").read_bytes()
    created = await in_thread(person.create)
    url = await in_thread(person.upload_url, created["id"], name, len(content))
    assert (await tools.storage.put(url, content=content)).is_success
    job, _ = await claimed(tools)
    assert await JobRunner(job, tools, asyncio.Event()).run() is Ending.COMPLETED
    seen = await in_thread(person.look, created["id"])
    assert len(seen["outputs"]) == 6


async def test_a_cancel_without_a_reason_reaches_the_worker_too(tools: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(tools)
    await tools.api.heartbeat(lease)
    await in_thread(person.http.post, f"/api/geo-jobs/{job_id}/cancel")
    answer = await tools.api.heartbeat(lease)
    assert answer.cancel is not None


@pytest.mark.parametrize("output_format", ["JPEG", "jpg", "Png", "WebP"])
async def test_formats_are_understood_in_capitals_on_both_sides(
    tools: WorkerContext, person: Person, tmp_path: Path, output_format: str
) -> None:
    content = Tiff(np.full((3, 20, 30), 90, "uint8")).write(tmp_path / "made.tif").read_bytes()
    await in_thread(person.submit, {"outputFormat": output_format}, content)
    job, _ = await claimed(tools)
    assert await JobRunner(job, tools, asyncio.Event()).run() is Ending.COMPLETED
