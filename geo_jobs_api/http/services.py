"""The dependencies of the endpoints: one object per process, created at startup."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Generic, Protocol, TypeVar, cast
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from geo_jobs_api.claims.batching import Batcher
from geo_jobs_api.claims.dispatcher import ClaimDispatcher
from geo_jobs_api.claims.event_hub import EventHub
from geo_jobs_api.claims.waiting_room import WaitingRoom
from geo_jobs_api.claims.worker_registry import WorkerRegistry
from geo_jobs_api.config import Settings
from geo_jobs_api.errors import Problem
from geo_jobs_api.http.auth import ADMIN_SCOPE, TokenVerifier, WorkerVerifier
from geo_jobs_api.http.health import HealthMonitor
from geo_jobs_api.jobs.creation_store import CreationStore
from geo_jobs_api.jobs.submission import JobSubmission
from geo_jobs_api.limits import CALLER, RateLimit
from geo_jobs_api.maintenance.retention import Retention
from geo_jobs_api.maintenance.store import MaintenanceStore
from geo_jobs_api.pipelines.store import PipelineStore
from geo_jobs_api.queue.job_store import JobStore
from geo_jobs_api.queue.lease_records import Renewal
from geo_jobs_api.queue.lease_requests import Completion, LeaseRenewal
from geo_jobs_api.queue.lease_store import LeaseStore
from geo_jobs_api.queue.operator_records import OpenJobs
from geo_jobs_api.queue.operator_store import OperatorStore
from geo_jobs_api.queue.records import Caller, WorkerToken
from geo_jobs_api.queue.rules import JobState
from geo_jobs_api.schedules.store import Fire, ScheduleStore
from geo_jobs_api.storage.local_storage import LocalStorage
from geo_jobs_api.task_types.store import TaskTypeStore
from geo_jobs_api.webhooks.content import WebhookBuilder
from geo_jobs_api.webhooks.store import WebhookStore

T = TypeVar("T")
Completions = Batcher[Completion, JobState | None]


class ManualTrigger(Protocol):
    """Fires a schedule on request."""

    async def run_now(self, schedule_id: UUID) -> Fire | None:
        """Fire once. Return None when the schedule does not exist."""


class Cached(Generic[T]):
    """A value that is fetched at most every few seconds, for any number of callers.

    Args:
        fetch: fetches the value.
        seconds: maximum age.
        clock: monotonic seconds.
    """

    def __init__(self, fetch: Callable[[], Awaitable[T]], seconds: float, clock: Callable[[], float]) -> None:
        self._fetch, self._seconds, self._clock = fetch, seconds, clock
        self._latest: tuple[float, T] | None = None
        self._lock = asyncio.Lock()

    async def read(self) -> T:
        """Return the value, fetched by this call or an earlier one."""
        called_at = self._clock()
        async with self._lock:
            if self._latest is None or called_at - self._latest[0] >= self._seconds:
                started_at = self._clock()
                self._latest = started_at, await self._fetch()
            return self._latest[1]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that an endpoint may need."""

    settings: Settings
    jobs: JobStore
    creation: CreationStore
    submission: JobSubmission
    pipelines: PipelineStore
    schedules: ScheduleStore
    scheduler: ManualTrigger
    webhooks: WebhookStore
    webhook_builder: WebhookBuilder
    leases: LeaseStore
    dispatcher: ClaimDispatcher
    completions: Completions
    renewals: Batcher[LeaseRenewal, Renewal | None]
    maintenance: MaintenanceStore
    task_types: TaskTypeStore
    operator_store: OperatorStore
    retention: Retention
    worker_registry: WorkerRegistry
    storage: LocalStorage
    jwt_verifier: TokenVerifier
    workers: WorkerVerifier
    room: WaitingRoom
    open_jobs: Cached[list[OpenJobs]]
    hub: EventHub
    vitals: HealthMonitor
    requests: RateLimit | None = None
    monotonic: Callable[[], float] = time.monotonic

    def drain(self) -> None:
        """Release all parked requests, and park no others."""
        self.room.drain()
        self.hub.drain()


def services_of(request: Request) -> Services:
    """Return the services of this process."""
    return cast("Services", request.app.state.services)


def base_url_of(request: Request) -> str:
    """Return the base of signed URLs: the configured one, or the address that the caller used."""
    configured = services_of(request).settings.api_public_url
    return configured or str(request.base_url).rstrip("/")


# These two only document the header. The code below reads it.
_bearer = HTTPBearer(auto_error=False, description="A JSON Web Token.")
_worker_header = APIKeyHeader(name="Authorization", scheme_name="Worker", auto_error=False, description="Worker TOKEN")


async def authorize(request: Request) -> None:
    """Check the token of a request below `/api`, or raise a Problem."""
    if request.scope["path"].startswith("/api/internal/"):
        await _worker(request)
    else:
        await _caller(request)


async def _caller(request: Request) -> Caller:
    # Checked once per request: before its body is read, or by the endpoint if it has none.
    known = cast("Caller | None", request.scope.get("geo_jobs.caller"))
    if known is None:
        services = services_of(request)
        known = await services.jwt_verifier.verify(request.headers.get("authorization"))
        if services.requests is not None:
            services.requests.take(known.subject)
        request.scope["geo_jobs.caller"] = known
    CALLER.set(known.subject)
    return known


async def _worker(request: Request) -> WorkerToken:
    known = cast("WorkerToken | None", request.scope.get("geo_jobs.worker"))
    if known is None:
        known = await services_of(request).workers.verify(request.headers.get("authorization"))
        request.scope["geo_jobs.worker"] = known
    return known


async def caller_of(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
    """Return the person behind the request, or raise a Problem."""
    return await _caller(request)


async def worker_of(request: Request, _: Annotated[object, Security(_worker_header)]) -> WorkerToken:
    """Return the worker behind the request, or raise a Problem."""
    return await _worker(request)


async def admin_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """Return the administrator behind the request, or raise Problem `not_allowed`."""
    if not caller.is_admin:
        raise Problem("not_allowed", f"This requires a token with the scope {ADMIN_SCOPE}.")
    return caller


# All dependencies are coroutines. The framework runs plain functions in a thread, at 0.5 ms each.
async def _services(request: Request) -> Services:
    return services_of(request)


async def _base_url(request: Request) -> str:
    return base_url_of(request)


ServicesOf = Annotated[Services, Depends(_services)]
BaseUrl = Annotated[str, Depends(_base_url)]
CallerOf = Annotated[Caller, Depends(caller_of)]
