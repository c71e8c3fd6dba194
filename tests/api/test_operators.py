"""Operators: reasons for waiting, priorities, workers, statistics, by API and by command."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from geo_jobs_api.claims.worker_registry import WorkerRegistry
from geo_jobs_api.cli import _parser
from geo_jobs_api.queue.operator_records import WorkerRegistration
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of, rows
from tests.support.waiting import wait_until


@pytest.fixture
def admin(api: RunningApi) -> Person:
    rows(api.settings.conninfo or "", "DELETE FROM workers")
    return Person(api, "root", admin=True)


@pytest.fixture
def url(api: RunningApi) -> str:
    return api.settings.conninfo or ""


@pytest.fixture
def command(api: RunningApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command on the API's database and returns its output."""
    from geo_jobs_api import cli

    settings = api.settings
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)
    monkeypatch.setattr("geo_jobs_api.cli.load_settings", lambda: settings)

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(arguments) == code
        told = capsys.readouterr()
        return told.out + told.err

    return run


def explain(person: Person, job_id: str) -> dict[str, Any]:
    told: dict[str, Any] = person.http.get(f"/api/geo-jobs/{job_id}/explain").raise_for_status().json()
    return told


def reasons(person: Person, job_id: str) -> list[str]:
    return [reason["code"] for reason in explain(person, job_id)["reasons"]]


def configure(admin: Person, **fields: Any) -> None:
    admin.http.patch("/api/task-types/geotiff_to_png", json=fields).raise_for_status()


def test_each_reason_for_waiting_is_explained(
    api: RunningApi, person: Person, worker: Worker, admin: Person, url: str, command: Callable[..., str]
) -> None:
    """No worker, paused, limit, rate, backoff and earlier jobs: each alone, with the place in the queue."""
    first, second = person.submit(), person.submit()
    assert reasons(person, first) == ["no_worker"]
    assert (reasons(person, second), explain(person, second)["place"]) == (["no_worker", "queue"], 2)
    job = worker.claim()
    wait_until(lambda: "no_worker" not in reasons(person, second), "the worker to be noted")
    assert (reasons(person, second), explain(person, second)["place"]) == (["busy"], 1)
    configure(admin, paused=True)
    assert reasons(person, second) == ["paused", "busy"]
    configure(admin, paused=False, maxConcurrentRuns=1)
    assert reasons(person, second) == ["limit", "busy"]
    assert "1 of at most 1 concurrent jobs" in explain(person, second)["reasons"][0]["text"]
    configure(admin, maxConcurrentRuns=None, rateLimit={"count": 1, "periodSeconds": 600})
    third = person.submit()
    assert worker.claim()["id"] == second
    assert reasons(person, third) == ["rate_limit", "busy"]
    configure(admin, rateLimit=None)
    worker.fail(job, "transient", retryAfterSeconds=600).raise_for_status()
    assert reasons(person, first) == ["backoff", "busy"]
    assert explain(person, second)["reasons"] == []
    told = command("jobs", "explain", first)
    assert told.startswith("queued: It is tried again at")
    assert "- It is not due before" in told
    assert "went_wrong: It went wrong." in told


def note(url: str, name: str, capabilities: dict[str, Any] | None = None, trouble: Any = None, **more: Any) -> None:
    """Insert a worker seen just now."""
    types = more.get("types", ["geotiff_to_png"])
    rows(
        url,
        "INSERT INTO workers (id, name, task_types, capabilities, trouble) VALUES (%s, %s, %s, %s, %s)",
        more.get("id", name),
        name,
        types,
        None if capabilities is None else json.dumps(capabilities),
        None if trouble is None else json.dumps(trouble),
    )


def texts(person: Person, job_id: str, code: str) -> list[str]:
    return [reason["text"] for reason in explain(person, job_id)["reasons"] if reason["code"] == code]


