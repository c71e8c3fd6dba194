"""Rows of the database as frozen records."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Self, get_args, get_type_hints
from uuid import UUID

from geo_jobs_api.database.queries import Row
from geo_jobs_api.fields import Model
from geo_jobs_api.queue.rules import (
    InputKind,
    JobState,
)


class FromRow:
    """Builds a dataclass from a row, which may have further columns."""

    __slots__ = ()

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Return the record of a row, with enums where declared. A missing column is a KeyError."""
        return cls(
            *(
                row[name] if enum is None or row[name] is None else enum(row[name])
                for name, enum in _columns(cls)  # type: ignore[arg-type]  # a class can be hashed
            )
        )


@cache
def _columns(record: Hashable) -> tuple[tuple[str, type[StrEnum] | None], ...]:
    hints = get_type_hints(record)
    return tuple((field.name, _enum_of(hints[field.name])) for field in fields(record))  # type: ignore[arg-type]  # all subclasses are dataclasses


def _enum_of(hint: Any) -> type[StrEnum] | None:
    return next((one for one in get_args(hint) or (hint,) if isinstance(one, type) and issubclass(one, StrEnum)), None)


@dataclass(frozen=True, slots=True)
class Usage(FromRow):
    """An owner's usage: open jobs, and bytes of stored uploads."""

    open_jobs: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Job(FromRow):
    """A row of `jobs`. Times are aware, sizes in bytes. `outputs`, `error` … are JSON."""

    id: UUID
    owner: str
    task_type: str
    state: JobState
    priority: int
    input_payload: dict[str, object]
    request_digest: bytes | None
    dedup_key: str | None
    created_at: datetime
    run_at: datetime
    notify_at: datetime | None
    pipeline_id: UUID | None
    pipeline_stage: str | None
    pipeline_job: str | None
    pending_parents: int
    input_kind: InputKind
    source_url: str | None
    source_validators: dict[str, object] | None
    input_file_name: str | None
    input_size_bytes: int | None
    input_content_type: str | None
    input_sha256: str | None
    uploaded_at: datetime | None
    attempt: int
    max_attempts: int
    lost_workers: int
    worker_name: str | None
    worker_stats: dict[str, object] | None
    started_at: datetime | None
    percent: float
    stage: str | None
    message: str | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    outputs: list[dict[str, Any]] | None
    output_lease_seq: int | None
    metadata: dict[str, object] | None
    timings: dict[str, float] | None
    error: dict[str, object] | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Pipeline(FromRow):
    """A pipeline. `stages`: stages with the names of their jobs, `{name, jobs}`."""

    id: UUID
    owner: str
    name: str
    stages: list[dict[str, Any]]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Parent(FromRow):
    """A job that another one waits for (`settled`: waited for), and the effect of its failure."""

    id: UUID
    task_type: str
    state: JobState
    on_parent_failure: str
    settled: bool


@dataclass(frozen=True, slots=True)
class JobEvent(FromRow):
    """One event of a job. Ids increase within a job."""

    id: int
    job_id: UUID
    type: str
    state: JobState
    created_at: datetime
    data: dict[str, object]


@dataclass(frozen=True, slots=True)
class QueueSnapshot(FromRow):
    """The state of the queue for waiting claims.

    Attributes:
        ready: claimable jobs per task type.
        due_seconds: until the next waiting job may be claimed. None: no job waits for its time.
        held_claims: requested claims that hold leases already.
    """

    ready: dict[str, int]
    due_seconds: float | None
    held_claims: list[UUID]


@dataclass(frozen=True, slots=True)
class VacuumBlocker(FromRow):
    """A session, prepared transaction or replication slot that keeps dead rows, and the seconds since its start."""

    who: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Caller:
    """A person, or a program on behalf of one."""

    subject: str
    is_admin: bool

    @property
    def owner_filter(self) -> str | None:
        """Return the owner of the visible jobs. None: all owners."""
        return None if self.is_admin else self.subject


class WorkerToken(Model):
    """A worker's token, without the secret."""

    id: UUID
    name: str
    created_at: datetime
    revoked_at: datetime | None
