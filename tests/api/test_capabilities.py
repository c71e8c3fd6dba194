"""Workers get only jobs that they take, and avoid jobs that they have just failed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.queue.capabilities import Capabilities, Requirements
from geo_jobs_api.queue.lease_requests import ClaimRequest
from geo_jobs_api.queue.lease_store import LeaseStore
from tests.support.api import RunningApi
from tests.support.clients import TIFF, Person, Worker, rows
from tests.support.database import DatabaseServer
from tests.support.waiting import wait_until

SIZE = len(TIFF)
SOURCE = {"sourceUrl": "https://maps.example.org/a.tif"}
# The declaration of a worker, and whether it takes an uploaded file of SIZE bytes, of a type that needs 2000 MiB, and a
# source at maps.example.org.
TAKES: list[tuple[dict[str, Any], bool, bool]] = [
    ({}, True, True),
    ({"maxFileSize": SIZE}, True, True),
    ({"maxFileSize": SIZE - 1}, False, True),
    ({"memoryMb": 2000}, True, True),
    ({"memoryMb": 1999}, False, False),
    ({"sourceHosts": ["maps.example.org"]}, True, True),
    ({"sourceHosts": ["other.example.org", "MAPS.example.org"]}, True, True),
    ({"sourceHosts": ["*.example.org"]}, True, True),
    ({"sourceHosts": ["*"]}, True, True),
    ({"sourceHosts": []}, True, False),
    ({"sourceHosts": ["example.org"]}, True, False),
    ({"sourceHosts": ["*.maps.example.org"]}, True, False),
    ({"sourceHosts": ["m_ps.example.org", "%", "%.example.org", "\\"]}, True, False),
    ({"maxFileSize": SIZE, "memoryMb": 4096, "sourceHosts": [], "concurrentJobs": 4, "future": 1}, True, False),
]


@pytest.fixture(autouse=True)
def noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geo_jobs_api.claims.worker_registry._BATCH_SECONDS", 0.01)


def park(api: RunningApi, threads: ThreadPoolExecutor, worker: Worker, **fields: Any) -> Future[list[dict[str, Any]]]:
    before = api.parked
    future = threads.submit(worker.claim_all, **({"waitSeconds": 30} | fields))
    wait_until(lambda: api.parked == before + 1, "the claim to be parked")
    return future


def noted(api: RunningApi, *workers: Worker) -> None:
    """Let these workers claim once, and wait until they are registered."""
    for worker in workers:
        assert worker.claim_all() == []
    ids = [worker.id for worker in workers]
    wait_until(
        lambda: len(rows(api.settings.conninfo or "", "SELECT id FROM workers WHERE id = ANY(%s)", ids)) == len(ids),
        "the workers to be noted",
    )


@pytest.fixture
def linked(api_server: Callable[..., RunningApi]) -> RunningApi:
    """An API that allows all source hosts."""
    return api_server(source_hosts="*", backstop_seconds=3600)


@pytest.mark.parametrize(("declared", "takes_upload", "takes_source"), TAKES)
def test_a_worker_gets_the_jobs_that_it_declares_to_take_and_no_others(
    shared_linked_api: RunningApi, declared: dict[str, Any], takes_upload: bool, takes_source: bool
) -> None:
    """By size, memory and host. A missing field accepts all. Other jobs stay queued for other workers."""
    api = shared_linked_api
    url = api.settings.conninfo or ""
    rows(url, "DELETE FROM jobs")
    person = Person(api)
    rows(url, "UPDATE task_types SET memory_mb = 2000 WHERE name = 'geotiff_to_png'")
    try:
        uploaded, fetched = person.submit(), person.create(SOURCE)["id"]
        expected = {uploaded: takes_upload, fetched: takes_source}
        got = {job["id"] for job in Worker(api).claim_all(maxJobs=5, capabilities=declared)}
        assert got == {job_id for job_id, takes in expected.items() if takes}
        left = {job["id"] for job in Worker(api, "w2").claim_all(maxJobs=5)}
        assert got | left == set(expected)
        need = (Requirements(SIZE, None, 2000), Requirements(None, "maps.example.org", 2000))
        said = Capabilities.from_json(
            {"sourceHosts": [host.lower() for host in declared.pop("sourceHosts", ["*"])], **declared}
        )
        # The explanation agrees with the filter.
        assert [not list(said.list_mismatches(one)) for one in need] == [takes_upload, takes_source]
    finally:
        rows(url, "UPDATE task_types SET memory_mb = NULL")
        rows(url, "DELETE FROM jobs")


def too_narrow(limit: int, **more: Any) -> dict[str, Any]:
    """A worker's report of a source above its MAX_FILE_SIZE."""
    return {"limit": "MAX_FILE_SIZE", "limit_bytes": limit, **more}


