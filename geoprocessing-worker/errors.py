"""The errors of jobs, with class, code and message, and the errors of the API.

On the wire, the server decides about a retry by `error.class`. `error.code` is stable, and `message` is for the user.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorClass(StrEnum):
    """The classes of failures on the wire (`error.class`)."""

    TRANSIENT = "transient"
    INVALID_INPUT = "invalid_input"
    RESOURCE = "resource"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class WorkerError(Exception):
    """Base class of the errors of this package."""


class ConfigurationError(WorkerError):
    """Unusable settings. The message has a line with the remedy for each."""


class JobError(WorkerError):
    """The failure of a job.

    Args:
        code: stable, in snake case.
        message: the problem and its remedy for the user, in one or two sentences.
        error_class: decides whether the server retries.
        detail: numbers and names for diagnosis, as JSON values.
    """

    def __init__(self, code: str, message: str, error_class: ErrorClass, detail: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.error_class = error_class
        self.detail = detail or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (JobError, (self.code, self.message, self.error_class, self.detail))


def invalid_input(code: str, message: str, **detail: Any) -> JobError:
    """Return the error of an invalid file or payload, which is not retried."""
    return JobError(code, message, ErrorClass.INVALID_INPUT, detail)


def malformed(what: str, **detail: object) -> JobError:
    """Return the error of a file with an inconsistent structure."""
    return invalid_input(
        "malformed_header", f"The file's header is damaged: {what}. Save it again with a GIS and upload that.", **detail
    )


def truncated(what: str, needed: int, size: int) -> JobError:
    """Return the error of a file that ends before its data."""
    return invalid_input(
        "truncated",
        "The file ends before its picture does: it was not copied or uploaded whole. Upload it again.",
        reason=what,
        needed_bytes=needed,
        size_bytes=size,
    )


# Remedies by the name of the limit.
WITHOUT_UNKNOWN_TAGS = "Save it again with gdal_translate, which leaves out tags that it does not know."
ONE_PAGE = "Save the page that you need as a file of its own."
CURES = {
    "side": "Save it smaller, or in parts.",
    "bands": "Save it with fewer bands.",
    "block": "Save it in tiles of 512 by 512 pixels, band by band (INTERLEAVE=BAND).",
    "blocks": "Save it in larger tiles, or in parts.",
    "control points": "Save it with fewer of them, or warp it by them with gdalwarp.",
    "directories": ONE_PAGE,
    "masks": ONE_PAGE,
    "overviews": ONE_PAGE,
    "fields": WITHOUT_UNKNOWN_TAGS,
    "tag": WITHOUT_UNKNOWN_TAGS,
    "tags": WITHOUT_UNKNOWN_TAGS,
    "metadata": "Save it without them.",
    "text": "Save it with a shorter one, or without.",
}


def too_large(limit: str, found: int, allowed: int, words: str) -> JobError:
    """Return the error of a file beyond a limit, with the remedy."""
    return invalid_input(
        "too_large",
        f"The file has {found:,} {words}; at most {allowed:,} can be read. {CURES[limit]}",
        limit=limit,
        found=found,
        allowed=allowed,
    )


WORKER_TROUBLE = "worker_trouble"


def worker_trouble(code: str, **detail: Any) -> JobError:
    """Return the error for trouble of the host (`disk`, `memory` …): the job goes back without losing an attempt."""
    message = f"The worker has trouble of its own ({code}). Another one continues the job."
    return JobError(WORKER_TROUBLE, message, ErrorClass.INTERRUPTED, {"trouble": code, **detail})


class ApiError(WorkerError):
    """The API rejected a call or did not answer.

    Args:
        code: the `code` of its problem details, or one of ours for an answer of a proxy or the network.
        message: the detail of the answer.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class TokenRefused(ApiError):  # noqa: N818 - named by the answer of the API
    """401 or 403: no call works until the token is replaced."""


class LeaseLost(ApiError):  # noqa: N818
    """404 or 409: another worker has the job, or it has ended. Nothing more may be sent for it."""


class LeaseExpired(LeaseLost):
    """The lease was not renewed in time. The API decides later whether the job is lost."""

    def __init__(self, message: str) -> None:
        super().__init__("lease_expired", message)


class Rejected(ApiError):  # noqa: N818
    """413, 422 and similar: the API will never accept this call."""


class Unavailable(ApiError):  # noqa: N818
    """Busy, broken, unreachable or unreadable: the same call may succeed later.

    Args:
        retry_after: seconds to wait, if the API sent them.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


class CancelRequested(WorkerError):  # noqa: N818
    """The answer to a heartbeat: the job was cancelled."""

    def __init__(self, reason: str, grace_seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.grace_seconds = grace_seconds
