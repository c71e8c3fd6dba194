"""All problems that a request can get: stable code, HTTP status and title (RFC 9457 problem details)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """Status and title of one problem code."""

    status: int
    title: str


KINDS: dict[str, ProblemKind] = {
    "bad_request": ProblemKind(400, "The request is not well-formed HTTP"),
    "token_invalid": ProblemKind(401, "The token is missing, expired or not valid"),
    "not_allowed": ProblemKind(403, "The token does not allow this"),
    "signature_invalid": ProblemKind(403, "The signed URL was altered or is not one of ours"),
    "signature_expired": ProblemKind(403, "The signed URL has expired"),
    "not_found": ProblemKind(404, "Not found"),
    "job_not_found": ProblemKind(404, "There is no such job"),
    "task_type_not_found": ProblemKind(404, "There is no such task type"),
    "pipeline_not_found": ProblemKind(404, "There is no such pipeline"),
    "schedule_not_found": ProblemKind(404, "There is no such schedule"),
    "webhook_not_found": ProblemKind(404, "There is no such webhook"),
    "object_not_found": ProblemKind(404, "There is no such file"),
    "method_not_allowed": ProblemKind(405, "Method not allowed"),
    "too_slow": ProblemKind(408, "The request did not arrive in time"),
    "lease_lost": ProblemKind(409, "The lease on this job has ended"),
    "job_cancelled": ProblemKind(409, "The job was cancelled"),
    "already_finalized": ProblemKind(409, "The job has already ended under this lease"),
    "idempotency_conflict": ProblemKind(409, "The Idempotency-Key was used with another body"),
    "invalid_state": ProblemKind(409, "The job's state does not allow this"),
    "too_large": ProblemKind(413, "The body or the file is too large"),
    "validation": ProblemKind(422, "The request is not valid"),
    "source_not_allowed": ProblemKind(422, "Downloads from this host are not allowed"),
    "parent_not_found": ProblemKind(422, "The parent job does not exist"),
    "unknown_task_type": ProblemKind(422, "There is no such task type"),
    "output_mismatch": ProblemKind(422, "The uploaded outputs do not match the report"),
    "rate_limited": ProblemKind(429, "Too many requests"),
    "quota_exceeded": ProblemKind(429, "The quota of this caller is used up"),
    "internal": ProblemKind(500, "The server failed"),
    "unavailable": ProblemKind(503, "The service is unavailable"),
    "storage_full": ProblemKind(507, "The storage is full"),
}

# The body of all problems, for the OpenAPI document.
PROBLEM_SCHEMA: dict[str, object] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(KINDS)},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "message"],
                "properties": {
                    "pointer": {"type": "string"},
                    "message": {"type": "string"},
                    "nearest": {"type": "string"},
                    "allowed": {"type": "array"},
                },
            },
        },
    },
}


class ApiError(Exception):
    """Base class of the errors that this package raises on purpose."""


class ConfigurationError(ApiError):
    """The settings or the environment cannot be used. The message includes the remedy."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid place in a request body or query, as a JSON pointer and a sentence.

    `nearest`: the known name most similar to the given one. `allowed`: all allowed names or values. `unknown_key`: the
    key, if it is unknown.
    """

    pointer: str
    message: str
    nearest: str | None = None
    allowed: tuple[object, ...] = ()
    unknown_key: str | None = None

    def as_json(self) -> dict[str, object]:
        """Return an item of `errors`."""
        item: dict[str, object] = {"pointer": self.pointer, "message": self.message}
        if self.nearest is not None:
            item["nearest"] = self.nearest
        return item | ({"allowed": list(self.allowed)} if self.allowed else {})


def pointer_part(part: str | int) -> str:
    """Return one step of a JSON pointer (RFC 6901)."""
    return "/" + str(part).replace("~", "~0").replace("/", "~1")


def summary(errors: Sequence[FieldError]) -> str:
    """Return the first invalid places in one sentence."""
    return "; ".join(f"{error.pointer or 'body'}: {error.message}" for error in errors[:3])


class Problem(ApiError):  # noqa: N818  # RFC 9457 calls it a problem
    """A rejected request.

    Args:
        code: a key of `KINDS`.
        detail: a sentence for the caller: the error, then the remedy.
        errors: the invalid places of the request.
        headers: response headers, such as `Retry-After`.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    @property
    def kind(self) -> ProblemKind:
        """Return status and title of the code."""
        return KINDS[self.code]

    def as_json(self) -> dict[str, object]:
        """Return the body of `application/problem+json`."""
        body: dict[str, object] = {
            "type": f"urn:geo-jobs:problem:{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            body["errors"] = [error.as_json() for error in self.errors]
        return body


def validation_problem(pointer: str, message: str, detail: str | None = None) -> Problem:
    """Return the problem of one invalid field; `detail` defaults to the message."""
    return Problem("validation", detail or message, errors=[FieldError(pointer, message)])


def or_404(found: T | None, resource: str) -> T:
    """Return `found`, or raise the 404 of its resource. Missing resources and those of other owners look alike."""
    if found is None:
        raise Problem(f"{resource}_not_found", f"There is no such {resource}, or it is not yours.")
    return found
