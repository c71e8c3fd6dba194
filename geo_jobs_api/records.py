"""Rows of the database as frozen values: what the store hands out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, Self
from uuid import UUID

from geo_jobs_api.jobs import (
    InputKind,
    JobState,
    LeaseToken,
    UploadSlot,
    input_key,
    parse_outputs,
    stem_of,
    upload_slots,
)


class _FromRow:
    """Builds a dataclass from a row that may have more columns than it has fields."""

    __slots__ = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Take the columns that the record has fields for; a missing one is a KeyError."""
        return cls(*(row[name] for name in _field_names(cls)))  # type: ignore[arg-type]  # a class can be hashed


@cache
def _field_names(record: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record))  # type: ignore[arg-type]  # all subclasses are dataclasses


@dataclass(frozen=True, slots=True)
class Holdings(_FromRow):
    """What an owner has: jobs that have not ended, and bytes of uploaded files that are kept."""

    open_jobs: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Job(_FromRow):
    """A job, as `jobs` holds it. Times are aware; sizes are in bytes; `outputs`, `error` … are JSON."""

    id: UUID
    owner: str
    task_type: str
    state: JobState
    priority: int
    input_payload: dict[str, Any]
    request_digest: bytes | None
    dedup_key: str | None
    created_at: datetime
    run_at: datetime
    deliver_at: datetime | None
    pipeline_id: UUID | None
    pipeline_stage: str | None
    pipeline_job: str | None
    pending_parents: int
    input_kind: InputKind
    source_url: str | None
    source_validators: dict[str, Any] | None
    input_parent_id: UUID | None
    input_output: str | None
    input_file_name: str | None
    input_size_bytes: int | None
    input_content_type: str | None
    input_sha256: str | None
    uploaded_at: datetime | None
    attempt: int
    max_attempts: int
    worker_losses: int
    worker_name: str | None
    worker_stats: dict[str, Any] | None
    started_at: datetime | None
    percent: float
    stage: str | None
    message: str | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    outputs: list[dict[str, Any]] | None
    output_lease_seq: int | None
    metadata: dict[str, Any] | None
    timings: dict[str, float] | None
    error: dict[str, Any] | None
    finished_at: datetime | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """As the base, with the state as its enumeration."""
        return super(Job, cls).from_row(
            {**row, "state": JobState(row["state"]), "input_kind": InputKind(row["input_kind"])}
        )


