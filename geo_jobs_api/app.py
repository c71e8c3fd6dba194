"""The application: its resources, its endpoints and its background loops."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from uuid_utils.compat import uuid7

from geo_jobs_api.claims.batching import STATEMENTS_IN_FLIGHT, Batcher
from geo_jobs_api.claims.dispatcher import ClaimDispatcher
from geo_jobs_api.claims.event_hub import EventHub
from geo_jobs_api.claims.listener import QueueListener
from geo_jobs_api.claims.waiting_room import WaitingRoom
from geo_jobs_api.claims.worker_registry import WorkerRegistry
from geo_jobs_api.config import Settings, load_settings
from geo_jobs_api.database import embedded
from geo_jobs_api.database.migrate import build_indexes, migrate
from geo_jobs_api.database.pool import Pool, open_pool
from geo_jobs_api.endpoints import files, monitoring, operators, pipelines, workers
from geo_jobs_api.endpoints import jobs as job_routes
from geo_jobs_api.endpoints import schedules as schedule_routes
from geo_jobs_api.endpoints import webhooks as webhook_routes
from geo_jobs_api.errors import PROBLEM_SCHEMA, ConfigurationError, Problem
from geo_jobs_api.hosts import parse_hosts
from geo_jobs_api.http import middleware
from geo_jobs_api.http.auth import TokenVerifier, WorkerVerifier, worker_token_sha256
from geo_jobs_api.http.health import HealthMonitor
from geo_jobs_api.http.server import tune_garbage_collection
from geo_jobs_api.http.services import Cached, Services, authorize
from geo_jobs_api.http.worker_calls import WorkerCalls
from geo_jobs_api.jobs.creation_store import CreationStore
from geo_jobs_api.jobs.submission import JobSubmission
from geo_jobs_api.limits import RateLimit
from geo_jobs_api.log import configure, get_logger
from geo_jobs_api.maintenance.dependents import release_periodically
from geo_jobs_api.maintenance.rescuer import RescuePolicy, Rescuer
from geo_jobs_api.maintenance.retention import Retention, RetentionPolicy
from geo_jobs_api.maintenance.store import MaintenanceStore
from geo_jobs_api.periodic import background
from geo_jobs_api.pipelines.store import PipelineStore
from geo_jobs_api.queue.job_store import JobStore
from geo_jobs_api.queue.lease_store import LeaseStore
from geo_jobs_api.queue.operator_store import OperatorStore
from geo_jobs_api.queue.rules import JobState
from geo_jobs_api.queue.settings_store import record_settings
from geo_jobs_api.schedules.scheduler import Scheduler
from geo_jobs_api.schedules.store import ScheduleStore
from geo_jobs_api.storage.local_storage import LocalStorage
from geo_jobs_api.storage.storage import Storage, UrlSigner
from geo_jobs_api.task_types.store import TaskTypeStore
from geo_jobs_api.webhooks.content import WebhookBuilder
from geo_jobs_api.webhooks.deliver import Deliverer, output_links
from geo_jobs_api.webhooks.http_post import WebhookClient
from geo_jobs_api.webhooks.secrets import SecretCipher
from geo_jobs_api.webhooks.store import WebhookStore

_log = get_logger(__name__)
_DAY_SECONDS = 86_400.0
# Larger statements delay other reports for longer than they save.
_REPORTS_PER_STATEMENT = 200


@contextlib.asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[str]:
    """Yield the conninfo of the configured database, or of the embedded one, with an up-to-date schema."""
    async with contextlib.AsyncExitStack() as stack:
        conninfo = settings.conninfo
        if conninfo is None:
            server = await asyncio.to_thread(embedded.start, settings.postgres_dir)
            stack.push_async_callback(asyncio.to_thread, server.close)
            conninfo = server.conninfo
        await migrate(conninfo, settings.database_pooling)
        await build_indexes(settings.listen_conninfo or conninfo)
        yield conninfo


@contextlib.asynccontextmanager
async def services(settings: Settings) -> AsyncIterator[Services]:
    """Yield everything that the endpoints need, with the background loops running."""
    async with contextlib.AsyncExitStack() as stack:
        conninfo = await stack.enter_async_context(database(settings))
        timeout, pooling = settings.database_timeout_seconds, settings.database_pooling
        pool = await stack.enter_async_context(
            open_pool(conninfo, size=settings.database_pool_size, wait_seconds=timeout, pooling=pooling)
        )
        pool.share()
        # PostgreSQL takes longer to plan a claim than to run it. At most three kinds of batches share these.
        batched = await stack.enter_async_context(
            open_pool(conninfo, size=2 * STATEMENTS_IN_FLIGHT, wait_seconds=timeout, keep_plans=True, pooling=pooling)
        )
        storage = local_storage(settings)
        jobs, leases, maintenance, room = (
            JobStore(pool),
            LeaseStore(pool, batched),
            MaintenanceStore(pool),
            WaitingRoom(),
        )
        operator_store = OperatorStore(pool, settings.lease_seconds)
        creation, schedules, webhooks = CreationStore(pool), ScheduleStore(pool), WebhookStore(pool)
        wake_events = {"geo_jobs_schedules": asyncio.Event(), "geo_jobs_deliveries": asyncio.Event()}
        scheduler = Scheduler(
            schedules,
            settings.sources_allowed,
            wake_events["geo_jobs_schedules"],
            max_open=settings.max_open_jobs_per_caller,
        )
        container = Services(
            settings=settings,
            jobs=jobs,
            creation=creation,
            submission=JobSubmission(creation, settings),
            pipelines=PipelineStore(pool),
            schedules=schedules,
            scheduler=scheduler,
            webhooks=webhooks,
            webhook_builder=webhook_builder(settings),
            leases=leases,
            dispatcher=ClaimDispatcher(leases, room),
            completions=Batcher("completions", leases.complete_jobs, max_weight=_REPORTS_PER_STATEMENT),
            renewals=Batcher("renewals", leases.renew_leases, max_weight=_REPORTS_PER_STATEMENT),
            maintenance=maintenance,
            task_types=TaskTypeStore(pool),
            operator_store=operator_store,
            retention=retention(settings, pool, storage),
            worker_registry=WorkerRegistry(operator_store, clock=time.monotonic),
            storage=storage,
            jwt_verifier=TokenVerifier(settings),
            workers=WorkerVerifier(jobs, time.monotonic),
            room=room,
            requests=_request_limit(settings),
            open_jobs=Cached(maintenance.count_open_jobs, settings.metrics_seconds, time.monotonic),
            hub=EventHub(jobs, settings.events_interval_seconds),
            vitals=HealthMonitor(
                maintenance,
                storage,
                vacuum_warning_seconds=settings.vacuum_warning_seconds,
                max_file_size=settings.max_file_size,
            ),
        )
        await record_settings(pool, settings)
        await _apply_task_types(settings, container.task_types)
        if settings.worker_auth_token is not None:
            token = settings.worker_auth_token.get_secret_value()
            await jobs.add_worker_token(uuid7(), "WORKER_AUTH_TOKEN", worker_token_sha256(token))
        listener = QueueListener(
            room,
            maintenance,
            settings.listen_conninfo or conninfo,
            backstop_seconds=settings.backstop_seconds,
            listen_check_seconds=settings.listen_check_seconds,
            wake_events=wake_events,
        )
        client = await stack.enter_async_context(WebhookClient(parse_hosts(settings.webhook_hosts)))
        deliverer = _deliverer(settings, webhooks, client, storage, wake_events["geo_jobs_deliveries"])
        releases = release_periodically(
            maintenance, interval_seconds=settings.rescue_interval_seconds, rest_seconds=settings.rescue_rest_seconds
        )
        loops = {
            "listener": listener.run,
            "events": container.hub.run,
            "rescuer": _rescuer(settings, maintenance).run,
            "dependents": releases.run,
            "schedules": scheduler.run,
            "deliveries": deliverer.run,
            "retention": container.retention.run,
            "worker registry": container.worker_registry.run,
        }
        await stack.enter_async_context(background(loops))
        yield container


async def _apply_task_types(settings: Settings, task_types: TaskTypeStore) -> None:
    try:
        await task_types.apply_environment(settings.task_types)
    except Problem as problem:
        places = "; ".join(f"{error.pointer}: {error.message}" for error in problem.errors)
        raise ConfigurationError(f"TASK_TYPES cannot be used. {places or problem.detail}") from problem


def local_storage(settings: Settings) -> LocalStorage:
    """Return the object store, ready for use, or raise ConfigurationError."""
    if settings.storage_secret is None:
        raise ConfigurationError("STORAGE_SECRET is missing. Set it.")
    storage = LocalStorage(
        settings.object_dir, UrlSigner(settings.storage_secret.get_secret_value().encode(), time.time)
    )
    try:
        storage.prepare()
    except OSError as error:
        raise ConfigurationError(
            f"The object store cannot use {error.filename}: {error.strerror}. Check DATA_DIR."
        ) from error
    return storage


def webhook_builder(settings: Settings) -> WebhookBuilder:
    """Return the builder of webhooks, which checks them and encrypts their secrets."""
    return WebhookBuilder(parse_hosts(settings.webhook_hosts), _cipher(settings))


def _cipher(settings: Settings) -> SecretCipher:
    if settings.storage_secret is None:
        raise ConfigurationError("STORAGE_SECRET is missing. Set it.")
    return SecretCipher(settings.storage_secret.get_secret_value().encode())


def _deliverer(
    settings: Settings, webhooks: WebhookStore, client: WebhookClient, storage: Storage, wake: asyncio.Event
) -> Deliverer:
    base_url = settings.api_public_url

    def sign_get(key: str) -> str:
        return storage.sign_get(base_url or "", key, settings.signed_url_seconds).url

    return Deliverer(
        webhooks,
        client,
        _cipher(settings),
        # No request is at hand here that shows the public address of the API.
        links=output_links(None if base_url is None else sign_get),
        per_second=settings.webhook_deliveries_per_second,
        wake=wake,
    )


def _rescuer(settings: Settings, maintenance: MaintenanceStore) -> Rescuer:
    policy = RescuePolicy(
        interval_seconds=settings.rescue_interval_seconds,
        rest_seconds=settings.rescue_rest_seconds,
        grace_seconds=settings.effective_rescue_grace,
        max_worker_losses=settings.max_worker_losses,
        # The worker gets it with the next heartbeat. Then it has its grace, and one more heartbeat.
        cancel_overdue_seconds=settings.cancel_grace_seconds + 2 * settings.heartbeat_seconds,
        timeout_grace_seconds=settings.timeout_grace_seconds if settings.enable_job_timeouts else None,
    )
    return Rescuer(maintenance, policy, clock=time.monotonic)


def retention(settings: Settings, pool: Pool, storage: Storage) -> Retention:
    """Return the retention loop with the periods of the settings."""
    days = {
        JobState.SUCCEEDED: settings.retain_ended_days,
        JobState.CANCELLED: settings.retain_ended_days,
        JobState.FAILED: settings.retain_failed_days,
    }
    policy = RetentionPolicy(
        ended_seconds={state: number * _DAY_SECONDS for state, number in days.items() if number},
        unused_seconds=settings.retain_unused_days * _DAY_SECONDS or None,
        interval_seconds=settings.cleanup_interval_seconds,
        renewal_seconds=settings.webhook_renewal_days * _DAY_SECONDS or None,
    )
    return Retention(pool, storage, policy)


def _request_limit(settings: Settings) -> RateLimit | None:
    if not settings.requests_per_minute:
        return None
    # A browser page sends several requests at once.
    burst = max(1, settings.requests_per_minute // 4)
    return RateLimit(settings.requests_per_minute / 60, burst, time.monotonic)


def create_app(settings: Settings) -> FastAPI:
    """Return the ASGI application for these settings. Its startup opens the database."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Callable[[], None]]]:
        async with services(settings) as container:
            app.state.services = container
            _log.info("api_started", version=monitoring.program_version(), embedded=settings.conninfo is None)
            tune_garbage_collection()
            yield {"drain": container.drain}
            container.drain()
        _log.info("api_stopped")

    app = FastAPI(
        title="Geo jobs",
        version=monitoring.program_version(),
        description="Turns uploaded GeoTIFFs into pictures that a web map and a desktop GIS can both place.",
        lifespan=lifespan,
        # The framework's page loads scripts from a public CDN.
        docs_url=None,
        redoc_url=None,
        # A route of this package adds the payloads of the task types.
        openapi_url=None,
        # Otherwise the framework documents validation errors in its own format.
        responses={
            "4XX": {"description": "Rejected", "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}}},
            "5XX": {"description": "Unavailable", "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}}},
        },
    )
    app.add_middleware(WorkerCalls, routes=workers.router.routes)
    middleware.install(app, authorize)
    # Routes are tried in this order.
    for router in (
        files.router,
        workers.router,
        job_routes.router,
        pipelines.router,
        schedule_routes.router,
        webhook_routes.router,
        monitoring.router,
        operators.router,
    ):
        app.include_router(router)
    return app


def from_environment() -> FastAPI:
    """Return the application for the environment's settings. ASGI servers import this."""
    settings = load_settings()
    configure(settings.log_level)
    return create_app(settings)
