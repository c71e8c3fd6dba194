"""The endpoints for people: create, upload, read, download, cancel, retry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from geo_jobs_api.errors import Problem, or_404
from geo_jobs_api.http.paging import answer, read_page
from geo_jobs_api.http.routes import Route
from geo_jobs_api.http.services import BaseUrl, CallerOf, Services, ServicesOf
from geo_jobs_api.jobs.creation_schemas import CreateBatch, CreatedBatch, CreateJob
from geo_jobs_api.jobs.explanation import build_explanation
from geo_jobs_api.jobs.payload_checks import check_file_type, find_rules
from geo_jobs_api.jobs.schemas import (
    CancelJob,
    EventFilter,
    EventPage,
    EventView,
    JobFilter,
    JobPage,
    JobView,
    OutputLink,
    OutputLinks,
    RequestUpload,
    UploadTarget,
)
from geo_jobs_api.jobs.submission import IdempotencyKey, quota_exceeded
from geo_jobs_api.queue.job_store import JobQuery, QuotaExceededError
from geo_jobs_api.queue.operator_schemas import Explanation
from geo_jobs_api.queue.records import Caller, Job, JobEvent
from geo_jobs_api.queue.rules import FINAL_STATES, JobState, output_key, safe_file_name, upload_key
from geo_jobs_api.storage.storage import SizeRule

router = APIRouter(prefix="/api/geo-jobs", tags=["jobs"], route_class=Route)

# Proxies close connections that are silent for 30 to 60 s.
_SSE_SILENCE_SECONDS = 15.0
_EVENTS_PER_PIECE = 20


async def _find_job(services: Services, caller: Caller, job_id: UUID) -> Job:
    return or_404(await services.jobs.find_job(job_id, caller.owner_filter), "job")


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses={200: {"model": JobView, "description": "The existing job of this key."}},
    summary="Create a job",
)
async def create_job(
    body: CreateJob, response: Response, caller: CallerOf, services: ServicesOf, idempotency_key: IdempotencyKey = None
) -> JobView:
    """Create a job. It waits for its upload, unless its input comes from elsewhere, and for the jobs in `dependsOn`.

    The same `Idempotency-Key` with the same body returns the same job. So does the `dedupKey` of an open job.
    """
    (created,) = await services.submission.submit(caller, [body], idempotency_key)
    if not created.is_new:
        response.status_code = 200
    response.headers["Location"] = f"/api/geo-jobs/{created.job.id}"
    return JobView.of(created.job)


@router.post("/batch", status_code=201, response_model=CreatedBatch, summary="Create many jobs")
async def create_batch(
    body: CreateBatch, caller: CallerOf, services: ServicesOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create up to 1,000 jobs in one transaction: all of them, or none."""
    created = await services.submission.submit(caller, body.jobs, idempotency_key, is_batch=True)
    return await answer(
        lambda: CreatedBatch(jobs=[JobView.of(one.job) for one in created], created=[one.is_new for one in created]),
        201,
    )


@router.get("", response_model=JobPage, summary="List jobs")
async def list_jobs(caller: CallerOf, services: ServicesOf, query: Annotated[JobFilter, Query()]) -> Response:
    """Return your jobs, newest first. Administrators get all jobs. A page has up to 1 MiB, so it may be short."""
    jobs = JobQuery(query.state, query.task_type, query.error_code)
    owner = query.owner if caller.is_admin else caller.subject

    async def fetch(before: UUID | None, limit: int) -> list[Job]:
        return await services.jobs.list_jobs(jobs, owner=owner, before=before, limit=limit)

    return await read_page("jobs", fetch, JobView.of, after=query.cursor, limit=query.limit)


@router.get("/{job_id}", response_model=JobView, summary="Get a job")
async def get_job(job_id: UUID, caller: CallerOf, services: ServicesOf) -> JobView:
    """Return one job."""
    return JobView.of(await _find_job(services, caller, job_id))


@router.post("/{job_id}/upload", response_model=UploadTarget, summary="Request an upload URL")
async def request_upload(
    job_id: UUID, body: RequestUpload, caller: CallerOf, services: ServicesOf, base_url: BaseUrl
) -> UploadTarget:
    """Return a signed URL for one PUT of exactly `fileSize` bytes. The upload queues the job."""
    limit = services.settings.max_file_size
    if body.file_size > limit:
        raise Problem("too_large", f"The file has {body.file_size} bytes, more than the limit of {limit}.")
    query = await _find_job(services, caller, job_id)
    rules = await find_rules(services.creation, [query.task_type])
    if query.task_type in rules:
        check_file_type(rules[query.task_type], body.file_type)
    file_name = safe_file_name(body.file_name)
    try:
        job = await services.jobs.set_upload(
            job_id,
            file_name=file_name,
            size_bytes=body.file_size,
            content_type=body.file_type,
            max_bytes=services.settings.max_stored_bytes_per_caller,
        )
    except QuotaExceededError as error:
        raise quota_exceeded(services.settings, error.has) from error
    if job is None:
        raise Problem("invalid_state", "The job has its file already, or has ended.")
    signed = services.storage.sign_put(
        base_url,
        upload_key(job_id, file_name),
        SizeRule(body.file_size, exact=True),
        services.settings.signed_url_seconds,
    )
    return UploadTarget(
        upload_url=signed.url,
        method=signed.method,
        headers=signed.headers,
        expires_at=signed.expires_at,
        file_name=file_name,
    )