def test_busy_workers_are_explained_with_the_owners_jobs_only(
    api: RunningApi, person: Person, worker: Worker, admin: Person, url: str, command: Callable[..., str]
) -> None:
    """Ids of other callers' jobs are for operators only. Their type and start are for all."""
    bob = Person(api, "bob")
    other = Worker(api, "worker-2")
    mine, foreign = person.submit(), bob.submit()
    for one, job_id in ((worker, mine), (other, foreign)):
        note(url, one.name, {"concurrentJobs": 1}, id=one.id)
        job = one.claim()
        assert job["id"] == job_id
        one.heartbeat(job)
    waiting = person.submit()
    (told,) = texts(person, waiting, "busy")
    assert told.startswith(
        f"All 2 workers that can take geotiff_to_png are busy: worker-1 with job {mine} (geotiff_to_png"
    )
    assert "worker-2 with 1 geotiff_to_png of other callers (since 2" in told
    assert foreign not in json.dumps(explain(person, waiting))
    (told,) = texts(admin, waiting, "busy")
    assert mine in told
    assert foreign in told
    assert foreign in command("jobs", "explain", waiting)
    rows(url, "UPDATE workers SET capabilities = %s WHERE id = %s", json.dumps({"concurrentJobs": 2}), other.id)
    assert reasons(person, waiting) == []


def test_a_busy_worker_without_recent_claims_is_still_a_worker(
    person: Person, worker: Worker, admin: Person, url: str
) -> None:
    """A job of an hour does not make it `no_worker`."""
    person.submit()
    worker.claim()
    waiting = person.submit()
    rows(url, "DELETE FROM workers")
    assert reasons(person, waiting) == ["busy"]
    (told,) = texts(person, waiting, "busy")
    assert told.startswith("The worker that can take geotiff_to_png is busy: worker-1 with job ")


def test_each_worker_that_lacks_a_requirement_is_named_with_it(
    api: RunningApi, person: Person, admin: Person, url: str
) -> None:
    """Size, memory, task types. Trouble shows its codes, for operators its sentence. A free worker ends the list."""
    job_id = person.submit()
    note(url, "tiler", types=["geotiff_to_tiles", "geotiff_info"])
    (told,) = texts(person, job_id, "no_worker")
    assert told.endswith("Start one. Worker tiler runs only geotiff_to_tiles, geotiff_info.")
    rows(url, "UPDATE jobs SET input_size_bytes = 240000000")
    rows(url, "UPDATE task_types SET memory_mb = 8192")
    note(url, "small", {"maxFileSize": 100_000_000})
    note(url, "lean", {"maxFileSize": 10**9, "memoryMb": 4096})
    note(url, "sick", {"memoryMb": 8192}, [{"code": "disk", "message": "Make room in /srv/tmp."}])
    assert texts(person, job_id, "unfit") == [
        "Worker lean has 4096 MiB of memory for a job, and this type needs 8192.",
        "Worker small takes files up to 100 MB, and this one has 240 MB.",
    ]
    assert texts(person, job_id, "worker_trouble") == [
        "Worker sick claims nothing because of trouble on its host (disk)."
    ]
    assert texts(admin, job_id, "worker_trouble")[0].endswith("(disk). Make room in /srv/tmp.")
    assert reasons(person, job_id) == ["unfit", "unfit", "worker_trouble"]
    assert person.look(job_id)["state"] == "queued"
    note(url, "large", {"maxFileSize": 10**9, "memoryMb": 8192})
    assert reasons(person, job_id) == []


def test_a_host_that_no_worker_fetches_from_is_named(shared_linked_api: RunningApi) -> None:
    api = shared_linked_api
    url = api.settings.conninfo or ""
    rows(url, "DELETE FROM workers")
    person = Person(api)
    job_id = person.create({"sourceUrl": "https://maps.example.org/a.tif"})["id"]
    note(url, "inner", {"sourceHosts": []})
    assert texts(person, job_id, "unfit") == ["Worker inner does not fetch from maps.example.org (its SOURCE_HOSTS)."]


