"""A read-only, silent or busy database is an outage: 503, an accurate `/health`, and automatic recovery."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from geo_jobs_api.database import embedded, sessions
from geo_jobs_api.database.migrate import migrate
from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.log import OutageLog
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of, rows
from tests.support.database import DatabaseServer
from tests.support.proxy import SilentProxy, silent_proxy
from tests.support.waiting import wait_until

END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'geo-jobs%%' AND datname = %s AND pid <> pg_backend_pid()"
)


def health(api: RunningApi) -> tuple[int, dict[str, str], float]:
    """Status and body of `/health`, and its duration in seconds."""
    began = time.monotonic()
    answer = api.client().get("/health")
    return answer.status_code, answer.json(), time.monotonic() - began


@contextlib.contextmanager
def read_only(postgres: DatabaseServer, url: str) -> Iterator[None]:
    """New sessions of this database are read-only during the block. The API's sessions are ended at its start."""
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        rows(postgres.server.conninfo, END_SESSIONS, name)
        yield
    finally:
        postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


def test_a_read_only_database_is_an_outage_and_the_service_recovers_by_itself(
    api_server: Callable[..., RunningApi],
    postgres: DatabaseServer,
    postgres_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writes get 503 with Retry-After and no traceback, `/health` is 503, reads work. Recovery needs no help."""
    caplog.set_level("INFO")
    failures: list[str] = []
    note_failure = OutageLog.failed

    def failed(log: OutageLog, error: BaseException) -> None:
        failures.append(log._event)
        note_failure(log, error)

    monkeypatch.setattr(OutageLog, "failed", failed)
    api = api_server(listen_check_seconds=1)
    person, worker = Person(api), Worker(api)
    job_id = person.submit()
    with read_only(postgres, postgres_url):
        wait_until(lambda: health(api)[1]["database"] == "read-only", "an honest health")
        for _ in range(5):
            status, body, _ = health(api)
            assert (status, body["status"], body["database"]) == (503, "unhealthy", "read-only")
            refused = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {}})
            assert (code_of(refused), refused.headers["retry-after"]) == ((503, "unavailable"), "1")
            claim = worker.http.post("/claim", json=worker.claim_request())
            assert code_of(claim) == (503, "unavailable")
        assert person.look(job_id)["state"] == "queued"
        seen = len(failures)
        wait_until(lambda: failures[seen:].count("rescue_failed") >= 3, "three more failures of the rescuer")
    # No session is ended from here on. The pool itself has left the read-only ones.
    wait_until(lambda: health(api)[0] == 200, "the service to be healthy again")
    assert worker.claim(waitSeconds=20)["id"] == job_id
    person.create()

    def rescuer_said() -> list[bool]:
        return ["outage_over" in str(record.msg) for record in caplog.records if "rescue_failed" in str(record.msg)]

    wait_until(lambda: rescuer_said()[-1:] == [True], "the rescuer to note the end")
    # Once for the ended sessions, possibly, and once for the rest.
    assert rescuer_said() in ([False, True], [False, True] * 2)
    assert not [record for record in caplog.records if record.exc_info or "request_failed" in str(record.msg)]


def test_a_service_is_not_started_on_a_read_only_database(postgres: DatabaseServer, postgres_url: str) -> None:
    """The message is one sentence, so that a supervisor retries."""
    with read_only(postgres, postgres_url), pytest.raises(ConfigurationError, match="read-only"):
        asyncio.run(migrate(postgres_url))


@pytest.mark.parametrize(
    "code", ["53100", "53200", "53300", "57P01", "57P02", "57P03", "58030", "25P03", "25006", "08006", "40001"]
)
def test_trouble_of_the_database_itself_is_an_outage(
    api: RunningApi, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """A full disk, no memory, a shutdown and similar errors of PostgreSQL: 503, one log line, no traceback."""
    url = api.settings.conninfo or ""
    rows(url, f"CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {RAISE} '{code}'; END $$")
    try:
        rows(url, "CREATE TRIGGER trouble BEFORE INSERT ON jobs EXECUTE FUNCTION trouble()")
        refused = Person(api).http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {}})
    finally:
        rows(url, "DROP FUNCTION trouble CASCADE")
    assert (code_of(refused), refused.headers["retry-after"]) == ((503, "unavailable"), "1")
    logged = [record for record in caplog.records if "database_unavailable" in str(record.msg)]
    assert len(logged) == 1
    assert not [record for record in caplog.records if record.exc_info]


RAISE = "RAISE EXCEPTION 'trouble' USING ERRCODE ="


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's folder. As root the database runs as another account, and each start of pytest closes the path."""
    with tempfile.TemporaryDirectory(prefix="gj") as name:
        yield Path(name)


def alter(url: str, setting: str) -> None:
    """Change a setting of a whole server, for open sessions too."""
    rows(url, f"ALTER SYSTEM SET {setting}")
    rows(url, "SELECT pg_reload_conf()")


async def test_after_a_failover_the_pool_reconnects_to_the_server_that_takes_writes(
    api_server: Callable[..., RunningApi], folder: Path
) -> None:
    """Two servers in one URL with target_session_attrs: when the first becomes read-only, writes go to the second."""
    with contextlib.ExitStack() as stack:
        urls = []
        for name in ("first", "second"):
            server = embedded.start(folder / name / "postgres", {"fsync": "off"})
            stack.callback(server.close)
            urls.append(server.conninfo)
            await migrate(server.conninfo)
        hosts = ",".join(str(psycopg.conninfo.conninfo_to_dict(url)["host"]) for url in urls)
        url = f"postgresql:///postgres?user=postgres&host={hosts}&port=5432,5432&target_session_attrs=read-write"
        person = Person(api_server(database_url=url, listen_check_seconds=1))
        person.create()
        alter(urls[0], "default_transaction_read_only = on")

        def is_created() -> bool:
            answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {}})
            assert answer.is_success or code_of(answer) == (503, "unavailable")
            return answer.is_success

        wait_until(is_created, "a job on the second server")
        assert [len(rows(url, "SELECT id FROM jobs")) for url in urls] == [1, 1]
        listening = (
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' OR application_name = 'geo-jobs-listen'"
        )
        wait_until(lambda: bool(rows(urls[1], listening)), "the listening connection to move too", 30)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[SilentProxy]:
    """A TCP proxy in front of the test's database."""
    target = psycopg.conninfo.conninfo_to_dict(postgres_url)

    def connect() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{target['host']}/.s.PGSQL.{target['port']}")
        return server

    with silent_proxy(connect) as made:
        yield made


