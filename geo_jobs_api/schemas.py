"""Bodies of requests and answers: camelCase on the wire, parsed once into frozen models."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from geo_jobs_api.jobs import ErrorClass, JobState
from geo_jobs_api.records import Job, JobEvent

_MAX_DEPTH = 32
_MAX_PAYLOAD_BYTES = 64 * 1024
_MAX_METADATA_BYTES = 256 * 1024


def _check_text(text: str) -> str:
    # PostgreSQL's text cannot hold NUL, and UTF-8 cannot hold lone surrogates.
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("must not hold NUL or unpaired surrogates")
    return text


def _clean_text(text: object) -> object:
    """Messages of workers may quote a hostile file: what cannot be stored is replaced, not refused."""
    if isinstance(text, str):
        return text.replace("\0", "�").encode(errors="replace").decode()
    return text


def _clean_json(value: Any, depth: int = 0) -> Any:
    """Details of a failure, as far as they can be stored: reporting it must not fail over what a file quotes."""
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_clean_text(key): _clean_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_json(item, depth + 1) for item in value]
    return value


def _check_json(value: Any, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"must not be nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not hold NaN or Infinity, which are not JSON")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_json(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth + 1)


def _json_object(limit: int) -> Any:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        _check_json(value)
        if len(json.dumps(value)) > limit:
            raise ValueError(f"must not be larger than {limit} bytes of JSON")
        return value

    return AfterValidator(check)


def _check_number(value: object) -> object:
    # Left to itself, pydantic takes true for 1 and "7" for 7, against what the OpenAPI document says.
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic makes a refusal of a ValueError only
    return value


Integer = Annotated[int, BeforeValidator(_check_number)]
Real = Annotated[float, BeforeValidator(_check_number)]


def _far_from_the_ends(moment: datetime) -> datetime:
    # PostgreSQL and Python reach further than each other's text can be read back.
    if not 1970 <= moment.year <= 9000:
        raise ValueError("must lie between 1970 and 9000")
    return moment


def _check_text_of_moment(value: object) -> object:
    # Left to itself, pydantic takes 0 for 1970, against what the OpenAPI document says.
    if isinstance(value, int | float):
        raise ValueError("must be a time such as 2030-01-31T12:00:00Z")  # noqa: TRY004 - pydantic wants this one
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_check_text_of_moment), AfterValidator(_far_from_the_ends)]
Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
ReportedText = Annotated[str, BeforeValidator(_clean_text)]
Payload = Annotated[dict[str, Any], _json_object(_MAX_PAYLOAD_BYTES)]
Metadata = Annotated[dict[str, Any], _json_object(_MAX_METADATA_BYTES)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]


class Model(BaseModel):
    """Camel case outside, snake case inside; unknown fields are ignored, as the protocol demands."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class RequestUpload(Model):
    """The file that is going to be uploaded."""

    file_name: Annotated[Text, Field(min_length=1, max_length=1024)]
    file_size: Integer = Field(gt=0)
    file_type: Annotated[Text, Field(max_length=200)] = "image/tiff"


class UploadTarget(Model):
    """Where to put the file: one PUT with exactly the announced number of bytes."""

    upload_url: str
    method: str
    headers: dict[str, str]
    expires_at: datetime
    file_name: str


class CancelJob(Model):
    """Why a job is cancelled."""

    reason: Annotated[Text, Field(max_length=500)] | None = None


class InputView(Model):
    """The input, as far as it is known: `kind` is `upload`, `url` or `output` (of another job)."""

    kind: str
    file_name: str
    size_bytes: int | None
    content_type: str | None
    sha256: str | None


class JobView(Model):
    """A job as its owner sees it."""

    id: UUID
    task_type: str
    state: str
    priority: int
    input_payload: dict[str, Any]
    input: InputView | None
    attempt: int
    max_attempts: int
    percent: float
    stage: str | None
    message: str | None
    outputs: list[dict[str, Any]] | None
    metadata: dict[str, Any] | None
    timings: dict[str, Any] | None
    error: dict[str, Any] | None
    worker_name: str | None
    worker_stats: dict[str, Any] | None
    source_validators: dict[str, Any] | None
    pending_parents: int
    dedup_key: str | None
    pipeline_id: UUID | None
    pipeline_stage: str | None
    pipeline_job: str | None
    created_at: datetime
    run_at: datetime
    deliver_at: datetime | None
    uploaded_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None

    @classmethod
    def of(cls, job: Job) -> JobView:
        """The view of a record."""
        same = {name: getattr(job, name) for name in cls.model_fields if name not in {"input", "state"}}
        known = None
        if job.input_file_name is not None:
            known = InputView(
                kind=job.input_kind.value,
                file_name=job.input_file_name,
                size_bytes=job.input_size_bytes,
                content_type=job.input_content_type,
                sha256=job.input_sha256,
            )
        return cls(**same, state=job.state.value, input=known)


class JobPage(Model):
    """Jobs, newest first; `next` is the cursor of the following page."""

    jobs: list[JobView]
    next: UUID | None