@dataclass(frozen=True, slots=True)
class Pipeline(_FromRow):
    """A pipeline; `stages` are names with the names of their jobs: `{name, jobs}`."""

    id: UUID
    owner: str
    name: str
    stages: list[dict[str, Any]]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Schedule(_FromRow):
    """A schedule, as `schedules` holds it; `timing` and `template` are JSON."""

    id: UUID
    owner: str
    name: str
    timing: dict[str, Any]
    template: dict[str, Any]
    missed_runs: str
    catch_up: int
    overlap: str
    jitter_seconds: int
    start_at: datetime | None
    end_at: datetime | None
    skip_unchanged: bool
    paused: bool
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ScheduleFire(_FromRow):
    """What was decided for one moment of a schedule."""

    fire_time: datetime
    outcome: str
    by_hand: bool
    job_id: UUID | None
    pipeline_id: UUID | None
    error: str | None
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class LastSource(_FromRow):
    """What the latest success of a schedule told of its source, and what it had been asked for."""

    task_type: str
    input_payload: dict[str, Any]
    source_validators: dict[str, Any]
    source_condition: dict[str, Any] | None

    def condition_for(self, task_type: str, input_payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """What to ask the source with for the same work again; None when it is other work, or nothing was told."""
        if task_type != self.task_type or dict(input_payload) != self.input_payload:
            return None
        # A "not modified" need not repeat the validators.
        before = (self.source_condition or {}) if self.source_validators.get("unchanged") else {}
        told = {name: self.source_validators.get(name) or before.get(name) for name in ("etag", "lastModified")}
        return {name: value for name, value in told.items() if value} or None


@dataclass(frozen=True, slots=True)
class Webhook(_FromRow):
    """A webhook, as `webhooks` holds it, without its secret."""

    id: UUID
    owner: str
    url: str
    events: list[str]
    task_types: list[str] | None
    all_owners: bool
    paused: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery(_FromRow):
    """Something that was or is to be told to a webhook; `attempts` says what came of each try."""

    id: int
    webhook_id: UUID
    event: str
    job_id: UUID | None
    pipeline_id: UUID | None
    state: str
    attempt: int
    next_attempt_at: datetime | None
    attempts: list[dict[str, Any]]
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery(_FromRow):
    """A delivery to be tried now, with where it goes and the sealed secret that it is signed with."""

    id: int
    webhook_id: UUID
    destination: str
    event: str
    job_id: UUID | None
    body: dict[str, Any]
    attempt: int
    url: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class Parent(_FromRow):
    """A job that another waits for (`settled`: or waited for), and what its failure means."""

    id: UUID
    task_type: str
    state: str
    on_parent_failure: str
    settled: bool


@dataclass(frozen=True, slots=True)
class LeasedJob(_FromRow):
    """What a worker has to know of a job. `attempt` counts the attempts that were begun."""

    id: UUID
    task_type: str
    priority: int
    input_payload: dict[str, Any]
    input_kind: InputKind
    input_file_name: str | None
    input_size_bytes: int | None
    input_content_type: str | None
    input_sha256: str | None
    input_object_key: str | None
    source_url: str | None
    source_condition: dict[str, Any] | None
    attempt: int
    max_attempts: int
    output_rules: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """As the base, with the kind of input as its enumeration."""
        return super(LeasedJob, cls).from_row({**row, "input_kind": InputKind(row["input_kind"])})

    @property
    def stem(self) -> str:
        """What the outputs' names begin with: the input's name without extension, or else the task type."""
        return self.task_type if self.input_file_name is None else stem_of(self.input_file_name)

    @property
    def upload_slots(self) -> tuple[UploadSlot, ...]:
        """Where the worker may put outputs, by what the task type says now."""
        return upload_slots(parse_outputs(self.output_rules), self.input_payload)

    @property
    def file_name(self) -> str:
        """What the input is called."""
        return self.input_file_name or "upload"

    @property
    def object_key(self) -> str:
        """Where the input is kept, unless it comes from elsewhere."""
        return self.input_object_key or input_key(self.id, self.input_sha256 or "", self.file_name)


@dataclass(frozen=True, slots=True)
class Lease(_FromRow):
    """What a claim, or a look at a lease that is held, gives."""

    job: LeasedJob
    lease_seq: int
    lease_key: str
    lease_expires_at: datetime
    lease_confirmed: bool
    timeout_seconds: int
    type_lease_seconds: float | None
    server_time: datetime

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Split the row into the job and its lease."""
        return super(Lease, cls).from_row({**row, "job": LeasedJob.from_row(row)})

    @property
    def token(self) -> LeaseToken:
        """What the worker has to send back."""
        return LeaseToken(self.lease_seq, self.lease_key)

    @property
    def attempt(self) -> int:
        """Number of the attempt under way, 1-based: it counts from the first sign of life on."""
        return self.job.attempt + (0 if self.lease_confirmed else 1)

    @property
    def seconds_left(self) -> float:
        """Seconds until the lease runs out, by the database's clock."""
        return max(0.0, (self.lease_expires_at - self.server_time).total_seconds())


@dataclass(frozen=True, slots=True)
class Renewal(_FromRow):
    """The answer to a sign of life. `held_seconds` counts from the claim."""

    lease_expires_at: datetime
    lease_seconds: float
    timeout_seconds: int
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    held_seconds: float


@dataclass(frozen=True, slots=True)
class LeaseOutcome(_FromRow):
    """How a lease ended (all None: it did not, or was never known), and where its job stands."""

    job_state: str
    job_lease_seq: int
    ended_by: str | None
    request_digest: bytes | None
    state: str | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailureOutcome(_FromRow):
    """Where a failure left the job."""

    state: str
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class PreviousError(_FromRow):
    """What went wrong in an earlier lease."""

    job_id: UUID
    attempt: int
    error: dict[str, Any]
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class EndedLease(_FromRow):
    """How a lease ended: by the worker's `complete` or `fail`, or by a `rescue`, and where it left the job."""

    attempt: int
    worker_name: str | None
    ended_by: str
    state: str
    error: dict[str, Any] | None
    next_attempt_at: datetime | None
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class JobEvent(_FromRow):
    """One move of a job. `id` rises within a job."""

    id: int
    job_id: UUID
    type: str
    state: str
    created_at: datetime
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RescuedJob(_FromRow):
    """A job that the rescuer took from a lost worker."""

    id: UUID
    state: str
    attempt: int
    task_type: str
    worker_name: str | None
    event_type: str


@dataclass(frozen=True, slots=True)
class Surroundings(_FromRow):
    """What there is for those who wait.

    Attributes:
        ready: how many jobs of each task type could be claimed now.
        due_seconds: until the next waiting job may be claimed; None when none waits for its time.
        held_claims: those of the claims asked for that hold leases already.
    """

    ready: dict[str, int]
    due_seconds: float | None
    held_claims: list[UUID]


@dataclass(frozen=True, slots=True)
class VacuumBlocker(_FromRow):
    """A session (prepared transaction, replication slot) that keeps dead rows alive; seconds since it began."""

    who: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class WorkerToken(_FromRow):
    """A worker's token, without its secret."""

    id: UUID
    name: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class WaitingReasons(_FromRow):
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
class KnownWorker(_FromRow):
    """A worker process, when it was heard of, and the jobs that it holds."""

    id: str
    name: str
    version: str | None
    task_types: list[str]
    first_seen_at: datetime
    last_seen_at: datetime
    jobs: list[UUID]


@dataclass(frozen=True, slots=True)
class Figures(_FromRow):
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
class OpenJobs(_FromRow):
    """How many jobs of a type stand in a state."""

    task_type: str
    state: str
    jobs: int