def test_a_source_above_a_workers_limit_goes_to_one_with_a_higher_limit(shared_linked_api: RunningApi) -> None:
    """No attempt is spent, and workers with a limit below the known size do not get it again."""
    api, person = shared_linked_api, Person(shared_linked_api)
    rows(api.settings.conninfo or "", "DELETE FROM jobs")
    job_id = person.create(SOURCE)["id"]
    # One response had no length, the other one had.
    for limit, detail in ((5_000, too_narrow(5_000)), (8_000, too_narrow(8_000, size_bytes=9_000))):
        worker = Worker(api, f"narrow-{limit}")
        job = worker.claim(capabilities={"maxFileSize": limit})
        assert (job["id"], job["input"]["sizeBytes"]) == (job_id, None)
        worker.heartbeat(job)
        assert worker.fail(job, "invalid_input", "too_large", detail=detail).json()["state"] == "queued"
        assert worker.claim_all(capabilities={"maxFileSize": limit}) == []
        assert person.look(job_id)["attempt"] == 0
    assert Worker(api, "w3").claim_all(capabilities={"maxFileSize": 8_999}) == []
    assert Worker(api, "w4").claim(capabilities={"maxFileSize": 9_000})["attempt"] == 1
    assert person.look(job_id)["input"]["sizeBytes"] is None


def test_explain_shows_that_a_source_exceeds_the_limit_of_all_workers(api_server: Callable[..., RunningApi]) -> None:
    api = api_server(source_hosts="*")
    person, worker = Person(api), Worker(api)
    noted(api, worker)
    job_id = person.create(SOURCE)["id"]
    takes = {"maxFileSize": 1_000_000}
    job = worker.claim(capabilities=takes)
    worker.fail(job, "invalid_input", "too_large", detail=too_narrow(1_000_000, size_bytes=2_000_000))
    assert worker.claim_all(capabilities=takes) == []

    def reasons() -> list[str]:
        told = person.http.get(f"/api/geo-jobs/{job_id}/explain").raise_for_status().json()["reasons"]
        return [reason["text"] for reason in told if reason["code"] == "unfit"]

    wait_until(lambda: bool(reasons()), "the worker's limits to be noted")
    assert reasons() == [f"Worker {worker.name} takes files up to 1 MB, and this one has 2 MB or more."]


@pytest.mark.parametrize(
    ("source", "code", "detail"),
    [
        (True, "too_large", too_narrow(100_000)),
        (True, "too_large", too_narrow(5_000, size_bytes=100_001)),
        (True, "too_large", too_narrow(5_000, size_bytes=10**30)),
        (True, "too_large", {"limit": "side", "limit_bytes": 5_000}),
        (True, "too_large", {"limit": "MAX_FILE_SIZE", "limit_bytes": "5000"}),
        (True, "too_large", {"limit": "MAX_FILE_SIZE", "limit_bytes": True}),
        (True, "too_large", {"limit": "MAX_FILE_SIZE"}),
        (True, "too_large", ["MAX_FILE_SIZE"]),
        (True, "not_a_tiff", too_narrow(5_000)),
        (False, "too_large", too_narrow(5_000)),
    ],
)
def test_a_file_that_is_too_large_for_the_service_fails_for_good(
    api_server: Callable[..., RunningApi], source: bool, code: str, detail: Any
) -> None:
    """Also for an upload of known size, and for a report without numbers."""
    api = api_server(source_hosts="*", max_file_size=100_000)
    person, worker = Person(api), Worker(api)
    job_id = person.create(SOURCE)["id"] if source else person.submit()
    answer = worker.fail(worker.claim(), "invalid_input", code, detail=detail)
    assert (answer.json()["state"], person.look(job_id)["state"]) == ("failed", "failed")


