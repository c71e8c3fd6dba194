"""Requests and responses for operators, in the API and on the command line."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import Field, model_validator

from geo_jobs_api.fields import Integer, Model, Real, StrictModel, Text, Timestamp
from geo_jobs_api.queue.rules import ErrorClass, JobState


class EndedLease(Model):
    """One ended lease of a job."""

    attempt: int
    worker_name: str | None
    ended_by: Literal["complete", "fail", "rescue"]
    state: JobState
    error: dict[str, object] | None
    next_attempt_at: datetime | None
    ended_at: datetime


class Reason(Model):
    """One reason for waiting: a stable code and a sentence."""

    code: str
    text: str


class Explanation(Model):
    """Why a job is in its state, with its ended leases, newest first.

    `reasons` are for a waiting job. `place` is its place among the waiting jobs of its type, from 1.
    """

    state: JobState
    why: str
    reasons: list[Reason] = Field(default_factory=list)
    place: int | None = None
    leases: list[EndedLease]


class ChangePriority(StrictModel):
    """The new priority of a job."""

    priority: Integer = Field(ge=-100, le=100)


class RedriveFilter(StrictModel):
    """Filter of the failed jobs to requeue, oldest failures first. A missing field matches all."""

    task_type: Annotated[Text, Field(max_length=63)] | None = None
    error_class: ErrorClass | None = None
    error_code: Annotated[Text, Field(max_length=100)] | None = None
    ended_after: Timestamp | None = None
    ended_before: Timestamp | None = None
    limit: Integer = Field(default=1000, ge=1, le=10_000)


class Redriven(Model):
    """Requeued jobs by task type."""

    jobs: dict[str, int]


OpenState = Literal["awaiting_upload", "blocked", "queued", "running"]


class CancelFilter(StrictModel):
    """Filter of the open jobs to cancel, oldest first. Requires a field other than `reason` and `limit`."""

    state: OpenState | None = None
    task_type: Annotated[Text, Field(max_length=63)] | None = None
    owner: Annotated[Text, Field(max_length=200)] | None = None
    created_after: Timestamp | None = None
    created_before: Timestamp | None = None
    reason: Annotated[Text, Field(max_length=500)] | None = None
    limit: Integer = Field(default=10_000, ge=1, le=10_000)

    @model_validator(mode="after")
    def _names_some(self) -> CancelFilter:
        if all(getattr(self, name) is None for name in type(self).model_fields.keys() - {"reason", "limit"}):
            raise ValueError("must have a state, taskType, owner, createdAfter or createdBefore. Nothing was cancelled")
        return self

    @property
    def states(self) -> tuple[str, ...]:
        """Return the states to search."""
        return get_args(OpenState) if self.state is None else (self.state,)


class CancelledJobs(Model):
    """Cancelled jobs and workers asked to stop, by task type.

    `more`: the limit was reached, so repeat the call. Dependents that are cancelled with a job are not counted.
    """

    cancelled: dict[str, int]
    stopping: dict[str, int]
    more: bool


class Cleanup(StrictModel):
    """Delete all jobs that ended this many days ago, regardless of the settings."""

    days: Real = Field(ge=0, le=36_500)


class Worker(Model):
    """A worker process. `lastSeenAt`: its last claim or heartbeat, to a minute. `jobs`: the jobs that it holds.

    `capabilities` is null if undeclared. A worker with `trouble` claims nothing.
    """

    id: str
    name: str
    version: str | None
    task_types: list[str]
    capabilities: dict[str, object] | None
    trouble: list[dict[str, object]] | None
    first_seen_at: datetime
    last_seen_at: datetime
    jobs: list[UUID]


class TaskTypeStats(Model):
    """Statistics of a task type: the current queue, and the outcomes in the period.

    Seconds are from start to end of succeeded jobs (null: none). `retried` and `timedOut` count attempts, the others
    jobs.
    """

    task_type: str
    paused: bool
    waiting: int
    running: int
    blocked: int
    awaiting_upload: int
    succeeded: int
    failed: int
    cancelled: int
    timed_out: int
    retried: int
    seconds_p50: float | None
    seconds_p95: float | None
    jobs_per_hour: float
    oldest_waiting_seconds: float | None


class StatsPeriod(StrictModel):
    """The period of the statistics."""

    hours: float = Field(default=24, gt=0, le=24 * 366)