def through(proxy: SilentProxy, url: str) -> str:
    """The same database through the proxy."""
    return psycopg.conninfo.make_conninfo(url, host="127.0.0.1", port=proxy.port)


def test_health_answers_within_two_seconds_while_the_network_drops_everything(
    api_server: Callable[..., RunningApi], proxy: SilentProxy, postgres_url: str
) -> None:
    """Twenty concurrent requests, then one after another. It is healthy soon after the network recovers."""
    api = api_server(database_url=through(proxy, postgres_url))
    assert health(api)[0] == 200
    proxy.swallows = True
    # All of them, since a connection that the pool has just started has not sent its name yet.
    proxy.silence(b"")
    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda _: health(api), range(20)))
    found += [health(api) for _ in range(2)]
    assert {(status, body["database"]) for status, body, _ in found} == {(503, "no answer within 2 s")}
    assert max(seconds for _, _, seconds in found) < 3
    proxy.swallows = False
    wait_until(lambda: health(api)[0] == 200, "the service to be healthy again", 30)


def test_health_answers_within_two_seconds_while_every_connection_is_busy(
    api_server: Callable[..., RunningApi], postgres_url: str
) -> None:
    """An exhausted pool is unhealthy, and a health check does not queue for it."""
    api = api_server(database_pool_size=2, database_timeout_seconds=10)
    with psycopg.connect(postgres_url) as blocker, ThreadPoolExecutor(4) as threads:
        blocker.execute("LOCK TABLE jobs")
        waiting = [threads.submit(Person(api).http.get, "/api/geo-jobs") for _ in range(4)]
        wait_until(
            lambda: len(rows(postgres_url, "SELECT pid FROM pg_locks WHERE NOT granted")) >= 2, "the pool to be busy"
        )
        status, body, seconds = health(api)
        assert (status, body["database"]) == (503, "no answer within 2 s")
        assert seconds < 3
        blocker.rollback()
        assert [answer.result(timeout=20).status_code for answer in waiting] == [200] * 4
    wait_until(lambda: health(api)[0] == 200, "the service to be healthy again")


def test_health_answers_within_two_seconds_while_the_storage_hangs(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a hanging network file system. `/health` reports it, and any number of checks occupies one thread."""
    over, threads = threading.Event(), 0

    def hang(*_: object, **__: object) -> None:
        nonlocal threads
        threads += 1
        over.wait(30)

    monkeypatch.setattr("geo_jobs_api.storage.local_storage.tempfile.TemporaryFile", hang)
    try:
        for _ in range(2):
            status, body, seconds = health(api)
            assert (status, body["database"], body["storage"]) == (503, "ok", "no answer within 2 s")
            assert seconds < 3
        assert threads == 1
    finally:
        monkeypatch.undo()
        over.set()
    wait_until(lambda: health(api)[0] == 200, "the service to be healthy again")


def test_a_statement_without_response_is_abandoned(
    api_server: Callable[..., RunningApi], proxy: SilentProxy, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy acknowledges every byte, so TCP detects nothing. The client's clock ends the wait with 503."""
    monkeypatch.setattr(sessions.Connection, "silence_seconds", 0.5)
    api = api_server(database_url=through(proxy, postgres_url), database_timeout_seconds=2)
    person = Person(api)
    person.submit()
    proxy.silence(b"geo-jobs")

    def answer() -> httpx.Response:
        return person.http.get("/api/geo-jobs")

    assert code_of(answer()) == (503, "unavailable")
    wait_until(lambda: answer().is_success, "an answer over a new connection", 30)


async def test_the_pool_notes_outages_and_no_other_errors(postgres_url: str) -> None:
    """The rescuer waits a grace after an outage. A caller's own error must not make it wait."""
    async with open_pool(postgres_url, size=2, wait_seconds=10) as pool:

        async def run(*statements: str) -> None:
            async with pool.connection() as connection:
                for statement in statements:
                    await connection.execute(statement.encode())

        with pytest.raises(psycopg.errors.QueryCanceled):
            await run("SET statement_timeout = 10", "SELECT pg_sleep(10)")
        assert pool.last_outage == float("-inf")
        began = time.monotonic()
        with pytest.raises(sessions.ReadOnlyError):
            await run("SET default_transaction_read_only = on", "DELETE FROM jobs")
        read_only = pool.last_outage
        assert read_only >= began
        with pytest.raises(psycopg.OperationalError):
            await run("SELECT pg_terminate_backend(pg_backend_pid())")
        assert pool.last_outage > read_only
