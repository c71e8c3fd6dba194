"""Requests and responses for people: camelCase in JSON, parsed once into frozen models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from geo_jobs_api.fields import Integer, Model, StrictModel, Text
from geo_jobs_api.queue.records import Job, JobEvent
from geo_jobs_api.queue.rules import InputKind, JobState


class RequestUpload(StrictModel):
    """The file to be uploaded."""

    file_name: Annotated[Text, Field(min_length=1, max_length=1024)]
    file_size: Integer = Field(gt=0)
    file_type: Annotated[Text, Field(max_length=200)] = "image/tiff"


class UploadTarget(Model):
    """The target of an upload: one PUT with exactly the announced number of bytes."""

    upload_url: str
    method: str
    headers: dict[str, str]
    expires_at: datetime
    file_name: str


class CancelJob(StrictModel):
    """The reason for a cancellation."""

    reason: Annotated[Text, Field(max_length=500)] | None = None


class InputView(Model):
    """The known facts of an input. `kind`: `upload`, `url` or `output` (of another job)."""

    kind: InputKind
    file_name: str
    size_bytes: int | None
    content_type: str | None
    sha256: str | None


class JobView(Model):
    """A job as its owner sees it."""

    id: UUID
    task_type: str
    state: JobState
    priority: int
    input_payload: dict[str, object]
    input: InputView | None
    attempt: int
    max_attempts: int
    percent: float
    stage: str | None
    message: str | None
    outputs: list[dict[str, object]] | None
    metadata: dict[str, object] | None
    timings: dict[str, object] | None
    error: dict[str, object] | None
    worker_name: str | None
    worker_stats: dict[str, object] | None
    source_validators: dict[str, object] | None
    pending_parents: int
    dedup_key: str | None
    pipeline_id: UUID | None
    pipeline_stage: str | None
    pipeline_job: str | None
    created_at: datetime
    run_at: datetime
    notify_at: datetime | None
    uploaded_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None

    @classmethod
    def of(cls, job: Job) -> JobView:
        """Return the view of a record."""
        same = {name: getattr(job, name) for name in cls.model_fields if name != "input"}
        known = None
        if job.input_file_name is not None:
            known = InputView(
                kind=job.input_kind,
                file_name=job.input_file_name,
                size_bytes=None if job.input_kind is InputKind.URL else job.input_size_bytes,
                content_type=job.input_content_type,
                sha256=job.input_sha256,
            )
        return cls(**same, input=known)


class JobPage(Model):
    """Jobs, newest first. `next` is the cursor of the following page."""

    jobs: list[JobView]
    next: UUID | None


class JobFilter(StrictModel):
    """Filter of a list of jobs. `cursor` is the `next` of the previous page. `owner` is for administrators.

    `errorCode`: code of the job's error, or of its last attempt.
    """

    state: JobState | None = None
    task_type: Annotated[Text, Field(max_length=63)] | None = None
    error_code: Annotated[Text, Field(max_length=100)] | None = None
    owner: Annotated[Text, Field(max_length=255)] | None = None
    cursor: UUID | None = None
    limit: int = Field(default=50, ge=1, le=200)


class EventFilter(StrictModel):
    """Filter of a list of events. `after` is the `next` of the previous page."""

    after: int = Field(default=0, ge=0, lt=2**63)
    limit: int = Field(default=200, ge=1, le=1000)


class EventView(Model):
    """One event of a job."""

    id: int
    type: str
    state: JobState
    time: datetime
    data: dict[str, object]

    @classmethod
    def of(cls, event: JobEvent) -> EventView:
        """Return the view of a record."""
        return cls(id=event.id, type=event.type, state=event.state, time=event.created_at, data=event.data)


class EventPage(Model):
    """Events in order. `next` is the `after` of the following page."""

    events: list[EventView]
    next: int


class OutputLink(Model):
    """A result to download."""

    name: str
    url: str
    method: str
    size_bytes: int
    sha256: str
    content_type: str
    expires_at: datetime


class OutputLinks(Model):
    """All results of a job."""

    outputs: list[OutputLink]
