"""Claims: order, replay, limits, waiting."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of, rows
from tests.support.database import DatabaseServer
from tests.support.proxy import silent_proxy
from tests.support.waiting import wait_until


def park(api: RunningApi, threads: ThreadPoolExecutor, worker: Worker, **fields: Any) -> Future[list[dict[str, Any]]]:
    """Start a claim that waits. Return once it is parked."""
    before = api.parked
    future = threads.submit(worker.claim_all, **({"waitSeconds": 30} | fields))
    wait_until(lambda: api.parked == before + 1, "the claim to be parked")
    return future


def test_the_same_claim_id_gets_the_same_lease_again(person: Person, worker: Worker) -> None:
    """A lost response is repeated with the same token, and no second job is leased."""
    person.submit()
    person.submit()
    claim_id = str(uuid4())
    first, again = worker.claim(claimId=claim_id), worker.claim(claimId=claim_id)
    same = ("id", "leaseToken", "attempt", "leaseExpiresAt")
    assert [first[key] for key in same] == [again[key] for key in same]
    assert worker.claim()["id"] != first["id"]


def test_a_claim_of_several_gets_all_of_them_again(person: Person, worker: Worker) -> None:
    """`maxJobs` above one is replayed as a whole, and may be filled in part."""
    ids = {person.submit() for _ in range(3)}
    claim_id = str(uuid4())
    for _ in range(2):
        assert {job["id"] for job in worker.claim_all(claimId=claim_id, maxJobs=5)} == ids


def test_jobs_come_in_order_of_age_and_a_point_of_priority_is_worth_a_minute(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """Low priority waits longer, but not forever."""
    low, high, old = (Person(api, name).submit(priority=n) for name, n in (("a", 0), ("b", 1), ("c", 0)))
    rows(
        api.settings.conninfo or "",
        "UPDATE jobs SET fair_share_at = fair_share_at - interval '61 seconds' WHERE id = %s",
        old,
    )
    assert [worker.claim()["id"] for _ in range(3)] == [old, high, low]


def test_a_claim_gets_no_more_than_it_requested(person: Person, worker: Worker) -> None:
    """Of five waiting jobs, two are requested and leased."""
    for _ in range(5):
        person.submit()
    assert len(worker.claim_all(maxJobs=2)) == 2
    assert [job["state"] for job in person.http.get("/api/geo-jobs").json()["jobs"]].count("running") == 2


def test_only_the_offered_task_types_are_handed_out(person: Person, worker: Worker) -> None:
    """A worker gets only task types that it offers. Unknown types are no error."""
    person.submit()
    assert worker.claim_all(taskTypes=["something_else"]) == []
    assert len(worker.claim_all(taskTypes=["something_else", "geotiff_to_png"])) == 1


def test_a_paused_task_type_is_not_handed_out(api: RunningApi, person: Person, worker: Worker) -> None:
    """Pausing needs no restart."""
    person.submit()
    rows(api.settings.conninfo or "", "UPDATE task_types SET paused = true")
    assert worker.claim_all() == []


def test_a_claim_that_finds_nothing_answers_at_once_or_after_its_wait(worker: Worker) -> None:
    """204 with and without waiting."""
    assert worker.claim_all(waitSeconds=0) == []
    assert worker.claim_all(waitSeconds=0.2) == []


def test_parked_claims_are_woken_in_the_order_they_came_one_for_each_job(
    api: RunningApi, person: Person, threads: ThreadPoolExecutor
) -> None:
    """Of three waiting claims, one job wakes the first and leaves the others parked."""
    waiting = [park(api, threads, Worker(api, f"w{number}")) for number in range(3)]
    for number, future in enumerate(waiting):
        job_id = person.submit()
        assert [job["id"] for job in future.result(timeout=10)] == [job_id]
        wait_until(lambda left=2 - number: api.parked == left, "the others to be parked still")  # type: ignore[misc]  # bound now


def test_a_retry_wakes_a_parked_claim_when_its_time_comes(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """A due time causes no notification. With an hour between polls, only the timer can wake the claim."""
    api = api_server(backstop_seconds=3600)
    person, worker = Person(api), Worker(api)
    rows(api.settings.conninfo or "", "UPDATE task_types SET backoff_seconds = '{0.4}'")
    job_id = person.submit()
    job = worker.claim()
    waiting = park(api, threads, Worker(api, "w2"))
    worker.fail(job, "transient")
    assert [job["id"] for job in waiting.result(timeout=10)] == [job_id]


def test_the_backstop_covers_a_lost_notification(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """The next poll finds a job that was queued without a notification."""
    api = api_server(backstop_seconds=0.2)
    person = Person(api)
    job_id = person.create()["id"]
    waiting = park(api, threads, Worker(api))
    rows(
        api.settings.conninfo or "",
        "UPDATE jobs SET state = 'queued', uploaded_at = now(), input_file_name = 'a.tif', input_size_bytes = 1",
    )
    assert [job["id"] for job in waiting.result(timeout=10)] == [job_id]


def test_a_claim_that_takes_another_kind_of_job_passes_its_wake_up_on(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the announced job would wait for the next poll, an hour later."""
    monkeypatch.setattr("geo_jobs_api.claims.dispatcher.BATCH_SECONDS", 3600)  # Each claim queries before it waits.
    api = api_server(backstop_seconds=3600)
    person, kinds = Person(api), ["geotiff_to_cog", "geotiff_to_png"]
    silent = person.create(taskType="geotiff_to_cog")["id"]
    versed, simple = (
        park(api, threads, Worker(api, name), taskTypes=offered) for name, offered in (("w1", kinds), ("w2", kinds[1:]))
    )
    rows(
        api.settings.conninfo or "",
        "UPDATE jobs SET state = 'queued', uploaded_at = now(), input_file_name = 'a.tif', input_size_bytes = 1,"
        " run_at = now() - interval '1 hour'",
    )
    announced = person.submit()
    assert [job["id"] for job in versed.result(timeout=10)] == [silent]
    assert [job["id"] for job in simple.result(timeout=10)] == [announced]


