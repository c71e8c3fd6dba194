"""The worker's client and the API agree on every call and every answer."""

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


async def claimed(context: WorkerContext) -> tuple[ClaimedJob, Lease]:
    answer = await context.api.claim(request())
    assert answer is not None
    (job,) = answer.jobs
    return job, Lease(job)


async def put(context: WorkerContext, job: ClaimedJob, ending: str, content: bytes) -> ReportedOutput:
    slot = next(slot for slot in job.uploads if slot.name.endswith(ending))
    answer = await context.storage.request(slot.method, slot.url, content=content, headers=slot.headers)
    assert answer.is_success
    digest = hashlib.sha256(content).hexdigest()
    return ReportedOutput(name=slot.name, size_bytes=len(content), sha256=digest, content_type=slot.content_type)


async def test_an_idle_queue_answers_none(context: WorkerContext) -> None:
    assert await context.api.claim(request(wait_seconds=0)) is None


async def test_a_claim_has_every_field_of_a_job(context: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit, {"maxSize": 77})
    job, _ = await claimed(context)
    assert (job.id, job.attempt, job.input_payload) == (job_id, 1, {"maxSize": 77})
    assert job.lease_seconds == 15
    assert job.input is not None
    assert job.input.size_bytes == len((await context.storage.get(job.input.download_url)).content)
    endings = {slot.name.removeprefix("map") for slot in job.uploads}
    assert endings == {".png", ".pgw", ".prj", ".png.aux.xml", "_thumb.png", ".json"}


async def test_the_same_claim_id_returns_the_same_lease(context: WorkerContext, person: Person) -> None:
    await in_thread(person.submit)
    again = request()
    first, second = await context.api.claim(again), await context.api.claim(again)
    assert first is not None
    assert second is not None
    assert first.jobs[0].lease_token == second.jobs[0].lease_token


async def test_heartbeats_and_progress_renew_the_lease_and_the_owner_sees_progress(
    context: WorkerContext, person: Person
) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(context)
    renewed = await context.api.heartbeat(lease)
    assert (renewed.lease_seconds, renewed.cancel) == (60, None)
    await context.api.progress(lease, Progress(percent=40, stage="render", message="Rendering"))
    await context.api.progress(lease, Progress(percent=10, stage="download", message="late"))
    seen = await in_thread(person.look, job_id)
    assert seen["percent"] == 40


async def test_a_complete_publishes_and_its_repetition_is_replayed(context: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit)
    job, lease = await claimed(context)
    await context.api.heartbeat(lease)
    output = await put(context, job, ".png", b"picture")
    completion = Completion(outputs=(output,), metadata={"width": 1}, timings={"render": 0.5})
    assert not (await context.api.complete(lease, completion)).replayed
    assert (await context.api.complete(lease, completion)).replayed
    other = completion.model_copy(update={"metadata": {"width": 2}})
    with pytest.raises(LeaseLost, match="already_finalized"):
        await context.api.complete(lease, other)
    assert (await in_thread(person.look, job_id))["metadata"] == {"width": 1}


async def test_missing_outputs_are_rejected(context: WorkerContext, person: Person) -> None:
    await in_thread(person.submit)
    job, lease = await claimed(context)
    await context.api.heartbeat(lease)
    output = await put(context, job, ".png", b"picture")
    lie = output.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Rejected, match="output_mismatch"):
        await context.api.complete(lease, Completion(outputs=(lie,), metadata={}, timings={}))


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
async def test_the_server_decides_the_next_state_by_the_class_of_failure(
    context: WorkerContext, person: Person, error_class: ErrorClass, state: str
) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(context)
    await context.api.heartbeat(lease)
    failure = Failure.of(JobError("some_code", "Some words.", error_class, {"n": 1}))
    answer = await context.api.fail(lease, failure)
    assert (answer.state, answer.next_attempt_at is not None) == (state, state == "queued")
    assert (await context.api.fail(lease, failure)).replayed
    seen = await in_thread(person.look, job_id)
    blameless = error_class is ErrorClass.INTERRUPTED
    assert seen["attempt"] == (0 if blameless else 1)
    assert seen["error"] is None if blameless else seen["error"]["code"] == "some_code"


