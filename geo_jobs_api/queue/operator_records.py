"""Frozen records for operators: reasons for waiting, workers, counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from geo_jobs_api.queue.records import FromRow
from geo_jobs_api.queue.rules import JobState

# Jobs before a waiting one are counted up to this.
MAX_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class WaitingReasons(FromRow):
    """Reasons for waiting: the type's limits, the job's requirements, jobs before it."""

    paused: bool
    max_concurrent_runs: int | None
    rate_count: int | None
    rate_period_seconds: float | None
    running: int
    rate_full_until: datetime | None
    memory_mb: int | None
    source_host: str | None
    avoided_until: datetime | None
    avoided_worker: str | None
    jobs_before: int


@dataclass(frozen=True, slots=True)
class PossibleWorker(FromRow):
    """A worker that may take a job, with capabilities, trouble and held jobs (`{id, owner, taskType, since}`)."""

    name: str
    does_type: bool
    task_types: list[str]
    capabilities: dict[str, object] | None
    trouble: list[dict[str, object]] | None
    jobs: list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class WorkerRegistration:
    """A worker that has claimed. Capabilities and trouble are JSON (None: undeclared)."""

    id: str
    name: str
    version: str | None
    task_types: frozenset[str]
    capabilities: str | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class OpenJobs(FromRow):
    """The number of jobs of a type in a state."""

    task_type: str
    state: JobState
    jobs: int
