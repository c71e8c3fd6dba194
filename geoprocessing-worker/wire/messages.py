"""The messages of the wire protocol. Unknown fields are ignored."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.alias_generators import to_camel

from geoprocessing_worker.errors import ErrorClass, JobError

# Bytes of JSON that the API accepts.
LARGEST_FAILURE = 16 * 1024


class WireModel(BaseModel):
    """Part of a message, in snake case here and camel case in JSON."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class JobInput(WireModel):
    """The job's file. Most URLs are signed, so they are secrets.

    With `kind` "url" a person gave the address of a file on another server. Its size is unknown. `etag` and
    `last_modified` are the validators of the version processed last, if there is one.
    """

    kind: str = "upload"
    file_name: str
    download_url: str = Field(repr=False)
    size_bytes: int | None = Field(None, ge=0)
    content_type: str | None = None
    etag: str | None = None
    last_modified: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the file comes from another server than storage."""
        return self.kind == "url"


class UploadSlot(WireModel):
    """A signed URL for the upload of one output."""

    name: str
    url: str = Field(repr=False)
    method: Literal["PUT", "POST"] = "PUT"
    headers: dict[str, str] = Field({}, repr=False)
    content_type: str = "application/octet-stream"
    max_bytes: int


class ClaimedJob(WireModel):
    """A job and the lease on it. `lease_seconds` count from the server's answer.

    The completion may contain results of `inline_bytes` in all, instead of an upload.
    """

    id: str = Field(pattern=r"^[0-9A-Za-z-]{1,64}$")
    task_type: str
    priority: float = 0
    attempt: int
    max_attempts: int
    lease_token: SecretStr
    lease_seconds: float
    lease_expires_at: datetime
    heartbeat_seconds: float = Field(gt=0)
    timeout_seconds: float | None = Field(None, gt=0)
    input_payload: dict[str, Any] = {}
    input: JobInput | None = None
    uploads: tuple[UploadSlot, ...] = ()
    inline_bytes: int = Field(0, ge=0)
    previous_errors: tuple[dict[str, Any], ...] = ()


class Capabilities(WireModel):
    """The limits of a worker: bytes of a file, source hosts (None: not declared), MiB of memory, concurrent jobs."""

    max_file_size: int
    source_hosts: tuple[str, ...] | None
    memory_mb: int
    concurrent_jobs: int


class ReportedTrouble(WireModel):
    """Trouble of this worker's host."""

    code: str
    message: str


class ClaimRequest(WireModel):
    """A claim. `claim_id` is new for each claim and `worker_id` for each process, so the API recognizes repeats.

    With `trouble`, `max_jobs` is 0 and nothing is claimed.
    """

    claim_id: str
    worker_id: str
    worker_name: str
    worker_version: str | None = None
    task_types: tuple[str, ...]
    max_jobs: int
    wait_seconds: float
    capabilities: Capabilities | None = None
    trouble: tuple[ReportedTrouble, ...] | None = None


class ClaimAnswer(WireModel):
    """The claimed jobs."""

    server_time: datetime
    jobs: tuple[ClaimedJob, ...]


class CancelOrder(WireModel):
    """The job was cancelled."""

    reason: str | None = None
    grace_seconds: float = 0


class LeaseAnswer(WireModel):
    """The answer to a heartbeat or progress report."""

    lease_expires_at: datetime
    lease_seconds: float = Field(gt=0)
    cancel: CancelOrder | None = None
    uploads: tuple[UploadSlot, ...] | None = None
    timeout_seconds: float | None = Field(None, gt=0)

    @property
    def has_timeout(self) -> bool:
        """Whether `timeout_seconds` is present. A present None removes the timeout."""
        return "timeout_seconds" in self.model_fields_set


class Heartbeat(WireModel):
    """A heartbeat. The API may hold its answer for `wait_seconds`, and answers a cancel at once (long polling)."""

    wait_seconds: float


class Progress(WireModel):
    """The progress of a job: percent of the whole, and a sentence for people."""

    percent: float = Field(ge=0, le=100)
    stage: str
    message: str = Field(max_length=500)


class ReportedOutput(WireModel):
    """An uploaded file or, with `content` in base64, one inside the report."""

    name: str
    size_bytes: int
    sha256: str
    content_type: str
    content: str | None = Field(None, repr=False)


class SourceVersion(WireModel):
    """The processed version of a file from another server: its validators, size and digest."""

    etag: str | None = None
    last_modified: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    unchanged: bool = False


class Completion(WireModel):
    """A completed job. `source` is set if the file came from another server."""

    outputs: tuple[ReportedOutput, ...]
    metadata: dict[str, Any]
    timings: dict[str, float]
    source: SourceVersion | None = None


class CompleteAnswer(WireModel):
    """The answer to a completion. `replayed`: the API had accepted it before, and the answer was lost."""

    state: str
    replayed: bool = False


class FailureError(WireModel):
    """The error, for the server's retry decision and the user."""

    error_class: ErrorClass = Field(alias="class")
    code: str
    message: str = Field(max_length=2000)
    detail: dict[str, Any] = {}


class Failure(WireModel):
    """A failed attempt."""

    error: FailureError
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, error: JobError) -> "Failure":
        """Return the report of an error, cut to the limits of the API, since texts may quote a hostile file."""
        failure = FailureError(
            error_class=error.error_class,
            code=_plain(error.code)[:100],
            message=_plain(error.message)[:2000],
            detail=_plain_json(error.detail),
        )
        if len(failure.model_dump_json()) > LARGEST_FAILURE:
            failure = failure.model_copy(update={"detail": {}})
        return cls(error=failure)


def _plain(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _plain_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(str(key)): _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else _plain(str(value))


class FailAnswer(WireModel):
    """The answer to a failure: another attempt at `next_attempt_at`, or the end of the job."""

    state: str
    next_attempt_at: datetime | None = None
    replayed: bool = False
