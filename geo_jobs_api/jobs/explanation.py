"""Explanations: the state of a job in one sentence for its owner, and all reasons for waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from geo_jobs_api.jobs.worker_reasons import list_worker_reasons
from geo_jobs_api.queue.capabilities import Requirements
from geo_jobs_api.queue.job_store import JobStore
from geo_jobs_api.queue.operator_records import MAX_COUNTED, PossibleWorker, WaitingReasons
from geo_jobs_api.queue.operator_schemas import Explanation, Reason
from geo_jobs_api.queue.operator_store import OperatorStore
from geo_jobs_api.queue.records import Job, Parent
from geo_jobs_api.queue.rules import ErrorClass, JobState

_MAX_LEASES = 50


async def build_explanation(jobs: JobStore, operator_store: OperatorStore, job: Job, viewer: str | None) -> Explanation:
    """Explain a job to its owner `viewer`, or to an operator (None)."""
    now = datetime.now(UTC)
    leases = await jobs.list_ended_leases(job.id, limit=_MAX_LEASES)
    found = await operator_store.find_waiting_reasons(job.id) if job.state is JobState.QUEUED else None
    workers = await operator_store.list_possible_workers(job.task_type) if found is not None else []
    parents = await jobs.list_parents(job.id) if job.pending_parents else []
    return Explanation(
        state=job.state,
        why=explain(job, now),
        reasons=list_parents(parents) if found is None else list_reasons(job, found, workers, now, viewer),
        place=None if found is None or found.jobs_before == MAX_COUNTED else found.jobs_before + 1,
        leases=leases,
    )


def explain(job: Job, now: datetime) -> str:
    """Return why the job waits, or how it ended with the remedy. `now` separates retries from ready jobs."""
    return _SENTENCES[job.state](job, now)


def list_parents(parents: Sequence[Parent]) -> list[Reason]:
    """Return the open parents of a job, and the effect of their end."""
    reasons = []
    for parent in parents:
        if not parent.settled:
            is_stuck = parent.state in {JobState.FAILED, JobState.CANCELLED}
            cure = " It must succeed: retry it, or cancel this job." if is_stuck else ""
            text = f"It waits for job {parent.id} ({parent.task_type}), which is {parent.state}.{cure}"
            reasons.append(Reason(code="parent", text=text))
    return reasons


def list_reasons(
    job: Job, found: WaitingReasons, workers: Sequence[PossibleWorker], now: datetime, viewer: str | None
) -> list[Reason]:
    """Return everything that keeps a waiting job from being claimed now. The last reason is never the job itself."""
    if job.state is not JobState.QUEUED:
        return []
    need = Requirements(job.input_size_bytes, found.source_host, found.memory_mb)
    reasons = [*_reasons(job, found, now), *list_worker_reasons(job.task_type, need, workers, viewer)]
    if found.jobs_before:
        noun, verb = ("job", "comes") if found.jobs_before == 1 else ("jobs", "come")
        number = f"{found.jobs_before} or more" if found.jobs_before == MAX_COUNTED else found.jobs_before
        text = f"{number} {noun} of {job.task_type} {verb} before it."
        reasons.append(Reason(code="queue", text=text))
    return reasons


def _reasons(job: Job, found: WaitingReasons, now: datetime) -> Iterator[Reason]:
    kind = job.task_type
    if found.paused:
        yield Reason(code="paused", text=f"{kind} is paused. `task-types resume {kind}` resumes it.")
    if job.run_at > now:
        code = "backoff" if job.attempt else "scheduled"
        yield Reason(code=code, text=f"It is not due before {_time(job.run_at)}.")
    if found.max_concurrent_runs is not None and found.running >= found.max_concurrent_runs:
        yield Reason(
            code="limit",
            text=f"{found.running} of at most {found.max_concurrent_runs} concurrent jobs of {kind} are running.",
        )
    if found.rate_count is not None and found.rate_full_until is not None and found.rate_full_until > now:
        yield Reason(
            code="rate_limit",
            text=f"{kind} may start {found.rate_count} jobs in {found.rate_period_seconds:g} s,"
            f" so none before {_time(found.rate_full_until)}.",
        )

    if found.avoided_until is not None:
        worker = f"Worker {found.avoided_worker}" if found.avoided_worker else "A worker"
        yield Reason(
            code="avoided",
            text=f"{worker} has just failed it, so other workers come first until {_time(found.avoided_until)}.",
        )


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _queued(job: Job, now: datetime) -> str:
    if job.run_at > now:
        again = " again" if job.attempt else ""
        return f"It is tried{again} at {_time(job.run_at)}, with {_attempts(job)} spent."
    return f"It has waited for a worker since {_time(job.run_at)}."


def _running(job: Job, _: datetime) -> str:
    stopping = " It was asked to stop." if job.cancel_requested_at is not None else ""
    if job.started_at is None:
        return f"{job.worker_name} has claimed it and has not started.{stopping}"
    return f"{job.worker_name} works on it: {_attempts(job)}, {job.percent:.0f} %.{stopping}"


def _failed(job: Job, _: datetime) -> str:
    error = job.error or {}
    if error.get("code") == "worker_lost":
        why = f"{job.lost_workers} workers were lost while they worked on it, so no other worker gets it."
    elif error.get("class") == ErrorClass.INVALID_INPUT:
        why = "The file cannot be used, and another attempt would not change that."
    else:
        why = f"It was tried {job.attempt} times, and no attempts are left."
    last_error = f" Last error: {error.get('code')}: {error.get('message', '')}".rstrip()
    return f"{why}{last_error} POST …/retry requeues it with all its attempts."


def _cancelled(job: Job, _: datetime) -> str:
    return f"It was cancelled. {job.cancel_reason or ''}".rstrip()


def _attempts(job: Job) -> str:
    return f"{job.attempt} of {job.max_attempts} attempts"


_SENTENCES: dict[JobState, Callable[[Job, datetime], str]] = {
    JobState.AWAITING_UPLOAD: lambda _job, _now: "It waits for its upload.",
    JobState.BLOCKED: lambda _job, _now: "It waits for other jobs.",
    JobState.QUEUED: _queued,
    JobState.RUNNING: _running,
    JobState.SUCCEEDED: lambda job, _now: f"{job.worker_name} finished it, with {_attempts(job)} spent.",
    JobState.FAILED: _failed,
    JobState.CANCELLED: _cancelled,
}