def test_a_raised_priority_passes_ones_own_and_a_lowered_one_goes_behind_them(
    api: RunningApi, person: Person, worker: Worker, admin: Person, command: Callable[..., str]
) -> None:
    """Owners change their own jobs, administrators all. Ended jobs cannot change."""
    jobs = [person.submit() for _ in range(4)]
    answer = person.http.post(f"/api/geo-jobs/{jobs[3]}/priority", json={"priority": 1})
    assert answer.raise_for_status().json()["priority"] == 1
    assert "Its priority is -1." in command("jobs", "priority", jobs[0], "-1")
    assert [worker.claim()["id"] for _ in range(4)] == [jobs[3], jobs[1], jobs[2], jobs[0]]
    assert "priority_changed" in person.event_types(jobs[3])
    other = Person(api, "bob")
    refused = other.http.post(f"/api/geo-jobs/{jobs[0]}/priority", json={"priority": 1})
    assert code_of(refused) == (404, "job_not_found")
    person.cancel(ended := person.submit())
    refused = person.http.post(f"/api/geo-jobs/{ended}/priority", json={"priority": 1})
    assert code_of(refused) == (409, "invalid_state")
    assert "between -100 and 100" in command("jobs", "priority", jobs[0], "101", code=1)


def test_an_unlocked_job_goes_back_to_its_place_and_its_worker_has_lost_it(
    person: Person, worker: Worker, admin: Person, command: Callable[..., str]
) -> None:
    """The attempt is not spent, the job is next again, and the worker's report is rejected."""
    first, second = person.submit(), person.submit()
    job = worker.claim()
    worker.heartbeat(job)
    assert code_of(person.http.post(f"/api/geo-jobs/{first}/unlock")) == (403, "not_allowed")
    admin.http.post(f"/api/geo-jobs/{first}/unlock").raise_for_status()
    assert code_of(worker.complete(job, [])) == (409, "lease_lost")
    assert person.look(first)["attempt"] == 0
    again = worker.claim()
    assert (again["id"], again["attempt"]) == (first, 1)
    worker.heartbeat(again)
    person.cancel(first)
    assert "It is cancelled. worker-1 has lost its lease." in command("jobs", "unlock", first)
    assert code_of(admin.http.post(f"/api/geo-jobs/{second}/unlock")) == (409, "invalid_state")
    assert code_of(admin.http.post(f"/api/geo-jobs/{uuid4()}/unlock")) == (404, "job_not_found")


def test_dead_letters_are_requeued_by_filter(
    api: RunningApi, person: Person, worker: Worker, admin: Person, command: Callable[..., str]
) -> None:
    """By code, class and number. Owners reach their own jobs only, and an unknown filter is rejected."""
    bob = Person(api, "bob")
    jobs = [person.submit(), person.submit(), bob.submit(), person.submit()]
    for code in ("broken", "full", "broken", "broken"):
        worker.fail(worker.claim(), "invalid_input", code).raise_for_status()
    codes = {job_id: admin.look(job_id)["error"]["code"] for job_id in jobs}
    full = [job_id for job_id in jobs if codes[job_id] == "full"]
    listed = admin.http.get("/api/geo-jobs", params={"errorCode": "full"}).raise_for_status().json()["jobs"]
    assert [job["id"] for job in listed] == full
    assert [job["id"] for job in json.loads(command("jobs", "list", "--code", "full", "--json"))] == full
    answer = bob.http.post("/api/geo-jobs/redrive", json={"errorCode": codes[jobs[2]]})
    assert answer.raise_for_status().json() == {"jobs": {"geotiff_to_png": 1}}
    assert [admin.look(job_id)["state"] for job_id in jobs] == ["failed", "failed", "queued", "failed"]
    assert "No failed job matches." in command("jobs", "redrive", "--code", "worker_lost")
    told = command("jobs", "redrive", "--class", "invalid_input", "--limit", "2", "--json")
    assert json.loads(told) == {"jobs": {"geotiff_to_png": 2}}
    assert [admin.look(job_id)["state"] for job_id in jobs].count("failed") == 1
    assert "must be a time with its zone" in command("jobs", "redrive", "--after", "yesterday", code=1)
    assert code_of(admin.http.post("/api/geo-jobs/redrive", json={"code": "broken"})) == (422, "validation")


