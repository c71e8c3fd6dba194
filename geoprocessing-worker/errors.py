"""Every way a job can end badly: its class on the wire, its code, and the sentence its owner reads.

`error.class` tells the server what kind of trouble it is, so that it can decide about a retry; `error.code` is stable and
names the trouble; `message` is for the person who uploaded the file. Codes of refused files: docs/RENDERING.md.
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

    def __init__(
        self, code: str, message: str, error_class: ErrorClass, detail: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.error_class = error_class
        self.detail = detail or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (JobError, (self.code, self.message, self.error_class, self.detail))


def refused(code: str, message: str, **detail: Any) -> JobError:
    """A file or payload that trying again will not help."""
    return JobError(code, message, ErrorClass.INVALID_INPUT, detail)
