"""The five calls of the wire protocol, and the error for each answer."""

import asyncio
import contextlib
import dataclasses
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from geoprocessing_worker.errors import ApiError, LeaseExpired, LeaseLost, Rejected, TokenRefused, Unavailable
from geoprocessing_worker.wire import retry
from geoprocessing_worker.wire.contact import Contact
from geoprocessing_worker.wire.messages import (
    ClaimAnswer,
    ClaimRequest,
    CompleteAnswer,
    Completion,
    FailAnswer,
    Failure,
    Heartbeat,
    LeaseAnswer,
    Progress,
    WireModel,
)
from geoprocessing_worker.wire.retry import Policy

Answer = TypeVar("Answer", bound=BaseModel)

JSON = {"Content-Type": "application/json"}
JOBS = "/api/internal/geo-jobs"
CLAIM = f"{JOBS}/claim"


class HeldJob(Protocol):
    """The fields of a job that a call uses."""

    @property
    def job_id(self) -> str:
        """The job's id."""

    @property
    def token(self) -> SecretStr:
        """The lease token."""

    def remaining(self) -> float:
        """Return the seconds for which calls are still useful."""


class JobApi:
    """The API, as one worker uses it.

    Every method raises `TokenRefused`, `LeaseLost` or `Rejected` at once, and `Unavailable` when the policy of the call
    is exhausted.

    Args:
        http: a client with the API's base URL.
        token: of the worker.
    """

    def __init__(self, http: httpx.AsyncClient, token: SecretStr) -> None:
        self._http = http
        self._token = token
        self.contact = Contact(http.base_url)

    async def claim(self, request: ClaimRequest) -> ClaimAnswer | None:
        """Return up to `max_jobs` jobs, or None after the wait. A lost reply is repeated with the same claim id."""
        seconds = retry.CLAIM.try_timeout + request.wait_seconds
        # The time that the API parks the claim does not count.
        policy = dataclasses.replace(retry.CLAIM, patience=retry.CLAIM.patience + request.wait_seconds)

        async def once() -> ClaimAnswer | None:
            response = await self._send("POST", CLAIM, request, {}, seconds)
            return None if response.status_code == httpx.codes.NO_CONTENT else _read(response, ClaimAnswer)

        return await retry.persist(policy, once)

    async def report_trouble(self, request: ClaimRequest) -> None:
        """Send a claim of no jobs with this worker's trouble, if the API announces this extension.

        Raises:
            ApiError: any. Nothing depends on the report.
        """
        if "trouble" not in (self.contact.extensions or ()):
            # Any answer here announces the extensions and has a Date, and a GET claims nothing on any server.
            with contextlib.suppress(Rejected, LeaseLost):
                await self._send("GET", CLAIM, None, {}, retry.CLAIM.try_timeout)
        if "trouble" in (self.contact.extensions or ()):
            await self._send("POST", CLAIM, request, {}, retry.CLAIM.try_timeout)

    async def heartbeat(
        self, job: HeldJob, wait_seconds: float = 0, *, policy: Policy = retry.HEARTBEAT
    ) -> LeaseAnswer:
        """Renew the lease. The API may hold its answer for `wait_seconds`, unless the job is cancelled."""
        body = Heartbeat(wait_seconds=wait_seconds) if wait_seconds > 0 else None
        policy = dataclasses.replace(policy, try_timeout=policy.try_timeout + wait_seconds)
        return await self._on_job("heartbeat", job, body, LeaseAnswer, policy)

    async def progress(self, job: HeldJob, progress: Progress) -> LeaseAnswer:
        """Report progress, which renews the lease too."""
        return await self._on_job("progress", job, progress, LeaseAnswer, retry.HEARTBEAT)

    async def complete(self, job: HeldJob, completion: Completion, *, policy: Policy = retry.REPORT) -> CompleteAnswer:
        """Report the results. Idempotent."""
        return await self._on_job("complete", job, completion, CompleteAnswer, policy)

    async def fail(self, job: HeldJob, failure: Failure, *, policy: Policy = retry.REPORT) -> FailAnswer:
        """Report a failure. Idempotent."""
        return await self._on_job("fail", job, failure, FailAnswer, policy)

    async def _on_job(
        self, verb: str, job: HeldJob, body: WireModel | None, answer: type[Answer], policy: Policy
    ) -> Answer:
        headers = {"Lease-Token": job.token.get_secret_value()}

        async def once() -> Answer:
            if job.remaining() <= 0:
                raise LeaseExpired("the lease has expired, so nothing more may be sent for this job")
            response = await self._send("PATCH", f"{JOBS}/{job.job_id}/{verb}", body, headers, policy.try_timeout)
            return _read(response, answer)

        return await retry.persist(policy, once, remaining=job.remaining)

    async def _send(
        self, method: str, path: str, body: WireModel | None, headers: dict[str, str], seconds: float
    ) -> httpx.Response:
        authorization = {"Authorization": f"Worker {self._token.get_secret_value()}"}
        # Secrets are unmasked only in headers, so a body never contains one.
        content = (
            b""
            if method == "GET"
            else b"{}"
            if body is None
            else body.model_dump_json(by_alias=True, exclude_none=True).encode()
        )
        seconds += len(content) / retry.SLOWEST_LINK
        try:
            # httpx counts from byte to byte, so a server could send single bytes forever.
            async with asyncio.timeout(seconds):
                response = await self._http.request(
                    method,
                    path,
                    content=content,
                    headers=headers | authorization | JSON,
                    timeout=seconds,
                )
        except (httpx.HTTPError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {error}"
            self.contact.note_failure(reason)
            raise Unavailable("no_connection", reason) from None
        if response.is_success:
            self.contact.note_answer(response, None, at_claim=path == CLAIM)
            return response
        problem = _problem(response)
        self.contact.note_answer(response, problem.get("code"), at_claim=path == CLAIM)
        raise _error(response, problem)


def _read(response: httpx.Response, answer: type[Answer]) -> Answer:
    try:
        return answer.model_validate_json(response.content)
    except ValidationError:
        # From a proxy or a captive portal, so the effect of the call is unknown.
        raise Unavailable("unreadable_answer", f"a {response.status_code} without the expected content") from None


def _error(response: httpx.Response, problem: dict[str, Any]) -> ApiError:
    status = response.status_code
    code = str(problem.get("code") or f"http_{status}")
    message = str(problem.get("detail") or problem.get("title") or response.reason_phrase)[:2000]
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return TokenRefused(code, message)
    # A bare 404 or 409 comes from a proxy or a wrong address. Only the API's own problem code ends a job.
    if status in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT) and problem.get("code"):
        return LeaseLost(code, message)
    if status in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return Unavailable(code, message, _retry_after(response))
    # 507 for a report with results in it: another attempt would get the same answer.
    is_refusal = httpx.codes.is_client_error(status) or status == httpx.codes.INSUFFICIENT_STORAGE
    if is_refusal and status not in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
        return Rejected(code, message)
    words = message if is_refusal or httpx.codes.is_server_error(status) else f"an unexpected {status}"
    return Unavailable(code, words)


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
