"""The endpoints for workers: claim, heartbeat, progress, complete, fail."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request, Response

from geo_jobs_api.errors import Problem
from geo_jobs_api.fields import Model
from geo_jobs_api.http.paging import answer
from geo_jobs_api.http.routes import Route
from geo_jobs_api.http.services import BaseUrl, Services, ServicesOf, worker_of
from geo_jobs_api.http.worker_calls import MAX_TOKEN_CHARACTERS
from geo_jobs_api.log import get_logger
from geo_jobs_api.queue.lease_records import Lease, LeasedJob, LeaseOutcome, PreviousError, Renewal
from geo_jobs_api.queue.lease_requests import ClaimRequest, Completion, LeaseRenewal, LeaseUpdate, Results
from geo_jobs_api.queue.metrics import JOBS_CLAIMED, JOBS_ENDED
from geo_jobs_api.queue.results import store_outputs
from geo_jobs_api.queue.rules import FINAL_STATES, InputKind, JobState, LeaseToken, ReportedFailure, slot_key
from geo_jobs_api.queue.worker_schemas import (
    CancelNotice,
    ClaimedInput,
    ClaimedJob,
    ClaimedJobs,
    ClaimJobs,
    Completed,
    CompleteJob,
    Failed,
    FailJob,
    Heartbeat,
    LeaseView,
    ReportProgress,
    UploadSlotView,
)
from geo_jobs_api.storage.storage import SizeRule

router = APIRouter(
    prefix="/api/internal/geo-jobs", tags=["workers"], dependencies=[Depends(worker_of)], route_class=Route
)

_log = get_logger(__name__)
# Events after which no worker has the job.
_FINAL_EVENTS = frozenset(FINAL_STATES)
# These take half a millisecond to write. A thread would add a tenth to that.
_FEW_LEASES = 10
# Two heartbeats may be lost.
_HEARTBEATS_PER_LEASE = 3


async def lease_token(lease_token: Annotated[str, Header(max_length=MAX_TOKEN_CHARACTERS)]) -> LeaseToken:
    """Return the lease token of the request. Problem `lease_lost` for a token in another format."""
    token = LeaseToken.parse(lease_token)
    if token is None:
        raise Problem("lease_lost", "The Lease-Token has an unknown format.")
    return token


LeaseTokenOf = Annotated[LeaseToken, Depends(lease_token)]


@router.post("/claim", response_model=ClaimedJobs, responses={204: {"description": "Nothing to do."}})
async def claim(body: ClaimJobs, request: Request, services: ServicesOf, base_url: BaseUrl) -> Any:
    """Lease up to `maxJobs` jobs; wait up to `waitSeconds` for the first one."""
    ask = ClaimRequest(
        claim_id=body.claim_id,
        worker_id=body.worker_id,
        worker_name=body.worker_name,
        task_types=tuple(dict.fromkeys(body.task_types)),
        max_jobs=body.max_jobs,
        lease_secret=secrets.token_urlsafe(24),
        first_lease_seconds=services.settings.first_lease_seconds,
        capabilities=body.declared,
    )
    services.worker_registry.register(body.registration())
    if not body.max_jobs:
        return Response(status_code=204)
    # A job leased to a disconnected client would wait for its lease to expire.
    disconnected = asyncio.ensure_future(_wait_for_hang_up(request))
    try:
        leases = await services.dispatcher.claim(ask, body.wait_seconds, disconnected)
    finally:
        disconnected.cancel()
    if not leases:
        return Response(status_code=204)
    again = [lease.job.id for lease in leases if lease.lease_seq > 1]
    errors = await services.leases.list_previous_errors(again) if again else {}
    for lease in leases:
        JOBS_CLAIMED.labels(lease.job.task_type).inc()
        _log.info("job_claimed", job_id=str(lease.job.id), attempt=lease.attempt, worker_name=body.worker_name)

    def make() -> ClaimedJobs:
        jobs = [_claimed_job(services, base_url, lease, errors.get(lease.job.id, [])) for lease in leases]
        return ClaimedJobs(server_time=leases[0].server_time, jobs=jobs)

    return make() if len(leases) <= _FEW_LEASES else await answer(make)


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _slots(services: Services, base_url: str, job: LeasedJob, lease_seq: int) -> list[UploadSlotView]:
    views = []
    for slot in job.upload_slots:
        name = f"{job.stem}{slot.suffix}"
        signed = services.storage.sign_put(
            base_url,
            slot_key(job.id, lease_seq, name),
            SizeRule(slot.max_bytes, exact=False),
            services.settings.signed_url_seconds,
        )
        views.append(
            UploadSlotView(
                name=name,
                url=signed.url,
                method=signed.method,
                headers=signed.headers,
                content_type=slot.content_type,
                max_bytes=slot.max_bytes,
            )
        )
    return views


def _claimed_job(services: Services, base_url: str, lease: Lease, errors: list[PreviousError]) -> ClaimedJob:
    job = lease.job
    lease_seconds = lease.type_lease_seconds or services.settings.lease_seconds
    return ClaimedJob(
        id=job.id,
        task_type=job.task_type,
        priority=job.priority,
        attempt=lease.attempt,
        max_attempts=job.max_attempts,
        lease_token=str(lease.token),
        lease_seconds=lease.seconds_left,
        lease_expires_at=lease.lease_expires_at,
        heartbeat_seconds=min(services.settings.heartbeat_seconds, lease_seconds / _HEARTBEATS_PER_LEASE),
        timeout_seconds=_timeout(services, lease.timeout_seconds),
        input_payload=job.input_payload,
        input=_claimed_input(services, base_url, job),
        uploads=_slots(services, base_url, job, lease.lease_seq),
        inline_bytes=services.settings.max_inline_bytes,
        previous_errors=[
            {"attempt": error.attempt, "at": error.ended_at.isoformat(), **error.error} for error in errors
        ],
    )


def _timeout(services: Services, seconds: int) -> int | None:
    return seconds if services.settings.enable_job_timeouts else None


def _claimed_input(services: Services, base_url: str, job: LeasedJob) -> ClaimedInput | None:
    if job.input_kind is InputKind.NONE:
        return None
    condition = job.source_condition or {}
    url = job.source_url
    if url is None:
        url = services.storage.sign_get(base_url, job.object_key, services.settings.signed_url_seconds).url
    return ClaimedInput(
        kind=job.input_kind,
        file_name=job.file_name,
        download_url=url,
        # For a URL, only a lower bound is known, if any.
        size_bytes=None if job.input_kind is InputKind.URL else job.input_size_bytes,
        content_type=job.input_content_type or "application/octet-stream",
        etag=condition.get("etag"),
        last_modified=condition.get("lastModified"),
    )


@router.patch("/{job_id}/heartbeat", response_model=LeaseView)
async def heartbeat(
    job_id: UUID, token: LeaseTokenOf, services: ServicesOf, base_url: BaseUrl, body: Heartbeat | None = None
) -> LeaseView:
    """Renew the lease. The first heartbeat makes the attempt count. The owner sees the latest `stats`."""
    update = LeaseUpdate(stats=None if body is None else body.stats)
    view = await _renew(services, base_url, job_id, token, update)
    if body is None or view.cancel is not None:
        return view
    # A lease that was shortened must not expire while this response is held.
    wait_seconds = min(body.wait_seconds, view.lease_seconds / _HEARTBEATS_PER_LEASE)
    if not await _is_cancelled_within(services, job_id, wait_seconds):
        return view
    return await _renew(services, base_url, job_id, token, update)


async def _is_cancelled_within(services: Services, job_id: UUID, seconds: float) -> bool:
    """Return whether the job is cancelled within this time. Return early when the process drains."""
    if seconds <= 0:
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), contextlib.aclosing(services.hub.listen(job_id, 0, seconds)) as events:
            async for event in events:
                if event is None or event.type in _FINAL_EVENTS:
                    return False
                if event.type == "cancel_requested":
                    return True
    return False


@router.patch("/{job_id}/progress", response_model=LeaseView)
async def progress(
    job_id: UUID, body: ReportProgress, token: LeaseTokenOf, services: ServicesOf, base_url: BaseUrl
) -> LeaseView:
    """Report progress, and renew the lease. A percent below the last one is ignored."""
    return await _renew(services, base_url, job_id, token, LeaseUpdate(body.percent, body.stage, body.message))


async def _renew(services: Services, base_url: str, job_id: UUID, token: LeaseToken, update: LeaseUpdate) -> LeaseView:
    settings = services.settings
    renewal = await services.renewals.run(LeaseRenewal(job_id, token, settings.lease_seconds, update))
    if renewal is None:
        raise _lease_problem(await services.leases.find_outcome(job_id, token), token)
    return LeaseView(
        lease_expires_at=renewal.lease_expires_at,
        lease_seconds=renewal.lease_seconds,
        timeout_seconds=_timeout(services, renewal.timeout_seconds),
        cancel=_cancel_notice(services, renewal),
        uploads=await _fresh_slots(services, base_url, job_id, token, renewal),
    )


def _cancel_notice(services: Services, renewal: Renewal) -> CancelNotice | None:
    if renewal.cancel_requested_at is None:
        return None
    return CancelNotice(reason=renewal.cancel_reason, grace_seconds=services.settings.cancel_grace_seconds)


async def _fresh_slots(
    services: Services, base_url: str, job_id: UUID, token: LeaseToken, renewal: Renewal
) -> list[UploadSlotView] | None:
    """Return new signed URLs after half of the lifetime of the old ones."""
    if renewal.held_seconds < services.settings.signed_url_seconds / 2:
        return None
    lease = await services.leases.find_lease(job_id, token)
    return None if lease is None else _slots(services, base_url, lease.job, token.lease_seq)


def _lease_problem(outcome: LeaseOutcome | None, token: LeaseToken) -> Problem:
    """Return why an ended lease cannot be used."""
    if outcome is None:
        return Problem("job_not_found", "There is no such job.")
    if outcome.job_state is JobState.CANCELLED:
        return Problem("job_cancelled", "The job was cancelled. Stop working on it.")
    if outcome.ended_by in {"complete", "fail"}:
        return Problem("already_finalized", f"This lease has already ended: the job became {outcome.state}.")
    return Problem("lease_lost", f"Lease {token.lease_seq} has ended. Stop working on the job.")


def _request_digest(call: str, body: Model) -> bytes:
    # Without unset fields, so that a report has the same digest in a later version with more fields. Without content,
    # so that inline and uploaded outputs have the same digest.
    content = {"outputs": {"__all__": {"content"}}}
    report = body.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=content)
    text = json.dumps([call, report], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


async def _replay_or_raise(services: Services, job_id: UUID, token: LeaseToken, digest: bytes) -> LeaseOutcome:
    """Return the first response to the same request, or raise the Problem of the ended lease."""
    outcome = await services.leases.find_outcome(job_id, token)
    if outcome is None or outcome.request_digest is None or outcome.request_digest != digest:
        raise _lease_problem(outcome, token)
    return outcome


@router.patch("/{job_id}/complete", response_model=Completed)
async def complete(job_id: UUID, body: CompleteJob, token: LeaseTokenOf, services: ServicesOf) -> Completed:
    """Publish the outputs. A repetition gets the same response, with `replayed`."""
    digest = _request_digest("complete", body)
    if body.outputs:
        lease = await services.leases.find_lease(job_id, token)
        if lease is not None:
            await store_outputs(services.storage, lease, body.outputs)
    outputs = [output.model_dump(by_alias=True, exclude={"content"}) for output in body.outputs]
    source = None if body.source is None else body.source.model_dump(by_alias=True)
    results = Results(outputs, body.metadata, body.timings, source)
    state = await services.completions.run(Completion(job_id, token, results, digest))
    replayed = state is None
    if state is None:
        outcome = await _replay_or_raise(services, job_id, token, digest)
        state = outcome.state or outcome.job_state
    if state is not JobState.SUCCEEDED:
        raise Problem("job_cancelled", "The job was cancelled before its results arrived. They are dropped.")
    if not replayed:
        JOBS_ENDED.labels(state.value).inc()
        _log.info("job_completed", job_id=str(job_id), lease_seq=token.lease_seq, outputs=len(body.outputs))
    return Completed(state=state, replayed=replayed)


@router.patch("/{job_id}/fail", response_model=Failed)
async def fail(job_id: UUID, body: FailJob, token: LeaseTokenOf, services: ServicesOf) -> Failed:
    """End the lease with a failure. The server decides whether to retry."""
    digest = _request_digest("fail", body)
    failure = ReportedFailure(body.error.error_class, body.error.code, body.retry_after_seconds, body.error.detail)
    decision = await services.leases.decide_failure(
        job_id, token, failure, max_file_size=services.settings.max_file_size
    )
    if decision is not None:
        error = body.error.model_dump(mode="json", by_alias=True)
        ended = await services.leases.fail_job(job_id, token, request_digest=digest, decision=decision, error=error)
        if ended is not None:
            JOBS_ENDED.labels(ended.state).inc()
            _log.info("job_failed", job_id=str(job_id), code=body.error.code, state=ended.state)
            return Failed(state=ended.state, next_attempt_at=_utc(ended.next_attempt_at), replayed=False)
    outcome = await _replay_or_raise(services, job_id, token, digest)
    return Failed(
        state=outcome.state or outcome.job_state, next_attempt_at=_utc(outcome.next_attempt_at), replayed=True
    )


@router.api_route("/claim", methods=["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT"], include_in_schema=False)
async def reject_other_methods() -> None:
    """Answer 405 to a good token and 401 to a bad one, so that a plain GET checks a worker token."""
    raise Problem(
        "method_not_allowed", "The worker token is valid. Jobs are claimed by POST.", headers={"Allow": "POST"}
    )


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)
