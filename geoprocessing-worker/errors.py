"""Every way a job can end badly: its class on the wire, its code, and the sentence its owner reads.

`error.class` tells the server what kind of trouble it is, so that it can decide about a retry; `error.code` is stable
and names the trouble; `message` is for the person who uploaded the file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorClass(StrEnum):
    """The kinds of failure that the wire knows (`error.class`)."""

    TRANSIENT = "transient"
    INVALID_INPUT = "invalid_input"
    RESOURCE = "resource"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class WorkerError(Exception):
    """The root of everything this package raises on purpose."""


class ConfigurationError(WorkerError):
    """The settings cannot be used; the message names each one that is wrong and what to do."""


class JobError(WorkerError):
    """A job that cannot go on.

    Args:
        code: the stable name of the trouble, in snake case.
        message: one or two sentences for the person who uploaded the file: what is wrong and what to do.
        error_class: the kind, which decides whether the server tries again.
        detail: numbers and names for whoever looks closer; must be JSON.
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
    """A file or payload that trying again will not help."""
    return JobError(code, message, ErrorClass.INVALID_INPUT, detail)


def malformed(what: str, **detail: object) -> JobError:
    """A file whose structure contradicts itself."""
    return invalid_input(
        "malformed_header", f"The file's header is damaged: {what}. Save it again with a GIS and upload that.", **detail
    )


def truncated(what: str, needed: int, size: int) -> JobError:
    """A file that ends before what it points to."""
    return invalid_input(
        "truncated",
        "The file ends before its picture does: it was not copied or uploaded whole. Upload it again.",
        reason=what,
        needed_bytes=needed,
        size_bytes=size,
    )


# What gets a file below a limit, by the name of the limit.
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
    """More of something than is read here, with the cure for that limit."""
    return invalid_input(
        "too_large",
        f"The file has {found:,} {words}; at most {allowed:,} can be read. {CURES[limit]}",
        limit=limit,
        found=found,
        allowed=allowed,
    )


WORKER_TROUBLE = "worker_trouble"


def worker_trouble(code: str, **detail: Any) -> JobError:
    """Trouble of the worker's host (`disk`, `memory` …): the job goes back without losing an attempt."""
    message = f"The worker has trouble of its own ({code}); another one goes on with the job."
    return JobError(WORKER_TROUBLE, message, ErrorClass.INTERRUPTED, {"trouble": code, **detail})


class ApiError(WorkerError):
    """The API did not do what it was asked.

    Args:
        code: the `code` of its problem details, or one of ours where a proxy or the network spoke instead.
        message: what it said.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class TokenRefused(ApiError):  # noqa: N818 - an answer of the API, named as what it says
    """401 or 403: nothing works until somebody mends the token."""


class LeaseLost(ApiError):  # noqa: N818
    """404 or 409: the job is somebody else's, or over. Nothing more may be sent for it."""


class LeaseExpired(LeaseLost):
    """The worker's own verdict: the lease was not renewed in time. Whether the job is lost, the API will say."""

    def __init__(self, message: str) -> None:
        super().__init__("lease-expired", message)


class Rejected(ApiError):  # noqa: N818
    """413, 422 and the like: the API will never take this; the fault is this job's."""


class Unavailable(ApiError):  # noqa: N818
    """Busy, broken, unreachable or unreadable: the same call may go through later.

    Args:
        retry_after: seconds that the API asked to wait, if it did.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


class CancelRequested(WorkerError):  # noqa: N818
    """The API's answer to a heartbeat says that somebody does not want this job any more."""

    def __init__(self, reason: str, grace_seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.grace_seconds = grace_seconds
