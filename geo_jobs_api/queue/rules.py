"""The rules of the domain, without I/O: states, what follows a failure, names of files and objects, lease tokens."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from uuid import UUID


class JobState(StrEnum):
    """Where a job stands."""

    AWAITING_UPLOAD = "awaiting_upload"
    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class InputKind(StrEnum):
    """Where a job's input comes from: nowhere, its owner, a URL, another job."""

    NONE = "none"
    UPLOAD = "upload"
    URL = "url"
    OUTPUT = "output"


class ErrorClass(StrEnum):
    """The kinds of failure that a worker reports (`error.class`)."""

    TRANSIENT = "transient"
    INVALID_INPUT = "invalid_input"
    RESOURCE = "resource"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What a class of failure does to its job.

    Attributes:
        next_state: `queued` means that the job may be tried again while attempts are left.
        uses_attempt: whether the attempt counts against `max_attempts`.
        backs_off: whether the next attempt waits.
        max_attempts: how many attempts may end this way; `None` for all of the job's.
    """

    next_state: JobState
    uses_attempt: bool = True
    backs_off: bool = True
    max_attempts: int | None = None


# A file that takes too long once takes too long again. The second try is for a worker that was slow.
MAX_TIMEOUTS = 2

FAILURE_POLICIES: dict[ErrorClass, FailurePolicy] = {
    ErrorClass.TRANSIENT: FailurePolicy(JobState.QUEUED),
    ErrorClass.RESOURCE: FailurePolicy(JobState.QUEUED),
    ErrorClass.TIMEOUT: FailurePolicy(JobState.QUEUED, max_attempts=MAX_TIMEOUTS),
    ErrorClass.INTERNAL: FailurePolicy(JobState.QUEUED),
    ErrorClass.INVALID_INPUT: FailurePolicy(JobState.FAILED),
    ErrorClass.INTERRUPTED: FailurePolicy(JobState.QUEUED, uses_attempt=False, backs_off=False),
    ErrorClass.CANCELLED: FailurePolicy(JobState.CANCELLED),
}

# The code of an interruption by trouble of the worker's host: full disk, no memory, no scanner. So many cost a job no
# attempt; beyond, the job itself may be what troubles its workers.
WORKER_TROUBLE = "worker_trouble"
MAX_FREE_TROUBLES = 10

# The code and limit of an input that is larger than its worker's MAX_FILE_SIZE.
TOO_LARGE, FILE_LIMIT = "too_large", "MAX_FILE_SIZE"

# A worker may ask for a pause of a day at most; more would look like a lost job.
MAX_RETRY_AFTER_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class FailureDecision:
    """What the server decides after a failure.

    Attributes:
        next_state: `queued`, `failed` or `cancelled`.
        delay_seconds: how long a queued job waits before it may be claimed.
        uses_attempt: whether this attempt counts.
        source_bytes: a lower bound for the size of the input that the failure has shown; None: none.
    """

    next_state: JobState
    delay_seconds: float
    uses_attempt: bool
    source_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptBudget:
    """How much a job may still be tried.

    Attributes:
        attempt: number of the attempt under way, 1-based.
        max_attempts: how many attempts the job has in all.
        backoff_seconds: ceiling of the wait after the first, second, … attempt; the last one repeats.
        same_class_failures: attempts before this one that ended with the same class of error.
    """

    attempt: int
    max_attempts: int
    backoff_seconds: Sequence[float]
    same_class_failures: int = 0


def decide_failure(
    error_class: ErrorClass, budget: AttemptBudget, retry_after_seconds: float | None, source: random.Random
) -> FailureDecision:
    """Decide what follows a reported failure.

    Args:
        error_class: the kind that the worker told.
        budget: what the job has left.
        retry_after_seconds: a wait that the worker asks for; the longer of both counts.
        source: source of the jitter.
    """
    policy = FAILURE_POLICIES[error_class]
    if policy.next_state is not JobState.QUEUED:
        return FailureDecision(policy.next_state, 0.0, policy.uses_attempt)
    spent = policy.max_attempts is not None and budget.same_class_failures + 1 >= policy.max_attempts
    if policy.uses_attempt and (spent or budget.attempt >= budget.max_attempts):
        return FailureDecision(JobState.FAILED, 0.0, uses_attempt=True)
    delay = 0.0
    if policy.backs_off and budget.backoff_seconds:
        # Full jitter: retries of jobs that failed together spread over the whole interval.
        place = min(budget.attempt, len(budget.backoff_seconds)) - 1
        delay = source.uniform(0.0, budget.backoff_seconds[place])
    delay = max(delay, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))
    return FailureDecision(JobState.QUEUED, delay, policy.uses_attempt)


@dataclass(frozen=True, slots=True)
class ReportedFailure:
    """A worker's report of a failure: its class and code, the wait that it asks for, and its detail."""

    error_class: ErrorClass
    code: str
    retry_after_seconds: float | None = None
    detail: object = None


def find_source_bytes(failure: ReportedFailure, known_bytes: int | None, max_bytes: int) -> int | None:
    """Return the size, at least, of a source that only its worker was too narrow for; None: the failure is final.

    Each such report must raise the size that is known, so a job returns no more often than workers differ.

    Args:
        failure: the report on a job whose input is of kind `url`.
        known_bytes: the size that earlier reports have shown.
        max_bytes: the largest file that the service takes.
    """
    detail = failure.detail
    if failure.code != TOO_LARGE or not isinstance(detail, Mapping) or detail.get("limit") != FILE_LIMIT:
        return None
    limit, size = (_whole(detail.get(name)) for name in ("limit_bytes", "size_bytes"))
    found = max(limit + 1, size)
    return found if limit and (known_bytes or 0) < found <= max_bytes else None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# Names must leave room for `.png.aux.xml` and `_thumb.png` within the 255 bytes of a file system.
