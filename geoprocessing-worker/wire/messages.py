"""The wire, as the worker sees it: what it is sent and what it sends. Unknown fields are ignored."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.alias_generators import to_camel

from geoprocessing_worker.errors import ErrorClass, JobError

# Bytes of JSON.
LARGEST_FAILURE = 16 * 1024


class WireModel(BaseModel):
    """A part of a message: snake case here, camel case in the JSON."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class JobInput(WireModel):
    """The job's file. Most URLs are signed: whoever knows one can read the file.

    With `kind` "url" the file is somebody else's, found where a person said: its size is not known, and `etag` and
    `last_modified` are what its server said of the version that was worked on last, where that is enough.
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
        """Whether the file comes from a server of nobody here."""
        return self.kind == "url"


class UploadSlot(WireModel):
    """A place where one output may be put, once, by whoever knows the signed URL."""

    name: str
    url: str = Field(repr=False)
    method: Literal["PUT", "POST"] = "PUT"
    headers: dict[str, str] = Field({}, repr=False)
    content_type: str = "application/octet-stream"
    max_bytes: int


class ClaimedJob(WireModel):
    """A job and the lease on it. `lease_seconds` count from when the server answered.

    Results of `inline_bytes` in all may be handed in with the completion instead of being uploaded.
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
    """What this worker takes: bytes of a file, hosts of sources (None: not told), MiB of memory, jobs at once."""

    max_file_size: int
    source_hosts: tuple[str, ...] | None
    memory_mb: int
    concurrent_jobs: int


class ReportedTrouble(WireModel):
    """Trouble of this worker's host."""

    code: str
    message: str


class ClaimRequest(WireModel):
    """`claim_id` is fresh for each claim and `worker_id` for each process, so that a repeat is seen as one.

    With `trouble`, `max_jobs` is 0: nothing is claimed.
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
    """The jobs that are now this worker's."""

    server_time: datetime
    jobs: tuple[ClaimedJob, ...]


class CancelOrder(WireModel):
    """Somebody does not want the job any more."""

    reason: str | None = None
    grace_seconds: float = 0


class LeaseAnswer(WireModel):
    """What a heartbeat or a progress report brings back."""

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
    """A sign of life. An API that can may hold its answer back for `wait_seconds`, to tell of a cancel at once."""

    wait_seconds: float


class Progress(WireModel):
    """How far a job is: percent of the whole, and a sentence for people."""

    percent: float = Field(ge=0, le=100)
    stage: str
    message: str = Field(max_length=500)


class ReportedOutput(WireModel):
    """A file that was put into its slot or, with `content` in base64, is handed in with the report."""

    name: str
    size_bytes: int
    sha256: str
    content_type: str
    content: str | None = Field(None, repr=False)


class SourceVersion(WireModel):
    """Which version of somebody else's file was worked on, by its server's own words and by its content."""

    etag: str | None = None
    last_modified: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    unchanged: bool = False


class Completion(WireModel):
    """A job done: what the API checks, publishes and shows. `source`: of a file that was fetched by its address."""

    outputs: tuple[ReportedOutput, ...]
    metadata: dict[str, Any]
    timings: dict[str, float]
    source: SourceVersion | None = None


class CompleteAnswer(WireModel):
    """`replayed`: the API had heard it before, and the reply was lost."""

    state: str
    replayed: bool = False


class FailureError(WireModel):
    """What went wrong, for the server's retry decision and for the person who uploaded the file."""

    error_class: ErrorClass = Field(alias="class")
    code: str
    message: str = Field(max_length=2000)
    detail: dict[str, Any] = {}


class Failure(WireModel):
    """A job given back."""

    error: FailureError
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, error: JobError) -> "Failure":
        """The report of an error, cut to what the API takes: texts may quote a hostile file."""
        told = FailureError(
            error_class=error.error_class,
            code=_plain(error.code)[:100],
            message=_plain(error.message)[:2000],
            detail=_plain_json(error.detail),
        )
        if len(told.model_dump_json()) > LARGEST_FAILURE:
            told = told.model_copy(update={"detail": {}})
        return cls(error=told)

    def shortened(self, code: str) -> "Failure":
        """Return this failure with another code, 200 characters of its message and no detail."""
        return Failure(
            error=self.error.model_copy(update={"code": code, "message": self.error.message[:200], "detail": {}})
        )


def _plain(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _plain_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(str(key)): _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else _plain(str(value))


class FailAnswer(WireModel):
    """What the server made of it: tried again at `next_attempt_at`, or over."""

    state: str
    next_attempt_at: datetime | None = None
    replayed: bool = False
