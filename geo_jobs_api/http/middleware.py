"""Middleware: JSON bodies of bounded size, errors as problem details, one log record and count per response."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geo_jobs_api.database.sessions import ReadOnlyError
from geo_jobs_api.errors import KINDS, Problem, summary
from geo_jobs_api.fields import field_errors
from geo_jobs_api.log import get_logger
from geo_jobs_api.queue.metrics import REQUEST_SECONDS, REQUESTS

_log = get_logger("geo_jobs_api.access")

MAX_JSON_BYTES = 1024 * 1024
# Time limit of a JSON body: this many seconds, plus its size at this rate, as for files. It ends slow-body attacks.
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 10_000
_SINGLE_HEADERS = frozenset({b"host", b"authorization", b"lease-token", b"idempotency-key"})
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._~-]*)(?::[0-9]{0,5})?")
_ON_EVERY_ANSWER = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
# Responses of this path carry the header for workers, with any method and status.
_CLAIM_PATH = "/api/internal/geo-jobs/claim"
_EXTENSIONS = (b"worker-extensions", b"capabilities, trouble")
_CODE_OF_STATUS = {404: "not_found", 408: "too_slow", 405: "method_not_allowed", 413: "too_large", 400: "validation"}
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
# Errors of a lost, refused or stalled connection. The pool reconnects by itself.
_OUTAGES = (
    psycopg.OperationalError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
)


def problem_response(problem: Problem) -> Response:
    """Return the response of a problem."""
    return Response(
        json.dumps(problem.as_json(), ensure_ascii=False).encode(errors="replace"),
        status_code=problem.kind.status,
        headers=problem.headers,
        media_type="application/problem+json",
    )


class _RejectedBeforeBodyError(HTTPException):
    """Carries a problem through the framework's body reading, which passes on only this class."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(500)
        self.reason = reason


class JsonBodyMiddleware:
    """Reads bodies below `/api` as JSON with any Content-Type, up to 1 MiB.

    `curl -d` sends `application/x-www-form-urlencoded` by default. The token is checked before the first byte of a
    body is read, so unauthenticated bodies use no memory.

    Args:
        authorize: raises when the sender may not use the API.
    """

    def __init__(self, app: ASGIApp, authorize: Callable[[Request], Awaitable[object]]) -> None:
        self._app = app
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
        length = next((value for name, value in kept if name.lower() == b"content-length"), b"0")
        if length.isdigit() and int(length) > MAX_JSON_BYTES:
            problem = Problem("too_large", f"A JSON body may have at most {MAX_JSON_BYTES} bytes.")
            await problem_response(problem)(scope, receive, send)
            return
        # In place, since the router reports the matched route through the same dictionary.
        scope["headers"] = [*kept, (b"content-type", b"application/json")]
        announced = int(length) if length.isdigit() else 0
        bounded = _bounded(receive, BODY_SECONDS + announced / BODY_BYTES_PER_SECOND)
        await self._app(scope, self._authorized(scope, bounded), send)

    def _authorized(self, scope: Scope, receive: Receive) -> Receive:
        is_authorized = False

        async def receive_authorized() -> Message:
            nonlocal is_authorized
            if not is_authorized:
                try:
                    await self._authorize(Request(scope))
                except Exception as error:
                    raise _RejectedBeforeBodyError(error) from error
                is_authorized = True
            return await receive()

        return receive_authorized


def _bounded(receive: Receive, seconds: float) -> Receive:
    seen = 0
    is_whole = False
    deadline: float | None = None

    async def receive_bounded() -> Message:
        nonlocal seen, is_whole, deadline
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds if deadline is None else deadline
        try:
            # After the body comes only the disconnect message, which has no time limit.
            async with asyncio.timeout_at(None if is_whole else deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"The body did not arrive within {seconds:.0f} s.") from None
        seen += len(message.get("body", b""))
        is_whole = is_whole or not message.get("more_body", False)
        if seen > MAX_JSON_BYTES:
            # The framework's body reading passes on only this class.
            raise HTTPException(413, f"A JSON body may have at most {MAX_JSON_BYTES} bytes.")
        return message

    return receive_bounded


