"""The service behind PgBouncer in both modes. Debian's package `pgbouncer` has the program."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from pydantic import SecretStr, ValidationError

from geo_jobs_api.config import Settings
from geo_jobs_api.database.migrate import migrate
from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.database.sessions import Pooling
from geo_jobs_api.errors import ConfigurationError
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, rows
from tests.support.database import DatabaseServer
from tests.support.pgbouncer import PGBOUNCER, pgbouncer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
ROLE_SETTINGS = ("statement_timeout = '15s'", "idle_in_transaction_session_timeout = '15s'", "timezone = 'UTC'")


@pytest.fixture
def role_url(postgres: DatabaseServer, postgres_url: str) -> str:
    """A database and a role with the settings that transaction pooling requires."""
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    for setting in ROLE_SETTINGS:
        postgres.execute(f"ALTER ROLE postgres IN DATABASE {name} SET {setting}")
    return postgres_url


@pytest.fixture
def transaction_api(role_url: str, api_server: Callable[..., RunningApi]) -> Iterator[RunningApi]:
    """An API behind transaction pooling with fewer server sessions than connections."""
    with pgbouncer(role_url, "transaction", pool_size=4) as url:
        api = api_server(database_url=url, database_pooling="transaction", database_listen_url=SecretStr(role_url))
        yield api
        api.stop()


def test_jobs_go_through_transaction_pooling(transaction_api: RunningApi, role_url: str) -> None:
    """Sixteen concurrent callers and workers with a limited task type: every job runs once, within the limit."""
    rows(role_url, "UPDATE task_types SET max_concurrent_runs = 3 WHERE name = 'geotiff_to_png'")

    def submit(number: int) -> str:
        return Person(transaction_api, f"caller-{number}").submit()

    def work(number: int) -> list[str]:
        worker, done = Worker(transaction_api, f"worker-{number}"), []
        while jobs := worker.claim_all(waitSeconds=2):
            assert rows(role_url, "SELECT count(*) FROM jobs WHERE state = 'running'")[0]["count"] <= 3
            worker.heartbeat(jobs[0])
            worker.complete(jobs[0]).raise_for_status()
            done.append(jobs[0]["id"])
        return done

    with ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(submit, range(32)))
        done = [job_id for ids in threads.map(work, range(16)) for job_id in ids]
    assert sorted(done) == sorted(ids)
    health = transaction_api.client().get("/health")
    assert health.json()["status"] == "ok"


def test_transaction_pooling_wakes_claims_by_the_direct_connection(transaction_api: RunningApi) -> None:
    """With a backstop of five seconds, a parked claim gets a new job well within one."""
    worker = Worker(transaction_api)
    assert worker.claim_all(waitSeconds=0.1) == []
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(worker.claim_all, waitSeconds=20)
        wait_until(lambda: transaction_api.parked == 1, "the claim to be parked")
        person = Person(transaction_api)
        began = time.monotonic()
        job_id = person.submit()
        assert [job["id"] for job in waiting.result(timeout=20)] == [job_id]
        assert time.monotonic() - began < 2


def test_transaction_pooling_without_its_setting_is_rejected_at_startup(postgres_url: str) -> None:
    """Otherwise prepared statements and settings would leak into other sessions."""
    with pgbouncer(postgres_url, "transaction") as url, pytest.raises(ConfigurationError, match="DATABASE_POOLING"):
        asyncio.run(migrate(url))


def test_transaction_pooling_is_rejected_while_the_role_has_no_timeout(postgres_url: str) -> None:
    """The message contains the statement to run, since a hanging statement would have no other limit."""
    with (
        pgbouncer(postgres_url, "transaction") as url,
        pytest.raises(ConfigurationError, match="ALTER ROLE postgres SET statement_timeout = '15s'"),
    ):
        asyncio.run(migrate(url, "transaction"))


@pytest.mark.parametrize("missing", ["database_listen_url", "database_url"])
def test_transaction_pooling_needs_a_direct_address_to_listen(missing: str) -> None:
    """LISTEN has no effect in a session that changes with each transaction."""
    urls = {"database_url": SecretStr("host=a"), "database_listen_url": SecretStr("host=b")}
    del urls[missing]
    with pytest.raises(ValidationError, match="DATABASE_LISTEN_URL"):
        Settings(_env_file=None, database_pooling="transaction", **urls)  # type: ignore[arg-type]


async def show(url: str, name: str, pooling: Pooling = "session") -> str:
    async with open_pool(url, size=1, wait_seconds=10, pooling=pooling) as pool, pool.connection() as connection:
        row = await (await connection.execute(f"SHOW {name}".encode())).fetchone()
    assert row is not None
    return str(next(iter(row.values())))


async def test_session_pooling_keeps_the_statement_timeout(postgres_url: str) -> None:
    """PgBouncer accepts no startup options, so the timeouts are set after connecting."""
    with pgbouncer(postgres_url, "session") as url:
        assert await show(url, "statement_timeout") == "15s"
        assert await show(url, "idle_in_transaction_session_timeout") == "15s"
        assert await show(url, "timezone") == "UTC"


async def test_transaction_pooling_has_the_statement_timeout_of_the_role(role_url: str) -> None:
    """Every server session has it, whatever client used the session before."""
    with pgbouncer(role_url, "transaction") as url:
        assert await show(url, "statement_timeout", "transaction") == "15s"


def test_a_job_goes_through_session_pooling(postgres_url: str, api_server: Callable[..., RunningApi]) -> None:
    """Without any setting, LISTEN included, with the minimum of server sessions of one process."""
    with pgbouncer(postgres_url, "session", pool_size=4) as url:
        api = api_server(database_url=url, database_pool_size=2)
        person, worker = Person(api), Worker(api)
        job_id = person.submit()
        job = worker.claim(waitSeconds=10)
        worker.complete(job).raise_for_status()
        assert person.look(job_id)["state"] == "succeeded"
        api.stop()
