"""Leases and their outcomes as frozen records, each of one row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Self
from uuid import UUID

from geo_jobs_api.database.queries import Row
from geo_jobs_api.queue.records import FromRow
from geo_jobs_api.queue.rules import (
    InputKind,
    JobState,
    LeaseToken,
    UploadSlot,
    input_key,
    parse_outputs,
    stem_of,
    upload_slots,
)


@dataclass(frozen=True, slots=True)
class LeasedJob(FromRow):
    """A job as its worker gets it. `attempt` counts started attempts."""

    id: UUID
    task_type: str
    priority: int
    input_payload: dict[str, object]
    input_kind: InputKind
    input_file_name: str | None
    input_size_bytes: int | None
    input_content_type: str | None
    input_sha256: str | None
    input_object_key: str | None
    source_url: str | None
    source_condition: dict[str, object] | None
    attempt: int
    max_attempts: int
    output_rules: str

    @property
    def stem(self) -> str:
        """Return the common start of the outputs' names: the input's name without extension, or the task type."""
        return self.task_type if self.input_file_name is None else stem_of(self.input_file_name)

    @property
    def upload_slots(self) -> tuple[UploadSlot, ...]:
        """Return the allowed outputs, by the current task type."""
        return upload_slots(parse_outputs(self.output_rules), self.input_payload)

    @property
    def file_name(self) -> str:
        """Return the name of the input."""
        return self.input_file_name or "upload"

    @property
    def object_key(self) -> str:
        """Return the object key of an uploaded input."""
        return self.input_object_key or input_key(self.id, self.input_sha256 or "", self.file_name)


@dataclass(frozen=True, slots=True)
class Lease(FromRow):
    """A held lease with its job."""

    job: LeasedJob
    lease_seq: int
    lease_secret: str
    lease_expires_at: datetime
    lease_confirmed: bool
    timeout_seconds: int
    type_lease_seconds: float | None
    server_time: datetime

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Split the row into the job and its lease."""
        return super(Lease, cls).from_row({**row, "job": LeasedJob.from_row(row)})

    @property
    def token(self) -> LeaseToken:
        """Return the fencing token, which the worker sends with each call."""
        return LeaseToken(self.lease_seq, self.lease_secret)

    @property
    def attempt(self) -> int:
        """Return the number of the current attempt, from 1. An attempt counts from its first heartbeat."""
        return self.job.attempt + (0 if self.lease_confirmed else 1)

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the lease expires, by the database's clock."""
        return max(0.0, (self.lease_expires_at - self.server_time).total_seconds())


@dataclass(frozen=True, slots=True)
class WithheldJobs(FromRow):
    """Why a claim got less than it requested.

    Attributes:
        limited: task types with a limit, and whether it is a rate.
        is_unfit: whether ready jobs exist that such workers do not take.
        avoided_workers: requesting workers that have just failed a ready job.
        avoided_seconds: until the first of these jobs may go to any worker.
    """

    limited: dict[str, bool]
    is_unfit: bool
    avoided_workers: list[str]
    avoided_seconds: float | None


NOTHING_WITHHELD = WithheldJobs({}, False, [], None)


@dataclass(frozen=True, slots=True)
class Renewal(FromRow):
    """The result of a heartbeat. `held_seconds` counts from the claim."""

    lease_expires_at: datetime
    lease_seconds: float
    timeout_seconds: int
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    held_seconds: float


@dataclass(frozen=True, slots=True)
class LeaseOutcome(FromRow):
    """The end of a lease (all None: still held, or unknown), and the current state of its job."""

    job_state: JobState
    ended_by: str | None
    request_digest: bytes | None
    state: JobState | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailureOutcome(FromRow):
    """The state of a job after a failure."""

    state: JobState
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class PreviousError(FromRow):
    """The error of an earlier lease."""

    job_id: UUID
    attempt: int
    error: dict[str, object]
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class RescuedJob(FromRow):
    """A job that the rescuer took from a lost worker."""

    id: UUID
    state: JobState
    attempt: int
    task_type: str
    worker_name: str | None
    event_type: str
