"""Domain rules without I/O: states, retries after failures, names of files and objects, lease tokens."""

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
    """The state of a job."""

    AWAITING_UPLOAD = "awaiting_upload"
    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class InputKind(StrEnum):
    """The source of a job's input: none, an upload, a URL, another job."""

    NONE = "none"
    UPLOAD = "upload"
    URL = "url"
    OUTPUT = "output"


class ErrorClass(StrEnum):
    """The classes of failure in a worker's report (`error.class`)."""

    TRANSIENT = "transient"
    INVALID_INPUT = "invalid_input"
    RESOURCE = "resource"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """The effect of a class of failure on its job.

    Attributes:
        next_state: `queued` allows a retry while attempts are left.
        uses_attempt: whether the attempt counts against `max_attempts`.
        backs_off: whether the next attempt waits.
        max_attempts: attempts that may end this way. None: all attempts of the job.
    """

    next_state: JobState
    uses_attempt: bool = True
    backs_off: bool = True
    max_attempts: int | None = None


# A file that is too slow once is too slow again. The second attempt covers a slow worker.
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

# The code of an interruption by the worker's host: full disk, no memory, no scanner. This many cost no attempt. After
# them, the job itself may be the cause.
WORKER_TROUBLE = "worker_trouble"
MAX_FREE_TROUBLES = 10

# Code and limit of an input above its worker's MAX_FILE_SIZE.
TOO_LARGE, FILE_LIMIT = "too_large", "MAX_FILE_SIZE"

# Longest pause that a worker may request. A longer one would look like a lost job.
MAX_RETRY_AFTER_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class FailureDecision:
    """The server's decision after a failure.

    Attributes:
        next_state: `queued`, `failed` or `cancelled`.
        delay_seconds: pause before a queued job may be claimed.
        uses_attempt: whether this attempt counts.
        source_bytes: lower bound of the input's size that the failure has shown. None: unknown.
    """

    next_state: JobState
    delay_seconds: float
    uses_attempt: bool
    source_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptBudget:
    """The attempts of a job.

    Attributes:
        attempt: number of the current attempt, from 1.
        max_attempts: total attempts of the job.
        backoff_seconds: upper bound of the pause after the first, second, … attempt. The last one repeats.
        same_class_failures: earlier attempts that ended with the same class of error.
    """

    attempt: int
    max_attempts: int
    backoff_seconds: Sequence[float]
    same_class_failures: int = 0


def decide_failure(
    error_class: ErrorClass, budget: AttemptBudget, retry_after_seconds: float | None, source: random.Random
) -> FailureDecision:
    """Decide the consequence of a reported failure.

    Args:
        error_class: the reported class.
        budget: the job's attempts.
        retry_after_seconds: minimum pause that the worker requests.
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
        # Full jitter spreads the retries of jobs that failed together over the whole interval.
        place = min(budget.attempt, len(budget.backoff_seconds)) - 1
        delay = source.uniform(0.0, budget.backoff_seconds[place])
    delay = max(delay, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))
    return FailureDecision(JobState.QUEUED, delay, policy.uses_attempt)


@dataclass(frozen=True, slots=True)
class ReportedFailure:
    """A reported failure: class, code, requested pause and details."""

    error_class: ErrorClass
    code: str
    retry_after_seconds: float | None = None
    detail: object = None


def find_source_bytes(failure: ReportedFailure, known_bytes: int | None, max_bytes: int) -> int | None:
    """Return a lower bound for a source that exceeded only its worker's limit. None: the failure is final.

    Each such report must raise the known size, so a job returns at most once per distinct limit.

    Args:
        failure: the report on a job with an input of kind `url`.
        known_bytes: the size known from earlier reports.
        max_bytes: the largest file that the service accepts.
    """
    detail = failure.detail
    if failure.code != TOO_LARGE or not isinstance(detail, Mapping) or detail.get("limit") != FILE_LIMIT:
        return None
    limit, size = (_positive_integer(detail.get(name)) for name in ("limit_bytes", "size_bytes"))
    found = max(limit + 1, size)
    return found if limit and (known_bytes or 0) < found <= max_bytes else None


def _positive_integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# Names with `.png.aux.xml` and `_thumb.png` must fit into the 255 bytes of a file system.
MAX_STEM_BYTES = 180
MAX_EXTENSION_BYTES = 16
_SAFE_PUNCTUATION = frozenset("_-.() ")


def _is_safe(char: str) -> bool:
    # Marks (M) belong to letters: Arabic vowel signs, Devanagari vowels.
    return char in _SAFE_PUNCTUATION or unicodedata.category(char)[0] in "LMN"


def _truncate_utf8(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def safe_file_name(name: str) -> str:
    """Return a safe file name for a client's file name.

    The name is one path component in NFC. Runs of characters other than letters, digits, `_ - . ( )` and single inner
    spaces become `_`. It neither begins nor ends with a dot. Its stem has at most 180 bytes of UTF-8.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    # JSON may contain a lone surrogate, which UTF-8 rejects.
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
    """Return the file name without its last extension, the common start of all output names."""
    stem, dot, _ = file_name.rpartition(".")
    return stem if dot else file_name


