"""Requests of workers, and their responses."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Base64Bytes, ConfigDict, Field

from geo_jobs_api.fields import Integer, Metadata, Model, Name, Payload, Real, ReportedDetail, ReportedText, Text
from geo_jobs_api.queue.capabilities import UNDECLARED, Capabilities
from geo_jobs_api.queue.operator_records import WorkerRegistration
from geo_jobs_api.queue.rules import ErrorClass, InputKind, JobState


class DeclaredCapabilities(Model):
    """Capabilities of a worker. Missing field: no limit."""

    max_file_size: Integer | None = Field(default=None, ge=1, lt=2**63)
    source_hosts: list[Annotated[Text, Field(min_length=1, max_length=255)]] | None = Field(
        default=None, max_length=1000
    )
    memory_mb: Integer | None = Field(default=None, ge=1, lt=2**31)
    concurrent_jobs: Integer | None = Field(default=None, ge=1, le=10_000)


class Trouble(Model):
    """Trouble of the worker's host, during which it claims nothing: a stable code, and a sentence with the remedy."""

    code: Annotated[ReportedText, Field(min_length=1, max_length=40)]
    message: Annotated[ReportedText, Field(max_length=500)] = ""


class ClaimJobs(Model):
    """A claim. `claimId` is unique per claim, `workerId` per process.

    With `maxJobs` 0 it requests no job and only reports its `trouble`.
    """

    claim_id: UUID
    worker_id: Name
    worker_name: Name
    worker_version: Annotated[Text, Field(max_length=100)] | None = None
    task_types: list[Name] = Field(min_length=1, max_length=100)
    max_jobs: Integer = Field(default=1, ge=0, le=100)
    wait_seconds: Real = Field(default=0, ge=0, le=50)
    capabilities: DeclaredCapabilities | None = None
    trouble: list[Trouble] = Field(default_factory=list, max_length=20)

    @property
    def declared(self) -> Capabilities:
        """Return the declared capabilities."""
        declared = self.capabilities
        if declared is None:
            return UNDECLARED
        hosts = (
            None if declared.source_hosts is None else tuple(sorted({host.lower() for host in declared.source_hosts}))
        )
        return Capabilities(declared.max_file_size, hosts, declared.memory_mb, declared.concurrent_jobs)

    def registration(self) -> WorkerRegistration:
        """Return the worker's entry in the registry."""
        trouble = [one.model_dump(by_alias=True) for one in self.trouble]
        return WorkerRegistration(
            self.worker_id,
            self.worker_name,
            self.worker_version,
            frozenset(self.task_types),
            json.dumps(self.declared.as_json()) if self.capabilities else None,
            json.dumps(trouble) if trouble else None,
        )


class ClaimedInput(Model):
    """The input file. For kind `url`, the worker downloads it if it has changed."""

    kind: InputKind
    file_name: str
    download_url: str
    size_bytes: int | None
    content_type: str
    etag: str | None = None
    last_modified: str | None = None


class UploadSlotView(Model):
    """An output that the worker may upload."""

    name: str
    url: str
    method: str
    headers: dict[str, str]
    content_type: str
    max_bytes: int


class ClaimedJob(Model):
    """A leased job. Results of `inlineBytes` in all may be part of its `complete`."""

    id: UUID
    task_type: str
    priority: int
    attempt: int
    max_attempts: int
    lease_token: str
    lease_seconds: float
    lease_expires_at: datetime
    heartbeat_seconds: float
    timeout_seconds: int | None
    input_payload: dict[str, object]
    input: ClaimedInput | None
    uploads: list[UploadSlotView]
    inline_bytes: int
    previous_errors: list[dict[str, object]]


class ClaimedJobs(Model):
    """The result of a claim."""

    server_time: datetime
    jobs: list[ClaimedJob]


class Heartbeat(Model):
    """A heartbeat. `stats` are for people. The response waits up to `waitSeconds` for a cancellation."""

    stats: Payload | None = None
    wait_seconds: Real = Field(default=0, ge=0, le=50)


class ReportProgress(Model):
    """The progress of a job."""

    percent: Real = Field(ge=0, le=100, allow_inf_nan=False)
    stage: Annotated[ReportedText, Field(max_length=40)] | None = None
    message: Annotated[ReportedText, Field(max_length=500)] | None = None


class CancelNotice(Model):
    """A request to stop within `graceSeconds`."""

    reason: str | None
    grace_seconds: float


class LeaseView(Model):
    """The response to a heartbeat."""

    lease_expires_at: datetime
    lease_seconds: float
    timeout_seconds: int | None
    cancel: CancelNotice | None
    uploads: list[UploadSlotView] | None = None


class ReportedOutput(Model):
    """An output that the worker has uploaded or, with `content`, an inline output."""

    name: Annotated[Text, Field(min_length=1, max_length=255)]
    size_bytes: Integer = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    content_type: Annotated[Text, Field(max_length=200)]
    content: Base64Bytes | None = Field(default=None, repr=False)


class ReportedSource(Model):
    """The source of an input of kind `url`. `unchanged`: not downloaded again, and without outputs."""

    etag: Annotated[ReportedText, Field(max_length=1024)] | None = None
    last_modified: Annotated[ReportedText, Field(max_length=100)] | None = None
    size_bytes: int | None = Field(default=None, ge=0, lt=2**63)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    unchanged: bool = False


class CompleteJob(Model):
    """A finished job."""

    outputs: list[ReportedOutput] = Field(default_factory=list, max_length=100)
    metadata: Metadata = Field(default_factory=dict)
    timings: dict[Annotated[Text, Field(max_length=40)], Annotated[Real, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, max_length=100
    )
    source: ReportedSource | None = None


class ReportedError(Model):
    """The error of a job. The server decides by `class` whether to retry."""

    model_config = ConfigDict(**(Model.model_config | {"alias_generator": None}))

    error_class: ErrorClass = Field(alias="class")
    code: Annotated[ReportedText, Field(min_length=1, max_length=100)]
    message: Annotated[ReportedText, Field(max_length=2000)] = ""
    detail: ReportedDetail = None


class FailJob(Model):
    """A failed attempt."""

    error: ReportedError
    retry_after_seconds: Real | None = Field(default=None, ge=0, allow_inf_nan=False)


class Completed(Model):
    """The response to a complete."""

    state: JobState
    replayed: bool


class Failed(Model):
    """The response to a fail."""

    state: JobState
    next_attempt_at: datetime | None
    replayed: bool