MAX_STEM_BYTES = 180
MAX_EXTENSION_BYTES = 16
_SAFE_PUNCTUATION = frozenset("_-.() ")


def _is_safe(char: str) -> bool:
    # Marks (M) belong to letters: Arabic vowel signs and Devanagari vowels are not decoration.
    return char in _SAFE_PUNCTUATION or unicodedata.category(char)[0] in "LMN"


def _truncate_utf8(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def safe_file_name(name: str) -> str:
    """Make a single harmless file name of whatever a client calls its file.

    The name is one path component in NFC; every run of characters other than letters, digits, `_ - . ( )` and single
    inner spaces becomes `_`; it does not begin or end with a dot; its stem has at most 180 bytes of UTF-8.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    # A lone surrogate can come out of JSON, but not go into UTF-8.
    text = unicodedata.normalize("NFC", last.encode(errors="replace").decode()).strip()
    cleaned: list[str] = []
    in_run = False
    for index, char in enumerate(text):
        double_space = char == " " and text[index + 1 : index + 2] == " "
        if _is_safe(char) and not double_space and not (in_run and char == " "):
            cleaned.append(char)
            in_run = False
        elif not in_run:
            cleaned.append("_")
            in_run = True
    stem, dot, extension = "".join(cleaned).strip(". ").rpartition(".")
    if not dot:
        stem, extension = extension, ""
    stem = _truncate_utf8(stem, MAX_STEM_BYTES).strip(". ") or "upload"
    extension = _truncate_utf8(extension, MAX_EXTENSION_BYTES).strip(". ")
    return f"{stem}.{extension}" if extension else stem


def stem_of(file_name: str) -> str:
    """The file name without its last extension: what all outputs are named after."""
    stem, dot, _ = file_name.rpartition(".")
    return stem if dot else file_name


@dataclass(frozen=True, slots=True)
class UploadSlot:
    """A place where a worker may put one output; it may stay unused.

    Attributes:
        suffix: what follows the stem in its name.
        content_type: of the output.
        max_bytes: how large it may be.
        formats: the output formats that it is for, in lower case; None: all.
    """

    suffix: str
    content_type: str
    max_bytes: int
    formats: frozenset[str] | None = None


_DEFAULT_FORMAT = "png"
_OTHER_NAMES = {"jpg": "jpeg"}


@lru_cache(maxsize=1000)
def parse_outputs(text: str) -> tuple[UploadSlot, ...]:
    """The slots of a task type, from its `outputs` as JSON text. Few texts come again and again."""
    return tuple(
        UploadSlot(
            suffix=rule["suffix"],
            content_type=rule["contentType"],
            max_bytes=rule["maxBytes"],
            formats=None if rule.get("formats") is None else frozenset(rule["formats"]),
        )
        for rule in json.loads(text)
    )


def upload_slots(outputs: Iterable[UploadSlot], payload: Mapping[str, object]) -> tuple[UploadSlot, ...]:
    """The slots that are offered for the payload's `outputFormat`; anything unknown counts as png."""
    slots = tuple(outputs)
    known = frozenset[str]().union(*(slot.formats for slot in slots if slot.formats is not None))
    requested = payload.get("outputFormat")
    name = requested.lower() if isinstance(requested, str) else _DEFAULT_FORMAT
    name = _OTHER_NAMES.get(name, name)
    chosen = name if name in known else _DEFAULT_FORMAT
    return tuple(slot for slot in slots if slot.formats is None or chosen in slot.formats)


def job_prefix(job_id: UUID) -> str:
    """Where all objects of a job are kept."""
    return f"jobs/{job_id}"


def upload_key(job_id: UUID, file_name: str) -> str:
    """What the user's signed URL names. Nothing is kept there."""
    return f"{job_prefix(job_id)}/input/{file_name}"


def input_key(job_id: UUID, sha256: str, file_name: str) -> str:
    """Where the user's file is kept: under its digest, so that of two uploads at once neither touches the other's."""
    return f"{job_prefix(job_id)}/input/{sha256}/{file_name}"


def slot_key(job_id: UUID, lease_seq: int, name: str) -> str:
    """What a worker's signed URL names: under its lease, so that a stale worker cannot touch another's files."""
    return f"{job_prefix(job_id)}/outputs/{lease_seq}/{name}"


def output_key(job_id: UUID, lease_seq: int, sha256: str, name: str) -> str:
    """Where an output is kept: under its digest too, so that what is published stays what was told of it."""
    return f"{job_prefix(job_id)}/outputs/{lease_seq}/{sha256}/{name}"


@dataclass(frozen=True, slots=True)
class LeaseToken:
    """Proof of holding a job: the number of the lease and a part that cannot be guessed."""

    lease_seq: int
    lease_secret: str

    def __str__(self) -> str:
        return f"{self.lease_seq}.{self.lease_secret}"

    @staticmethod
    def parse(text: str) -> LeaseToken | None:
        """Read what `str()` wrote; None when it is anything else."""
        number, dot, key = text.partition(".")
        # 18 digits fit a bigint.
        if not dot or not key or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        return LeaseToken(int(number), key)