def test_a_broken_listen_connection_is_replaced(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """After the database has closed the connection, notifications arrive again, without a backstop."""
    api = api_server(backstop_seconds=3600)
    url = api.settings.conninfo or ""
    listening = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'geo-jobs-listen' AND datname = current_database()"
    )
    wait_until(lambda: bool(rows(url, listening)), "the connection to listen")
    first = rows(url, listening)[0]["pid"]
    rows(url, "SELECT pg_terminate_backend(%s)", first)
    wait_until(lambda: any(row["pid"] != first for row in rows(url, listening)), "a new connection to listen")
    waiting = park(api, threads, Worker(api))
    job_id = Person(api).submit()
    assert [job["id"] for job in waiting.result(timeout=10)] == [job_id]


def test_a_half_open_listen_connection_costs_a_backstop_at_most_and_is_replaced(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor, postgres_url: str
) -> None:
    """The connection exists but is silent. The poll finds the next job, and then the connection is replaced."""
    target = psycopg.conninfo.conninfo_to_dict(postgres_url)

    def connect() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{target['host']}/.s.PGSQL.{target['port']}")
        return server

    with silent_proxy(connect) as proxy:
        url = psycopg.conninfo.make_conninfo(postgres_url, host="127.0.0.1", port=proxy.port)
        api = api_server(database_url=url, backstop_seconds=0.5, listen_check_seconds=1)
        wait_until(lambda: proxy.talking(b"geo-jobs-listen") == 1, "the connection to listen")
        # The second claim is parked without a query and relies on a notification.
        assert Worker(api).claim_all(waitSeconds=0.1) == []
        waiting = park(api, threads, Worker(api))
        assert proxy.silence(b"geo-jobs-listen") == 1
        job_id = Person(api).submit()
        assert [job["id"] for job in waiting.result(timeout=10)] == [job_id]
        wait_until(lambda: proxy.talking(b"geo-jobs-listen") == 1, "a new connection to listen", 30)
        api.stop()


def test_an_idle_fleet_costs_next_to_no_statements(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor, postgres: DatabaseServer, postgres_url: str
) -> None:
    """Twenty claims are repeated on an empty queue. Only their common poll reaches the database."""
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    api = api_server(backstop_seconds=3600, rescue_interval_seconds=3600, first_lease_seconds=3600)
    Worker(api).claim_all(waitSeconds=0.1)
    wait_until(lambda: api.app.state.services.room.is_known_empty(["geotiff_to_png"]), "the queue to be known empty")
    postgres.execute(f"ALTER DATABASE {name} SET log_min_duration_statement = 0")
    rows(
        postgres_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'geo-jobs-api' AND datname = current_database()",
    )
    log = postgres.server.data / "server.log"
    before = log.stat().st_size
    waits = [threads.submit(Worker(api, f"w{n}").claim_all, waitSeconds=3) for n in range(20)]
    assert [wait.result(timeout=20) for wait in waits] == [[]] * 20
    told = log.read_bytes()[before:].decode()
    statements = [line for line in told.splitlines() if "ms  execute" in line and "WITH held" in line]
    polls = [line for line in told.splitlines() if "ms  execute" in line]
    assert statements == []
    assert len(polls) <= 6