class JobFilter(Model):
    """Which jobs to list; `cursor` is the `next` of the page before. `owner` is for administrators."""

    state: JobState | None = None
    task_type: Annotated[Text, Field(max_length=63)] | None = None
    owner: Annotated[Text, Field(max_length=255)] | None = None
    cursor: UUID | None = None
    limit: int = Field(default=50, ge=1, le=200)


class EventFilter(Model):
    """Which events to list; `after` is the `next` of the page before."""

    after: int = Field(default=0, ge=0, lt=2**63)
    limit: int = Field(default=200, ge=1, le=1000)


class EventView(Model):
    """One move of a job."""

    id: int
    type: str
    state: str
    time: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, event: JobEvent) -> EventView:
        """The view of a record."""
        return cls(id=event.id, type=event.type, state=event.state, time=event.created_at, data=event.data)


class EventPage(Model):
    """Events in order; `next` goes into `after` of the following page."""

    events: list[EventView]
    next: int


class OutputLink(Model):
    """A result to be downloaded."""

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


class ClaimJobs(Model):
    """A worker asks for work. `claimId` is fresh for each claim, `workerId` for each process."""

    claim_id: UUID
    worker_id: Name
    worker_name: Name
    worker_version: Annotated[Text, Field(max_length=100)] | None = None
    task_types: list[Name] = Field(min_length=1, max_length=100)
    max_jobs: Integer = Field(default=1, ge=1, le=100)
    wait_seconds: Real = Field(default=0, ge=0, le=50)


class ClaimedInput(Model):
    """The file to work on. Of kind `url`, the worker fetches it from elsewhere, if it has changed."""

    kind: str
    file_name: str
    download_url: str
    size_bytes: int | None
    content_type: str
    etag: str | None = None
    last_modified: str | None = None


class UploadSlotView(Model):
    """A place for one output."""

    name: str
    url: str
    method: str
    headers: dict[str, str]
    content_type: str
    max_bytes: int


class ClaimedJob(Model):
    """A job with the lease on it."""

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
    input_payload: dict[str, Any]
    input: ClaimedInput | None
    uploads: list[UploadSlotView]
    previous_errors: list[dict[str, Any]]


class ClaimedJobs(Model):
    """What a claim got."""

    server_time: datetime
    jobs: list[ClaimedJob]


class Heartbeat(Model):
    """A sign of life; `stats` is for people who look. The answer waits for a cancel, `waitSeconds` at most."""

    stats: Payload | None = None
    wait_seconds: Real = Field(default=0, ge=0, le=50)


class ReportProgress(Model):
    """How far the worker has come."""

    percent: Real = Field(ge=0, le=100, allow_inf_nan=False)
    stage: Annotated[ReportedText, Field(max_length=40)] | None = None
    message: Annotated[ReportedText, Field(max_length=500)] | None = None


class CancelNotice(Model):
    """The worker is to stop within `graceSeconds`."""

    reason: str | None
    grace_seconds: float


class LeaseView(Model):
    """The answer to a sign of life."""

    lease_expires_at: datetime
    lease_seconds: float
    timeout_seconds: int | None
    cancel: CancelNotice | None
    uploads: list[UploadSlotView] | None = None


class ReportedOutput(Model):
    """An output that the worker says it has uploaded."""

    name: Annotated[Text, Field(min_length=1, max_length=255)]
    size_bytes: Integer = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    content_type: Annotated[Text, Field(max_length=200)]


class ReportedSource(Model):
    """What an input of kind `url` was; `unchanged`: it was not fetched again, and there are no outputs."""

    etag: Annotated[ReportedText, Field(max_length=1024)] | None = None
    last_modified: Annotated[ReportedText, Field(max_length=100)] | None = None
    size_bytes: int | None = Field(default=None, ge=0, lt=2**63)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    unchanged: bool = False


class CompleteJob(Model):
    """The job is done."""

    outputs: list[ReportedOutput] = Field(default_factory=list, max_length=100)
    metadata: Metadata = Field(default_factory=dict)
    timings: dict[Annotated[Text, Field(max_length=40)], Annotated[Real, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, max_length=100
    )
    source: ReportedSource | None = None


class ReportedError(Model):
    """What went wrong. The server decides by `class` what follows."""

    model_config = ConfigDict(**(Model.model_config | {"alias_generator": None}))

    error_class: ErrorClass = Field(alias="class")
    code: Annotated[ReportedText, Field(min_length=1, max_length=100)]
    message: Annotated[ReportedText, Field(max_length=2000)] = ""
    detail: Annotated[Any, BeforeValidator(_clean_json)] = None


class FailJob(Model):
    """The job cannot go on."""

    error: ReportedError
    retry_after_seconds: Real | None = Field(default=None, ge=0, allow_inf_nan=False)


class Completed(Model):
    """The answer to a complete."""

    state: str
    replayed: bool


class Failed(Model):
    """The answer to a fail."""

    state: str
    next_attempt_at: datetime | None
    replayed: bool