def _fault_of_head(scope: Scope) -> str | None:
    """Return why a request's head is ambiguous, or None.

    A proxy may read the other one of two equal headers (RFC 9112 §3.2 for Host).
    """
    counts = Counter(name for name, _ in scope["headers"] if name in _SINGLE_HEADERS)
    for name, count in counts.items():
        if count > 1:
            return f"There is more than one {name.decode().title()} header."
    if not counts[b"host"]:
        return None if scope.get("http_version") == "1.0" else "The Host header is missing."
    host = next(value for name, value in scope["headers"] if name == b"host")
    return None if _HOST.fullmatch(host) else "The Host header is not a host name or address with an optional port."


class AccessMiddleware:
    """Writes one log record and one count per response. Unexpected exceptions become a problem without details.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        status = 0
        fault = _fault_of_head(scope)

        async def send_recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *_ON_EVERY_ANSWER]
                message = {**message, "headers": [*headers, _EXTENSIONS] if scope["path"] == _CLAIM_PATH else headers}
            await send(message)

        try:
            if fault is None:
                await self._app(scope, receive, send_recorded)
            else:
                problem = Problem("bad_request", fault, headers={"Connection": "close"})
                await problem_response(problem)(scope, receive, send_recorded)
        except ClientDisconnect:
            # The client has disconnected. nginx uses the same number.
            status = 499
        except Exception:
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:
                # Part of the response is sent. Only a broken connection shows the failure.
                raise
            problem = Problem("internal", "The server failed unexpectedly. Its log has the details.")
            await problem_response(problem)(scope, receive, send_recorded)
        finally:
            self._record(scope, status, self._clock() - started)

    @staticmethod
    def _record(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        REQUESTS.labels(scope["method"], route, str(status)).inc()
        if not route.endswith(("/claim", "/events")):
            REQUEST_SECONDS.labels(scope["method"], route).observe(seconds)
        # Only the path, since queries contain signatures.
        _log.info(
            "request", method=scope["method"], path=scope["path"], status=status, milliseconds=round(seconds * 1000, 1)
        )


def problem_of(error: Exception) -> Problem | None:
    """Return what the caller learns of an exception. None: the server failed unexpectedly."""
    if isinstance(error, _RejectedBeforeBodyError):
        return problem_of(error.reason)
    if isinstance(error, HTTPException):
        code = _CODE_OF_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "validation")
        return Problem(code, f"{KINDS[code].title}.", headers=error.headers)
    if isinstance(error, _OUTAGES):
        _log.error("database_unavailable", reason=type(error).__name__)
        trouble = "is read-only now" if isinstance(error, ReadOnlyError) else "cannot be reached"
        return Problem("unavailable", f"The database {trouble}. Try again.", headers={"Retry-After": "1"})
    return error if isinstance(error, Problem) else None


async def _on_error(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem is None:
        raise error
    if isinstance(error, HTTPException) and problem.code == "method_not_allowed":
        problem.headers["Allow"] = ", ".join(_methods_at(request))
    return problem_response(problem)


def _methods_at(request: Request) -> list[str]:
    """Return the methods of all routes at this address. The framework reports those of the first route only."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


async def _on_invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = field_errors({**item, "loc": _place(item["loc"])} for item in error.errors())
    return problem_response(Problem("validation", summary(errors), errors=errors))


def _place(location: Sequence[str | int]) -> Sequence[str | int]:
    return location[1:] if location[:1] == ("body",) else location


def install(app: FastAPI, authorize: Callable[[Request], Awaitable[object]]) -> None:
    """Add all middleware to an application, around the middleware it has. `authorize`: as in `JsonBodyMiddleware`."""
    app.add_middleware(JsonBodyMiddleware, authorize=authorize)
    app.add_middleware(AccessMiddleware)
    for kind in (Problem, HTTPException, *_OUTAGES):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