@dataclass(frozen=True, slots=True)
class UploadSlot:
    """An output that a worker may upload.

    Attributes:
        suffix: follows the stem in its name.
        content_type: its media type.
        max_bytes: maximum size.
        formats: output formats with this output, in lower case. None: all.
    """

    suffix: str
    content_type: str
    max_bytes: int
    formats: frozenset[str] | None = None


_DEFAULT_FORMAT = "png"
_OTHER_NAMES = {"jpg": "jpeg"}


@lru_cache(maxsize=1000)
def parse_outputs(text: str) -> tuple[UploadSlot, ...]:
    """Return the outputs of a task type from its JSON text. Few texts recur."""
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
    """Return the outputs for the payload's `outputFormat`. An unknown format has only the outputs of all formats."""
    chosen = output_format(payload)
    return tuple(slot for slot in outputs if slot.formats is None or chosen in slot.formats)


def known_formats(outputs: Iterable[UploadSlot]) -> frozenset[str]:
    """Return the output formats of a task type. Empty: all formats have the same outputs."""
    return frozenset[str]().union(*(slot.formats for slot in outputs if slot.formats is not None))


def output_format(payload: Mapping[str, object]) -> str:
    """Return the payload's `outputFormat` in lower case, `jpeg` for `jpg`. Defaults to `png`."""
    given = payload.get("outputFormat")
    name = _DEFAULT_FORMAT if given is None else str(given).lower()
    return _OTHER_NAMES.get(name, name)


def job_prefix(job_id: UUID) -> str:
    """Return the key prefix of all objects of a job."""
    return f"jobs/{job_id}"


def upload_key(job_id: UUID, file_name: str) -> str:
    """Return the key in the user's signed URL. No object has this key."""
    return f"{job_prefix(job_id)}/input/{file_name}"


def input_key(job_id: UUID, sha256: str, file_name: str) -> str:
    """Return the key of an input. It contains the digest, so concurrent uploads do not overwrite each other."""
    return f"{job_prefix(job_id)}/input/{sha256}/{file_name}"


def slot_key(job_id: UUID, lease_seq: int, name: str) -> str:
    """Return the key in a worker's signed URL. With the lease, against a stale worker's writes."""
    return f"{job_prefix(job_id)}/outputs/{lease_seq}/{name}"


def output_key(job_id: UUID, lease_seq: int, sha256: str, name: str) -> str:
    """Return the key of an output. It contains the digest, so a published output cannot change."""
    return f"{job_prefix(job_id)}/outputs/{lease_seq}/{sha256}/{name}"


@dataclass(frozen=True, slots=True)
class LeaseToken:
    """Fencing token of a lease: its number and a random secret."""

    lease_seq: int
    lease_secret: str

    def __str__(self) -> str:
        return f"{self.lease_seq}.{self.lease_secret}"

    @staticmethod
    def parse(text: str) -> LeaseToken | None:
        """Read the output of `str()`. Return None for other text."""
        number, dot, key = text.partition(".")
        # 18 digits fit into a bigint.
        if not dot or not key or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        return LeaseToken(int(number), key)