def test_open_jobs_are_cancelled_by_filter(
    api: RunningApi, person: Person, worker: Worker, admin: Person, command: Callable[..., str]
) -> None:
    """By state, type, time and owner: waiting ones at once, running ones through their workers, ended ones never."""
    bob = Person(api, "bob")
    running, done, queued, waiting = person.submit(), person.submit(), person.submit(), str(person.create()["id"])
    jobs = {job["id"]: job for job in worker.claim_all(maxJobs=2)}
    others = bob.submit()
    worker.complete(jobs[done]).raise_for_status()

    def states() -> list[str]:
        return [str(admin.look(job_id)["state"]) for job_id in (running, done, queued, waiting, others)]

    def cancel(who: Person, **body: object) -> dict[str, Any]:
        told: dict[str, Any] = who.http.post("/api/geo-jobs/cancel", json=body).raise_for_status().json()
        return told

    nothing = {"cancelled": {}, "stopping": {}, "more": False}
    assert cancel(person, taskType="geotiff_to_tiles") == nothing
    assert cancel(person, createdBefore="2020-01-01T00:00:00Z") == nothing
    assert cancel(person, state="queued", reason="no more") == nothing | {"cancelled": {"geotiff_to_png": 1}}
    assert states() == ["running", "succeeded", "cancelled", "awaiting_upload", "queued"]
    assert person.look(queued)["cancelReason"] == "no more"
    assert person.events(queued)[-1]["type"] == "cancelled"
    told = cancel(person, taskType="geotiff_to_png")
    assert told == {"cancelled": {"geotiff_to_png": 1}, "stopping": {"geotiff_to_png": 1}, "more": False}
    assert states() == ["running", "succeeded", "cancelled", "cancelled", "queued"]
    assert worker.heartbeat(jobs[running])["cancel"]
    assert "1 of geotiff_to_png cancelled." in command(
        "jobs", "cancel", "--owner", "bob", "--after", "2020-01-01T00:00:00Z"
    )
    assert states()[-1] == "cancelled"
    assert "No open job matches." in command("jobs", "cancel", "--state", "queued")


def test_a_filter_that_names_nothing_cancels_nothing(
    api: RunningApi, person: Person, command: Callable[..., str]
) -> None:
    """An empty body is usually a mistake. So are an unknown field and a job together with a filter."""
    job_id = person.submit()
    for body in ({}, {"state": None}, {"limit": 5}, {"reason": "all"}, {"status": "queued"}, {"state": "succeeded"}):
        assert code_of(person.http.post("/api/geo-jobs/cancel", json=body)) == (422, "validation")
    assert "must have a state" in command("jobs", "cancel", "--reason", "all", code=1)
    assert "not both" in command("jobs", "cancel", job_id, "--state", "queued", code=1)
    assert person.look(job_id)["state"] == "queued"


def test_children_of_jobs_that_are_cancelled_by_filter_follow(person: Person) -> None:
    """A dependent job is cancelled too, and not counted again."""
    parent = person.submit()
    child = person.create(dependsOn=[{"jobId": parent}])["id"]
    told = person.http.post("/api/geo-jobs/cancel", json={"state": "queued"}).raise_for_status().json()
    assert told["cancelled"] == {"geotiff_to_png": 1}
    assert person.look(child)["state"] == "cancelled"


def test_ten_thousand_jobs_are_cancelled_in_one_call(api: RunningApi, person: Person, url: str) -> None:
    """In bounded batches with exact counts. A thousand calls would take half a minute. Other owners' jobs stay."""
    rows(url, _MAKE_JOBS, "ada", 10_001)
    rows(url, _MAKE_JOBS, "bob", 10)
    began = time.monotonic()
    told = person.http.post("/api/geo-jobs/cancel", json={"state": "queued"}, timeout=60).raise_for_status().json()
    seconds = time.monotonic() - began
    assert told == {"cancelled": {"geotiff_to_png": 10_000}, "stopping": {}, "more": True}
    told = person.http.post("/api/geo-jobs/cancel", json={"state": "queued"}).raise_for_status().json()
    assert told == {"cancelled": {"geotiff_to_png": 1}, "stopping": {}, "more": False}
    left = rows(url, "SELECT owner, state, count(*) FROM jobs GROUP BY owner, state ORDER BY owner")
    assert [tuple(row.values()) for row in left] == [("ada", "cancelled", 10_001), ("bob", "queued", 10)]
    # About a second on two idle cores.
    assert seconds < 15, seconds