async def test_a_cancellation_reaches_the_worker_and_its_answer_ends_the_job(
    context: WorkerContext, person: Person
) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(context)
    keeper = LeaseKeeper(context.api, lease, interval=0.05)
    await keeper.take_up()
    await in_thread(person.cancel, job_id, "wrong file")
    with pytest.raises(CancelRequested, match="wrong file"):
        await keeper.keep()
    answer = await context.api.fail(lease, Failure.of(JobError("job_cancelled", "Stopped.", ErrorClass.CANCELLED)))
    assert answer.state == "cancelled"


async def test_a_held_heartbeat_is_answered_when_the_job_is_cancelled(context: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(context)
    await context.api.heartbeat(lease)
    held = asyncio.create_task(context.api.heartbeat(lease, 40))
    await in_thread(person.cancel, job_id, "wrong file")
    async with asyncio.timeout(20):
        answer = await held
    assert answer.cancel is not None
    assert answer.cancel.reason == "wrong file"


async def test_a_held_heartbeat_is_answered_after_its_wait(context: WorkerContext, person: Person) -> None:
    await in_thread(person.submit)
    _, lease = await claimed(context)
    await context.api.heartbeat(lease)
    async with asyncio.timeout(20):
        assert (await context.api.heartbeat(lease, 0.3)).cancel is None


async def test_a_stale_lease_changes_nothing_and_its_files_stay_invisible(
    context: WorkerContext, person: Person, api: RunningApi
) -> None:
    job_id = await in_thread(person.submit)
    stale_job, stale = await claimed(context)
    await context.api.heartbeat(stale)
    await in_thread(expire_leases, api.settings.conninfo)
    job, lease = await claimed(context)
    await context.api.heartbeat(lease)
    old = await put(context, stale_job, ".png", b"stale picture")
    for call in (
        context.api.heartbeat(stale),
        context.api.progress(stale, Progress(percent=1, stage="render", message="")),
        context.api.complete(stale, Completion(outputs=(old,), metadata={}, timings={})),
        context.api.fail(stale, Failure.of(JobError("x", "y", ErrorClass.INTERNAL))),
    ):
        with pytest.raises(LeaseLost, match="lease_lost"):
            await call
    new = await put(context, job, ".png", b"fresh picture")
    await context.api.complete(lease, Completion(outputs=(new,), metadata={}, timings={}))
    links = (await in_thread(person.http.get, f"/api/geo-jobs/{job_id}/download/output")).json()["outputs"]
    assert [(await context.storage.get(link["url"])).content for link in links] == [b"fresh picture"]


async def test_a_wrong_token_is_refused_with_its_own_error(api: RunningApi) -> None:
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
async def test_worker_and_api_agree_on_the_names_of_results_of_any_file(
    context: WorkerContext, person: Person, tmp_path: Path, name: str
) -> None:
    content = Tiff(np.full((3, 20, 30), 90, "uint8")).write(tmp_path / "made.tif").read_bytes()
    created = await in_thread(person.create)
    url = await in_thread(person.upload_url, created["id"], name, len(content))
    assert (await context.storage.put(url, content=content)).is_success
    job, _ = await claimed(context)
    assert await JobRunner(job, context, asyncio.Event()).run() is Ending.COMPLETED
    seen = await in_thread(person.look, created["id"])
    assert len(seen["outputs"]) == 6


async def test_a_cancellation_without_a_reason_reaches_the_worker(context: WorkerContext, person: Person) -> None:
    job_id = await in_thread(person.submit)
    _, lease = await claimed(context)
    await context.api.heartbeat(lease)
    await in_thread(person.http.post, f"/api/geo-jobs/{job_id}/cancel")
    answer = await context.api.heartbeat(lease)
    assert answer.cancel is not None


@pytest.mark.parametrize("output_format", ["JPEG", "jpg", "Png", "WebP"])
async def test_both_sides_accept_formats_in_capitals(
    context: WorkerContext, person: Person, tmp_path: Path, output_format: str
) -> None:
    content = Tiff(np.full((3, 20, 30), 90, "uint8")).write(tmp_path / "made.tif").read_bytes()
    await in_thread(person.submit, {"outputFormat": output_format}, content)
    job, _ = await claimed(context)
    assert await JobRunner(job, context, asyncio.Event()).run() is Ending.COMPLETED
