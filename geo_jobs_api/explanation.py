"""Why a job stands where it stands, in a sentence for its owner."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from geo_jobs_api.jobs import ErrorClass, JobState
from geo_jobs_api.records import Job


def explain(job: Job, now: datetime) -> str:
    """What the job waits for, or how it ended and what can be done; `now` tells a retry from a job that may start."""
    return _SENTENCES[job.state](job, now)


def _queued(job: Job, now: datetime) -> str:
    if job.run_at > now:
        again = " again" if job.attempt else ""
        return f"It is tried{again} at {job.run_at:%Y-%m-%d %H:%M:%S} UTC; {_attempts(job)} are spent."
    return f"It has waited for a worker since {job.run_at:%Y-%m-%d %H:%M:%S} UTC."


def _running(job: Job, _: datetime) -> str:
    stopping = " It was asked to stop." if job.cancel_requested_at is not None else ""
    if job.started_at is None:
        return f"{job.worker_name} has claimed it and has not begun.{stopping}"
    return f"{job.worker_name} works on it: {_attempts(job)}, {job.percent:.0f} %.{stopping}"


def _failed(job: Job, _: datetime) -> str:
    error = job.error or {}
    if error.get("code") == "worker_lost":
        why = f"{job.worker_losses} workers were lost while they worked on it, so it is kept from the others."
    elif error.get("class") == ErrorClass.INVALID_INPUT:
        why = "The file cannot be used, and another attempt would not change that."
    else:
        why = f"It was tried {job.attempt} times, and no attempts are left."
    said = f" Last error: {error.get('code')}: {error.get('message', '')}".rstrip()
    return f"{why}{said} POST …/retry sends it back to the queue with all its attempts."


def _cancelled(job: Job, _: datetime) -> str:
    return f"It was cancelled. {job.cancel_reason or ''}".rstrip()


def _attempts(job: Job) -> str:
    return f"{job.attempt} of {job.max_attempts} attempts"


_SENTENCES: dict[JobState, Callable[[Job, datetime], str]] = {
    JobState.AWAITING_UPLOAD: lambda _job, _now: "It waits for its file.",
    JobState.BLOCKED: lambda _job, _now: "It waits for other jobs.",
    JobState.QUEUED: _queued,
    JobState.RUNNING: _running,
    JobState.SUCCEEDED: lambda job, _now: f"{job.worker_name} finished it; {_attempts(job)} were spent.",
    JobState.FAILED: _failed,
    JobState.CANCELLED: _cancelled,
}