_MAKE_JOBS = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at
    )
    SELECT gen_random_uuid(), %s, 'geotiff_to_png', 'queued', 0, '{}', 5, 'a.tif', 1, now() FROM generate_series(1, %s)
"""


def test_idle_and_busy_workers_are_listed_with_their_jobs(
    api: RunningApi, person: Person, admin: Person, url: str, command: Callable[..., str]
) -> None:
    """An idle worker is visible by its claims, a busy one by its heartbeats too. A silent one disappears."""
    job_id = person.submit()
    busy = Worker(api, "busy")
    busy.heartbeat(busy.claim(workerVersion="1.2.3"))
    Worker(api, "idle").claim_all(taskTypes=["geotiff_info", "geotiff_to_png"])
    rows(
        url,
        "INSERT INTO workers (id, name, task_types, last_seen_at)"
        " VALUES ('gone/1', 'gone', '{}', now() - interval '1 hour')",
    )

    ours = {"busy", "idle", "gone"}  # A worker of the previous test may be stored only now.

    def seen() -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = admin.http.get("/api/admin/workers").raise_for_status().json()
        return [one for one in workers if one["name"] in ours]

    wait_until(lambda: len(seen()) == 2 and seen()[0]["version"] is not None, "both to be noted")
    assert [(one["name"], one["version"], one["jobs"], one["taskTypes"]) for one in seen()] == [
        ("busy", "1.2.3", [job_id], ["geotiff_to_png"]),
        ("idle", None, [], ["geotiff_info", "geotiff_to_png"]),
    ]
    told = command("workers").splitlines()
    assert told[0].startswith("NAME")
    lines = [line for line in told if line.split()[0] in ours]
    assert [line.split()[0] for line in lines] == ["busy", "idle"]
    assert job_id in lines[0]


def test_statistics_count_waiting_running_and_ended_jobs(
    person: Person, worker: Worker, admin: Person, url: str, command: Callable[..., str]
) -> None:
    """Each way to end once: a success, a failure, a retry, a timeout, and the open jobs."""
    for _ in range(5):
        person.submit()
    succeeded, failed, retried, timed_out, _running = (worker.claim() for _ in range(5))
    for job in (succeeded, failed, retried, timed_out):
        worker.heartbeat(job)
    rows(url, "UPDATE jobs SET started_at = now() - interval '8 seconds' WHERE id = %s", succeeded["id"])
    worker.complete(succeeded, []).raise_for_status()
    worker.fail(failed, "invalid_input").raise_for_status()
    worker.fail(retried, "transient", retryAfterSeconds=600).raise_for_status()
    worker.fail(timed_out, "timeout", retryAfterSeconds=600).raise_for_status()
    oldest = person.submit()
    rows(url, "UPDATE jobs SET run_at = now() - interval '100 seconds' WHERE id = %s", oldest)
    answer = admin.http.get("/api/admin/stats", params={"hours": 2}).raise_for_status().json()
    (figures,) = (one for one in answer if one["taskType"] == "geotiff_to_png")
    assert {name: figures[name] for name in ("waiting", "running", "succeeded", "failed", "timedOut", "retried")} == {
        "waiting": 3, "running": 1, "succeeded": 1, "failed": 1, "timedOut": 1, "retried": 2,
    }  # fmt: skip
    assert 8 <= figures["secondsP50"] < 60
    assert figures["jobsPerHour"] == 0.5
    assert figures["oldestWaitingSeconds"] >= 100
    (line,) = (line for line in command("stats").splitlines() if line.startswith("geotiff_to_png"))
    assert line.split()[:7] == ["geotiff_to_png", "3", "1", "1", "1", "1", "2"]
    assert code_of(person.http.get("/api/admin/stats")) == (403, "not_allowed")


def test_jobs_are_listed_shown_cancelled_and_retried_by_commands(
    person: Person, worker: Worker, command: Callable[..., str]
) -> None:
    """Operators have the owners' actions as commands, for all jobs."""
    waiting, failed = person.submit(priority=-3), person.submit(priority=5)
    worker.fail(worker.claim(), "invalid_input", "no_tiff").raise_for_status()
    (line,) = command("jobs", "list", "--state", "failed").splitlines()[1:]
    assert line.split()[:5] == [failed, "geotiff_to_png", "failed", "ada", "5"]
    assert "no_tiff: It went wrong." in line
    assert [job["id"] for job in json.loads(command("jobs", "list", "--owner", "ada", "--json"))] == [failed, waiting]
    assert command("jobs", "list", "--owner", "bob").splitlines()[1:] == []
    assert json.loads(command("jobs", "show", failed, "--json"))["error"]["code"] == "no_tiff"
    assert "no_tiff" in command("jobs", "show", failed)
    assert f"`jobs retry {failed}`" in command("jobs", "explain", failed)
    assert "queued again" in command("jobs", "retry", failed)
    assert "Only a failed job" in command("jobs", "retry", failed, code=1)
    assert "It is cancelled." in command("jobs", "cancel", waiting, "--reason", "enough")
    assert "cannot be cancelled" in command("jobs", "cancel", waiting, code=1)
    assert "There is no job" in command("jobs", "show", str(uuid4()), code=1)