def test_a_worker_without_declared_limits_returns_a_source_once_only(shared_linked_api: RunningApi) -> None:
    """It gets the job again, so a report without new information ends it. A manual retry starts over."""
    api, person = shared_linked_api, Person(shared_linked_api)
    rows(api.settings.conninfo or "", "DELETE FROM jobs")
    rows(api.settings.conninfo or "", "DELETE FROM workers")  # It would have to wait behind others.
    worker, job_id = Worker(api), person.create(SOURCE)["id"]
    states = []
    for again in (False, False, True):
        if again:
            person.http.post(f"/api/geo-jobs/{job_id}/retry").raise_for_status()
        answer = worker.fail(worker.claim(), "invalid_input", "too_large", detail=too_narrow(5_000))
        states.append(answer.json()["state"])
    assert states == ["queued", "failed", "queued"]


def test_the_size_of_a_source_takes_nothing_of_its_owners_room(api_server: Callable[..., RunningApi]) -> None:
    """The service does not store the file."""
    api = api_server(source_hosts="*", max_stored_bytes_per_caller=10_000)
    person, worker = Person(api), Worker(api)
    person.create(SOURCE)
    worker.fail(worker.claim(), "invalid_input", "too_large", detail=too_narrow(9_990)).raise_for_status()
    person.submit()


def test_a_job_wakes_the_worker_that_takes_it_past_those_that_do_not(
    linked: RunningApi, threads: ThreadPoolExecutor
) -> None:
    """Three workers with smaller limits wait in front. With an hour between polls, only their wake-up can reach it."""
    noted(linked, *(workers := [Worker(linked, f"w{number}") for number in range(4)]))
    narrow = [park(linked, threads, worker, capabilities={"maxFileSize": 5}) for worker in workers[:3]]
    wide = park(linked, threads, workers[3], capabilities={"maxFileSize": SIZE})
    job_id = Person(linked).submit()
    assert [job["id"] for job in wide.result(timeout=10)] == [job_id]
    assert not any(claim.done() for claim in narrow)
    linked.stop()


def test_a_later_worker_finds_a_job_that_no_waiting_one_takes(linked: RunningApi, threads: ThreadPoolExecutor) -> None:
    """A type does not count as empty because the waiting claims do not take its job."""
    narrow = Worker(linked, "narrow")
    assert narrow.claim_all(waitSeconds=0.1, capabilities={"maxFileSize": 5}) == []
    waiting = park(linked, threads, narrow, capabilities={"maxFileSize": 5})
    job_id = Person(linked).submit()
    wait_until(lambda: linked.parked == 1, "the narrow worker to wait again")
    assert [job["id"] for job in Worker(linked, "wide").claim_all(waitSeconds=20)] == [job_id]
    assert not waiting.done()
    linked.stop()


def test_a_lone_worker_beside_a_job_that_it_does_not_take_costs_few_statements(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor, postgres: DatabaseServer, postgres_url: str
) -> None:
    """No loop of polls and claims: at most a handful of statements in three seconds."""
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    postgres.execute(f"ALTER DATABASE {name} SET log_min_duration_statement = 0")
    api = api_server(backstop_seconds=1, rescue_interval_seconds=3600, first_lease_seconds=3600)
    Person(api).submit()
    log = postgres.server.data / "server.log"
    before = log.stat().st_size
    assert Worker(api).claim_all(waitSeconds=3, capabilities={"maxFileSize": 5}) == []
    told = log.read_bytes()[before:].decode()
    statements = [line for line in told.splitlines() if "ms  execute" in line]
    assert len(statements) <= 15