def test_two_processes_share_the_work_with_only_the_database_between_them(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """An upload to one process wakes a claim parked in the other."""
    first, second = api_server(backstop_seconds=3600), api_server(backstop_seconds=3600)
    waiting = park(first, threads, Worker(first))
    job_id = Person(second).submit()
    assert [job["id"] for job in waiting.result(timeout=10)] == [job_id]


def test_a_client_that_disconnects_while_it_waits_gets_no_job(
    api: RunningApi, person: Person, threads: ThreadPoolExecutor
) -> None:
    """Its claim is dropped, and the next one gets the job without a lost lease."""
    with pytest.raises(httpx.ReadTimeout):
        Worker(api, "impatient", timeout=0.3).claim_all(waitSeconds=30)
    wait_until(lambda: api.parked == 0, "the place to be given up")
    job_id = person.submit()
    assert Worker(api).claim()["id"] == job_id
    assert "claim_lost" not in person.event_types(job_id)


def test_a_repeated_claim_supersedes_the_abandoned_one(
    api: RunningApi, person: Person, threads: ThreadPoolExecutor
) -> None:
    """Two requests with one claim id never get two jobs."""
    claim_id = str(uuid4())
    first = park(api, threads, Worker(api), claimId=claim_id)
    second = threads.submit(Worker(api).claim_all, claimId=claim_id, waitSeconds=30)
    assert first.result(timeout=10) == []
    wait_until(lambda: api.parked == 1, "the second request to be parked")
    ids = {person.submit(), person.submit()}
    assert {job["id"] for job in second.result(timeout=10)} < ids
    assert len(rows(api.settings.conninfo or "", "SELECT id FROM jobs WHERE state = 'running'")) == 1


def test_a_stopping_process_releases_parked_claims_at_once(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """503 with `Retry-After: 0`, so that workers move to another process."""
    api = api_server()
    worker = Worker(api)
    before = threads.submit(worker.http.post, "/claim", json=worker.claim_request(waitSeconds=30))
    wait_until(lambda: api.parked == 1, "the claim to be parked")
    api.stop()
    answer = before.result(timeout=10)
    assert code_of(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "0"


def test_a_limit_on_concurrent_runs_is_exact(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """Sixteen workers claim concurrently and repeatedly. The database itself detects a fourth running job."""
    api = api_server()
    url = api.settings.conninfo or ""
    person = Person(api)
    rows(url, "UPDATE task_types SET max_concurrent_runs = 3")
    # Counted at commit under a lock, without sampling.
    rows(
        url,
        """
        CREATE TABLE excess (running bigint);
        CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE n bigint;
        BEGIN
            PERFORM pg_advisory_xact_lock(1);
            SELECT count(*) INTO n FROM jobs WHERE state = 'running';
            IF n > 3 THEN INSERT INTO excess VALUES (n); END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER watch AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION watch();
        """,
    )
    total = 40
    for _ in range(total):
        person.submit()
    done = threading.Semaphore(0)
    finished: list[str] = []

    def work(number: int) -> None:
        worker = Worker(api, f"w{number}")
        while len(finished) < total:
            for job in worker.claim_all(maxJobs=2, waitSeconds=0.3):
                worker.fail(job, "invalid_input").raise_for_status()
                finished.append(job["id"])
                done.release()

    for future in [threads.submit(work, number) for number in range(16)]:
        future.result(timeout=60)
    assert len(set(finished)) == total
    assert rows(url, "SELECT * FROM excess") == []


def test_a_place_that_becomes_free_under_a_limit_wakes_a_parked_claim(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """The end of one job starts the next one."""
    api = api_server(backstop_seconds=3600)
    person, worker = Person(api), Worker(api)
    rows(api.settings.conninfo or "", "UPDATE task_types SET max_concurrent_runs = 1")
    person.submit()
    second = person.submit()
    job = worker.claim()
    waiting = park(api, threads, Worker(api, "w2"))
    worker.complete(job).raise_for_status()
    assert [job["id"] for job in waiting.result(timeout=10)] == [second]


def test_a_claim_has_all_fields_of_the_protocol(person: Person, worker: Worker) -> None:
    """All fields of the protocol, with upload names based on the file's."""
    person.submit({"outputFormat": "webp", "maxSize": 9}, priority=3)
    job = worker.claim()
    assert job.keys() == {
        "id", "taskType", "priority", "attempt", "maxAttempts", "leaseToken", "leaseSeconds", "leaseExpiresAt",
        "heartbeatSeconds", "timeoutSeconds", "inputPayload", "input", "uploads", "inlineBytes",
        "previousErrors",
    }  # fmt: skip
    assert job["inputPayload"] == {"outputFormat": "webp", "maxSize": 9}
    assert [slot["name"] for slot in job["uploads"]] == [
        "map.webp", "map.wpw", "map.prj", "map.webp.aux.xml", "map_thumb.png", "map.json",
    ]  # fmt: skip
    assert {"name", "url", "method", "headers", "contentType", "maxBytes"} == job["uploads"][0].keys()
    assert job["input"]["sizeBytes"] == 100