def test_cleanup_by_days_removes_jobs_that_the_settings_would_keep(
    person: Person, worker: Worker, admin: Person, url: str, command: Callable[..., str]
) -> None:
    """Jobs that ended longer ago are removed with their files. Later and open ones stay."""
    old, new = person.submit(), person.submit()
    for _ in range(2):
        worker.fail(worker.claim(), "invalid_input").raise_for_status()
    rows(url, "UPDATE jobs SET finished_at = now() - interval '3 days' WHERE id = %s", old)
    waiting = person.submit()
    assert "Removed 0 ended jobs" in command("cleanup")
    assert "Removed 1 ended jobs" in command("cleanup", "2")
    assert [job["id"] for job in json.loads(command("jobs", "list", "--json"))] == [waiting, new]
    answer = admin.http.post("/api/admin/cleanup", json={"days": 0}).raise_for_status().json()
    assert answer["jobsRemoved"] == 1
    assert [job["id"] for job in json.loads(command("jobs", "list", "--json"))] == [waiting]


class Notes:
    """A store of workers."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []

    async def upsert_workers(self, workers: Any) -> None:
        self.written.append(sorted(worker.id for worker in workers))


async def test_a_worker_is_stored_once_a_minute_for_any_number_of_claims() -> None:
    """A fleet that claims all the time costs one small statement now and then."""
    notes, now = Notes(), [0.0]
    worker_registry = WorkerRegistry(notes, clock=lambda: now[0])
    fleet = [WorkerRegistration(f"w{n}", "w", None, frozenset({"geotiff_to_png"})) for n in range(3)]
    for moment in (0.0, 30.0, 61.0):
        now[0] = moment
        for worker in fleet * 5:
            worker_registry.register(worker)
        if moment != 30.0:
            await worker_registry.flush()
    assert notes.written == [["w0", "w1", "w2"]] * 2


def commands_without_json(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for part, below in group.choices.items():
            yield from commands_without_json(below, f"{name} {part}".strip())
    if not groups and not any("--json" in action.option_strings for action in parser._actions):
        yield name


def test_every_command_can_print_json(person: Person, worker: Worker, command: Callable[..., str]) -> None:
    """Commands that change something print the API's response."""
    assert set(commands_without_json(_parser())) == {"serve", "migrate", "jwt"}
    first, second = person.submit(), person.submit()

    def told(*arguments: str) -> Any:
        return json.loads(command(*arguments, "--json"))

    assert told("jobs", "priority", first, "7")["priority"] == 7
    worker.heartbeat(worker.claim())
    assert told("jobs", "unlock", first)["state"] == "queued"
    assert told("jobs", "cancel", second)["state"] == "cancelled"
    worker.fail(worker.claim(), "invalid_input", "broken").raise_for_status()
    assert told("jobs", "retry", first)["state"] == "queued"
    assert told("task-types", "pause", "geotiff_info")["paused"] is True
    assert told("task-types", "resume", "geotiff_info")["paused"] is False
    assert told("task-types", "set", "geotiff_info", "maxAttempts=5")["maxAttempts"] == 5
    made = told("tokens", "create", "night-shift")
    assert told("tokens", "delete", made["id"]) == {"deleted": made["id"]}
    assert told("cleanup")["jobsRemoved"] == 0
