"""What operators are told: why jobs wait, who works, figures; frozen, each made of one row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from geo_jobs_api.records import FromRow


@dataclass(frozen=True, slots=True)
class WaitingReasons(FromRow):
    """What may keep a waiting job waiting: its type's limits, those who do such jobs, jobs that come before it."""

    paused: bool
    max_concurrent_runs: int | None
    rate_count: int | None
    rate_period_seconds: float | None
    running: int
    rate_full_until: datetime | None
    offering_workers: int
    jobs_before: int


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker process that has asked for work."""

    id: str
    name: str
    version: str | None
    task_types: frozenset[str]


@dataclass(frozen=True, slots=True)
class KnownWorker(FromRow):
    """A worker process, when it was heard of, and the jobs that it holds."""

    id: str
    name: str
    version: str | None
    task_types: list[str]
    first_seen_at: datetime
    last_seen_at: datetime
    jobs: list[UUID]


@dataclass(frozen=True, slots=True)
class Figures(FromRow):
    """A task type in figures; see `FiguresView`."""

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


@dataclass(frozen=True, slots=True)
class OpenJobs(FromRow):
    """How many jobs of a type stand in a state."""

    task_type: str
    state: str
    jobs: int
