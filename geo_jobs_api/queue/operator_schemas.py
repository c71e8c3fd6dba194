"""What operators send and see: the same in calls and commands."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import Field, model_validator

from geo_jobs_api.fields import Integer, Model, Real, StrictModel, Text, Timestamp
from geo_jobs_api.queue.rules import ErrorClass, JobState


class EndedLease(Model):
    """How one lease of a job ended."""

    attempt: int
    worker_name: str | None
    ended_by: Literal["complete", "fail", "rescue"]
    state: JobState
    error: dict[str, Any] | None
    next_attempt_at: datetime | None
    ended_at: datetime


class Reason(Model):
    """One thing that a job waits for: a stable code and a sentence."""

    code: str
    text: str


class Explanation(Model):
    """Why a job stands where it stands; its ended leases, the newest first.

    `reasons` are for a job that waits, with `place` its place among the waiting jobs of its type, from 1.
    """

    state: JobState
    why: str
    reasons: list[Reason] = Field(default_factory=list)
    place: int | None = None
    leases: list[EndedLease]


class ChangePriority(StrictModel):
    """What a job's priority is to be."""

    priority: Integer = Field(ge=-100, le=100)


class RedriveFilter(StrictModel):
    """Which failed jobs go back to the queue; what is not told does not matter. The oldest failures go first."""

    task_type: Annotated[Text, Field(max_length=63)] | None = None
    error_class: ErrorClass | None = None
    error_code: Annotated[Text, Field(max_length=100)] | None = None
    ended_after: Timestamp | None = None
    ended_before: Timestamp | None = None
    limit: Integer = Field(default=1000, ge=1, le=10_000)


class Redriven(Model):
    """How many jobs went back to the queue, by task type."""

    jobs: dict[str, int]


OpenState = Literal["awaiting_upload", "blocked", "queued", "running"]


class CancelFilter(StrictModel):
    """Which open jobs to cancel, the oldest first. At least one field besides `reason` and `limit` is needed."""

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
            raise ValueError("name a state, taskType, owner, createdAfter or createdBefore; nothing was cancelled")
        return self

    @property
    def states(self) -> tuple[str, ...]:
        """The states that jobs are looked for in."""
        return get_args(OpenState) if self.state is None else (self.state,)


class CancelledJobs(Model):
    """How many jobs were cancelled, and how many workers were asked to stop, by task type.

    With `more` the limit was reached: repeat the call for the rest. Jobs that are cancelled because they waited for one
    of these are not counted.
    """

    cancelled: dict[str, int]
    stopping: dict[str, int]
    more: bool


class Cleanup(StrictModel):
    """Remove all jobs that ended so many days ago, whatever the settings keep."""

    days: Real = Field(ge=0, le=36_500)


class Worker(Model):
    """A worker process. `lastSeenAt` is its last claim or sign of life, to a minute; `jobs` are those that it holds.

    `capabilities` are what it takes (null: it declared nothing). While there is `trouble`, it claims nothing.
    """

    id: str
    name: str
    version: str | None
    task_types: list[str]
    capabilities: dict[str, Any] | None
    trouble: list[dict[str, Any]] | None
    first_seen_at: datetime
    last_seen_at: datetime
    jobs: list[UUID]


class TaskTypeStats(Model):
    """A task type in figures: what stands in the queue now, and what became of jobs in the time looked at.

    Seconds are from the start to the end of jobs that succeeded (null: none did). `retried` and `timedOut` count
    attempts, the others jobs.
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
    """How far back to look."""

    hours: float = Field(default=24, gt=0, le=24 * 366)