@router.get("/{job_id}/download/output", response_model=OutputLinks, summary="Get download URLs")
async def download_output(job_id: UUID, caller: CallerOf, services: ServicesOf, base_url: BaseUrl) -> OutputLinks:
    """Return a signed URL for each output of a succeeded job."""
    job = await _find_job(services, caller, job_id)
    if job.outputs is None or job.output_lease_seq is None:
        raise Problem("invalid_state", f"Only a succeeded job has outputs. This one is {job.state}.")
    links = []
    for output in job.outputs:
        key = output_key(job.id, job.output_lease_seq, output["sha256"], output["name"])
        signed = services.storage.sign_get(base_url, key, services.settings.signed_url_seconds)
        links.append(
            OutputLink(
                name=output["name"],
                url=signed.url,
                method=signed.method,
                size_bytes=output["sizeBytes"],
                sha256=output["sha256"],
                content_type=output["contentType"],
                expires_at=signed.expires_at,
            )
        )
    return OutputLinks(outputs=links)


@router.post("/{job_id}/cancel", response_model=JobView, summary="Cancel a job")
async def cancel_job(job_id: UUID, caller: CallerOf, services: ServicesOf, body: CancelJob | None = None) -> JobView:
    """Cancel a waiting job at once, or ask the worker of a running one to stop. A repetition changes nothing."""
    await _find_job(services, caller, job_id)
    job = await services.jobs.request_cancel(job_id, None if body is None else body.reason)
    if job is None:
        job = await _find_job(services, caller, job_id)
        if job.state not in {JobState.CANCELLED, JobState.RUNNING}:
            raise Problem("invalid_state", f"The job has already ended: it is {job.state}.")
    return JobView.of(job)


@router.get("/{job_id}/explain", response_model=Explanation, summary="Explain a job's state")
async def explain_job(job_id: UUID, caller: CallerOf, services: ServicesOf) -> Explanation:
    """Explain a job's state in one sentence, with the end of each lease. Failed jobs: see `?state=failed`."""
    job = await _find_job(services, caller, job_id)
    return await build_explanation(services.jobs, services.operator_store, job, caller.owner_filter)


@router.post("/{job_id}/retry", response_model=JobView, summary="Requeue a failed job")
async def retry_job(job_id: UUID, caller: CallerOf, services: ServicesOf) -> JobView:
    """Restart a failed job with all its attempts."""
    job = await _find_job(services, caller, job_id)
    # Quotas do not apply to operators, since they restart jobs of other owners.
    max_open = 0 if caller.is_admin else services.settings.max_open_jobs_per_caller
    try:
        retried = await services.jobs.retry_failed(job_id, max_open=max_open)
    except QuotaExceededError as error:
        raise quota_exceeded(services.settings, error.has) from error
    if retried is None:
        if job.state is JobState.FAILED and job.dedup_key is not None:
            raise Problem("invalid_state", f"Another job with the dedupKey {job.dedup_key!r} is open.")
        raise Problem("invalid_state", f"Only a failed job can be retried. This one is {job.state}.")
    return JobView.of(retried)


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses={200: {"content": {"text/event-stream": {}}}},
    summary="Follow a job",
)
async def list_events(
    job_id: UUID, request: Request, caller: CallerOf, services: ServicesOf, query: Annotated[EventFilter, Query()]
) -> Response:
    """Return the events of a job: a JSON page, or a live stream for `Accept: text/event-stream`.

    The stream ends after the job's last event. `Last-Event-ID` resumes it.
    """
    await _find_job(services, caller, job_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        place = _resume_place(request.headers.get("last-event-id"), query.after)
        # A generator endpoint, with FastAPI's own keep-alive, could not return pages too.
        return EventSourceResponse(
            _stream(services, job_id, place), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def fetch(after: int, limit: int) -> list[JobEvent]:
        return await services.jobs.list_events(job_id, after=after, limit=limit)

    return await read_page("events", fetch, EventView.of, after=query.after, limit=query.limit, cursor_at_end=True)


def _resume_place(last_event_id: str | None, after: int) -> int:
    if last_event_id and last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 19:
        return max(int(last_event_id), after)
    return after


async def _stream(services: Services, job_id: UUID, after: int) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=2000)
    job = await services.jobs.find_job(job_id)
    if job is not None and job.state in FINAL_STATES:
        # A client that resumes after the end must not wait for further events.
        while events := await services.jobs.list_events(job_id, after=after, limit=_EVENTS_PER_PIECE):
            after = events[-1].id
            yield b"".join([_frame(EventView.of(event)) for event in events])
            # Sending does not yield to the event loop while the client keeps up.
            await asyncio.sleep(0)
        return
    async for item in services.hub.listen(job_id, after, _SSE_SILENCE_SECONDS):
        if item is None:
            yield KEEPALIVE_COMMENT
            continue
        yield _frame(EventView.of(item))
        if item.state in FINAL_STATES:
            # The failed job may have been requeued since.
            job = await services.jobs.find_job(job_id)
            if job is None or job.state in FINAL_STATES:
                return


def _frame(event: EventView) -> bytes:
    return format_sse_event(id=str(event.id), event=event.type, data_str=event.model_dump_json(by_alias=True))