def test_a_failed_job_goes_to_another_worker_that_asks(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the failing worker gets it too, so that the job does not depend on the other one."""
    monkeypatch.setattr("geo_jobs_api.queue.lease_store._AVOID_SECONDS", 1.5)
    rows(api.settings.conninfo or "", "UPDATE task_types SET backoff_seconds = '{}'")
    first, second = Worker(api, "w1"), Worker(api, "w2")
    noted(api, first, second)
    job_ids = [Person(api).submit(), Person(api).submit()]
    for job in first.claim_all(maxJobs=2):
        first.fail(job, "transient").raise_for_status()
    assert first.claim_all(maxJobs=2) == []
    assert second.claim()["id"] in job_ids
    assert {job["id"] for job in first.claim_all(waitSeconds=10)} < set(job_ids)


@pytest.mark.parametrize("error_class", ["transient", "interrupted", "resource", "internal", "timeout"])
def test_a_lone_worker_gets_its_job_back_at_once(api: RunningApi, error_class: str) -> None:
    """Also beside workers of other types, with trouble, or not seen for long."""
    url = api.settings.conninfo or ""
    rows(url, "UPDATE task_types SET backoff_seconds = '{}'")
    worker = Worker(api)
    noted(api, worker)
    rows(
        url,
        """INSERT INTO workers (id, name, task_types, trouble, last_seen_at) VALUES
        ('cog', 'cog', '{geotiff_to_cog}', NULL, now()), ('sick', 'sick', '{geotiff_to_png}', '[]', now()),
        ('old', 'old', '{geotiff_to_png}', NULL, now() - interval '5 minutes')""",
    )
    job_id = Person(api).submit()
    worker.fail(worker.claim(), error_class).raise_for_status()
    assert worker.claim()["id"] == job_id


def test_a_returned_job_wakes_another_worker_than_its_own(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """The worker that returned it waits in front of the other one."""
    api = api_server(backstop_seconds=3600)
    first, second = Worker(api, "w1"), Worker(api, "w2")
    noted(api, first, second)
    job_id = Person(api).submit()
    job = first.claim()
    again = park(api, threads, first)
    other = park(api, threads, second)
    first.fail(job, "interrupted").raise_for_status()
    assert [one["id"] for one in other.result(timeout=10)] == [job_id]
    assert not again.done()
    api.stop()


async def test_claims_that_share_a_statement_each_get_allowed_jobs(postgres_url: str) -> None:
    """One of three has failed the only job. Another one of the same batch gets it."""
    rows(
        postgres_url,
        """INSERT INTO jobs (
            id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
            uploaded_at, avoided_worker, avoided_until
        )
        SELECT gen_random_uuid(), 'o', 'geotiff_to_png', 'queued', 0, '{}', 5, 'a.tif', 1, now(), 'w1',
            now() + interval '1 minute'""",
    )
    asks = [ClaimRequest(uuid4(), f"w{n}", "w", ("geotiff_to_png",), 1, "key", 15.0) for n in (1, 2, 3)]
    async with open_pool(postgres_url, size=1, wait_seconds=10) as pool:
        first, second, third = await LeaseStore(pool).claim_jobs(asks)
    assert (len(first.leases), len(second.leases), len(third.leases)) == (0, 1, 0)
    assert first.avoided_seconds == pytest.approx(60, abs=5)
    assert (second.avoided_seconds, third.avoided_seconds) == (None, None)


def test_trouble_is_reported_without_claiming_and_shows_among_the_workers(api: RunningApi) -> None:
    """A claim of zero jobs gets none. The next claim for jobs ends the trouble."""
    admin, worker = Person(api, "root", admin=True), Worker(api)
    job_id = Person(api).submit()
    trouble = [{"code": "disk", "message": "Make room in /tmp."}]

    def seen() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = admin.http.get("/api/admin/workers").raise_for_status().json()
        return found

    said = {"maxJobs": 0, "waitSeconds": 30, "trouble": trouble, "capabilities": {"maxFileSize": 7}}
    answer = worker.http.post("/claim", json=worker.claim_request(**said), timeout=5)
    assert answer.status_code == 204
    wait_until(lambda: bool(seen()), "the worker to be noted")
    assert [(one["trouble"], one["capabilities"], one["jobs"]) for one in seen()] == [(trouble, {"maxFileSize": 7}, [])]
    assert worker.claim()["id"] == job_id
    wait_until(lambda: seen()[0]["trouble"] is None, "the trouble to be over")


def test_optional_calls_are_announced_on_every_response_of_the_claim_path(
    api: RunningApi,
) -> None:
    """With any method and status, so that a worker learns it without claiming. Other paths do not have the header."""
    worker = Worker(api)
    answers = [
        worker.http.post("/claim", json=worker.claim_request()),
        worker.http.post("/claim", json={}),
        worker.http.post("/claim", json={}, headers={"Authorization": "Worker wrong"}),
        worker.http.get("/claim"),
    ]
    assert [answer.status_code for answer in answers] == [204, 422, 401, 405]
    assert {answer.headers["Worker-Extensions"] for answer in answers} == {"capabilities, trouble"}
    assert "Worker-Extensions" not in worker.http.get("/elsewhere").headers


def test_trouble_of_workers_costs_a_job_no_attempt_but_not_forever(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a job that fills the disks of its workers would be retried forever. Shutdowns stay free."""
    monkeypatch.setattr("geo_jobs_api.queue.lease_store.MAX_FREE_TROUBLES", 2)
    rows(api.settings.conninfo or "", "UPDATE task_types SET backoff_seconds = '{}'")
    person, worker = Person(api), Worker(api)
    job_id = person.submit()
    attempts = []
    for code in ("worker_trouble", "worker_shutdown", "worker_trouble", "worker_trouble", "worker_shutdown"):
        job = worker.claim()
        worker.heartbeat(job)
        worker.fail(job, "interrupted", code).raise_for_status()
        attempts.append(person.look(job_id)["attempt"])
    assert attempts == [0, 0, 0, 1, 1]


def test_a_job_that_an_operator_sent_back_has_its_free_troubles_again(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Troubles before the last `retry` do not count, since the operator may have fixed their cause."""
    monkeypatch.setattr("geo_jobs_api.queue.lease_store.MAX_FREE_TROUBLES", 1)
    rows(api.settings.conninfo or "", "UPDATE task_types SET backoff_seconds = '{}'")
    person, worker = Person(api), Worker(api)
    job_id = person.submit()

    def report(error_class: str, code: str) -> None:
        job = worker.claim()
        worker.heartbeat(job)
        worker.fail(job, error_class, code).raise_for_status()

    report("interrupted", "worker_trouble")
    report("invalid_input", "not_a_tiff")
    person.http.post(f"/api/geo-jobs/{job_id}/retry").raise_for_status()
    report("interrupted", "worker_trouble")
    assert person.look(job_id)["attempt"] == 0


def test_explain_names_the_worker_that_is_kept_from_a_job(api: RunningApi) -> None:
    """For a free worker that has just failed the job, the explanation contains the end of the delay."""
    rows(api.settings.conninfo or "", "UPDATE task_types SET backoff_seconds = '{}'")
    person, failing, other = Person(api), Worker(api, "w1"), Worker(api, "w2")
    noted(api, failing, other)
    job_id = person.submit()
    failing.fail(failing.claim(), "transient", "disk_full").raise_for_status()
    reasons = person.http.get(f"/api/geo-jobs/{job_id}/explain").json()["reasons"]
    (avoided,) = [reason["text"] for reason in reasons if reason["code"] == "avoided"]
    assert "has just failed it, so other workers come first until" in avoided
