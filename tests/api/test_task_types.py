"""Task types as data: read, changed by operators, set at the first start, with notifications."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from geo_jobs_api.errors import ConfigurationError
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, code_of, rows
from tests.support.waiting import wait_until

NOISE = {"name": "noise", "input": "none", "outputs": [], "timeoutSeconds": 30}


@pytest.fixture
def admin(api: RunningApi) -> Person:
    return Person(api, "root", admin=True)


def change(admin: Person, name: str = "geotiff_to_png", **fields: Any) -> dict[str, Any]:
    """Change fields of a task type."""
    changed: dict[str, Any] = admin.http.patch(f"/api/task-types/{name}", json=fields).raise_for_status().json()
    return changed


def is_state(person: Person, job_id: str, state: str) -> bool:
    return bool(person.look(job_id)["state"] == state)


def test_the_built_in_types_have_the_outputs_of_their_handlers(person: Person) -> None:
    """Any caller may read them. The list has the four types with their suffixes."""
    kinds = {kind["name"]: kind for kind in person.http.get("/api/task-types").raise_for_status().json()}
    suffixes = {name: [rule["suffix"] for rule in kind["outputs"]] for name, kind in kinds.items()}
    assert suffixes.keys() == {"geotiff_to_png", "geotiff_to_cog", "geotiff_info", "geotiff_to_tiles"}
    assert suffixes["geotiff_to_cog"] == [".tif", ".json"]
    assert suffixes["geotiff_info"] == [".json"]
    assert suffixes["geotiff_to_tiles"] == [".pmtiles", ".json"]
    assert kinds["geotiff_to_tiles"]["backoffSeconds"] == [60, 300, 900, 1800, 3600]
    assert kinds["geotiff_to_png"] == person.http.get("/api/task-types/geotiff_to_png").json()
    assert code_of(person.http.get("/api/task-types/nothing")) == (404, "task_type_not_found")


def test_only_administrators_change_types_and_only_to_valid_ones(person: Person, admin: Person) -> None:
    """Others get 403. The message for an unknown or invalid field names it, and nothing changes."""
    assert code_of(person.http.patch("/api/task-types/geotiff_to_png", json={"paused": True})) == (403, "not_allowed")
    assert code_of(person.http.put("/api/task-types/noise", json=NOISE)) == (403, "not_allowed")
    impossible: list[dict[str, Any]] = [
        {"maxConcurentRuns": 3}, {"maxConcurrentRuns": 0}, {"rateLimit": {"count": 1}}, {"outputs": [{}]},
    ]  # fmt: skip
    for wrong in impossible:
        answer = admin.http.patch("/api/task-types/geotiff_to_png", json=wrong)
        assert code_of(answer) == (422, "validation")
        assert answer.json()["errors"][0]["pointer"].startswith(f"/{next(iter(wrong))}")
    assert change(admin)["maxConcurrentRuns"] is None
    assert code_of(admin.http.patch("/api/task-types/nothing", json={"paused": True})) == (404, "task_type_not_found")


def test_put_replaces_a_type_and_patch_keeps_the_rest(admin: Person) -> None:
    """A new type is created by PUT, with defaults for missing fields."""
    made = admin.http.put("/api/task-types/noise", json=NOISE | {"rateLimit": {"count": 2, "periodSeconds": 1.5}})
    assert made.raise_for_status().json()["maxAttempts"] == 5
    assert change(admin, "noise", defaultPriority=7)["rateLimit"] == {"count": 2, "periodSeconds": 1.5}
    assert admin.http.put("/api/task-types/noise", json=NOISE).json()["rateLimit"] is None
    assert admin.http.get("/api/task-types/noise").json() == admin.http.put("/api/task-types/noise", json=NOISE).json()


def test_a_paused_type_is_not_handed_out_and_resuming_wakes_waiting_claims(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """The claim in the other process stays parked, and no poll helps."""
    here, there = api_server(backstop_seconds=3600), api_server(backstop_seconds=3600)
    admin = Person(here, "root", admin=True)
    change(admin, paused=True)
    jobs = {Person(here).submit() for _ in range(2)}
    assert Worker(there).claim_all() == []
    waiting = [threads.submit(Worker(there, f"w{n}").claim_all, waitSeconds=30) for n in range(2)]
    wait_until(lambda: there.parked == 2, "the claims to be parked")
    change(admin, paused=False)
    assert {job["id"] for wait in waiting for job in wait.result(timeout=10)} == jobs


def test_a_raised_limit_wakes_as_many_as_it_lets_run(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """From one to three concurrent runs: two parked claims get a job, the third one waits."""
    api = api_server(backstop_seconds=3600)
    admin = Person(api, "root", admin=True)
    change(admin, maxConcurrentRuns=1)
    for _ in range(4):
        Person(api).submit()
    Worker(api).claim()
    waiting = [threads.submit(Worker(api, f"w{n}").claim_all, waitSeconds=1.5) for n in range(3)]
    wait_until(lambda: api.parked == 3, "the claims to be parked")
    change(admin, maxConcurrentRuns=3)
    assert sorted(len(wait.result(timeout=10)) for wait in waiting) == [0, 1, 1]


def test_a_rate_limit_holds_in_every_period(api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor) -> None:
    """Twelve workers in two processes request as many jobs as possible. By the database's clock there is never a sixth
    claim within the period, and waiting claims are woken when it has passed.
    """
    apis = [api_server(), api_server()]
    admin, person = Person(apis[0], "root", admin=True), Person(apis[0])
    change(admin, rateLimit={"count": 5, "periodSeconds": 0.7})
    total = 22
    for _ in range(total):
        person.submit()
    got: list[str] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        worker = Worker(apis[number % 2], f"w{number}")
        while len(got) < total:
            jobs = worker.claim_all(maxJobs=2, waitSeconds=0.5)
            with lock:
                got.extend(job["id"] for job in jobs)

    began = time.monotonic()
    for future in [threads.submit(work, number) for number in range(12)]:
        future.result(timeout=60)
    assert sorted(set(got)) == sorted(got)
    # Four full periods pass between the first and the last. A poll every five seconds would take far longer.
    assert time.monotonic() - began < 15
    url = apis[0].settings.conninfo or ""
    claims = [row["claimed_at"] for row in rows(url, "SELECT claimed_at FROM rate_claims ORDER BY claimed_at")]
    assert len(claims) == total
    gaps = [(later - earlier).total_seconds() for earlier, later in zip(claims, claims[5:], strict=False)]
    assert min(gaps) >= 0.7


def test_one_limited_type_that_is_stuck_does_not_keep_others_from_their_jobs(api: RunningApi, admin: Person) -> None:
    """A transaction keeps the limited type's lock. A claim for both types gets the other one's job."""
    import psycopg

    admin.http.put("/api/task-types/noise", json=NOISE | {"maxConcurrentRuns": 1}).raise_for_status()
    Worker(api).claim_all(taskTypes=["geotiff_to_png", "noise"])
    job_id = Person(api).submit()
    with psycopg.connect(api.settings.conninfo or "") as other:
        other.execute("SELECT FROM task_types WHERE name = 'noise' FOR NO KEY UPDATE")
        assert Worker(api).claim(taskTypes=["geotiff_to_png", "noise"])["id"] == job_id


def test_a_lease_and_a_timeout_that_change_reach_a_running_job(api: RunningApi, person: Person, admin: Person) -> None:
    """The next heartbeat of a running job has both, and uses the new lease duration."""
    person.submit()
    worker = Worker(api)
    job = worker.claim()
    assert (job["timeoutSeconds"], worker.heartbeat(job)["leaseSeconds"]) == (3600, 60)
    change(admin, leaseSeconds=6, timeoutSeconds=40)
    renewed = worker.heartbeat(job)
    assert (renewed["leaseSeconds"], renewed["timeoutSeconds"]) == (6, 40)
    url = api.settings.conninfo or ""
    assert rows(url, "SELECT lease_expires_at < now() + interval '7 seconds' AS short FROM jobs") == [{"short": True}]
    # A held heartbeat returns within the new lease.
    began = time.monotonic()
    worker.call("heartbeat", job, {"waitSeconds": 30}).raise_for_status()
    assert time.monotonic() - began < 5
    person.submit()
    assert worker.claim()["heartbeatSeconds"] == 2


def test_without_timeouts_no_worker_gets_one(api_server: Callable[..., RunningApi]) -> None:
    """`ENABLE_JOB_TIMEOUTS=false`: null in claims and heartbeats, and the server ends no job."""
    api = api_server(enable_job_timeouts=False, timeout_grace_seconds=0)
    Person(api).submit()
    worker = Worker(api)
    job = worker.claim()
    assert (job["timeoutSeconds"], worker.heartbeat(job)["timeoutSeconds"]) == (None, None)
    url = api.settings.conninfo or ""
    rows(url, "UPDATE jobs SET claimed_at = claimed_at - interval '1 day'")
    Person(api).submit()
    expired = worker.claim()
    rows(url, "UPDATE jobs SET lease_expires_at = now() WHERE id = %s", expired["id"])
    wait_until(lambda: Person(api).look(expired["id"])["state"] == "queued", "a round of the rescuer")
    assert Person(api).look(job["id"])["state"] == "running"


def test_a_job_past_its_timeout_is_ended_though_its_worker_keeps_it_alive(
    api_server: Callable[..., RunningApi],
) -> None:
    """Retried once with the type's backoff, then failed, since it would time out again. Each lease is lost."""
    api = api_server(timeout_grace_seconds=0)
    url = api.settings.conninfo or ""
    rows(url, "UPDATE task_types SET backoff_seconds = '{0}'")
    person, worker = Person(api), Worker(api)
    job_id = person.submit()
    for state in ("queued", "failed"):
        job = worker.claim(waitSeconds=10)
        worker.heartbeat(job)
        rows(url, "UPDATE jobs SET claimed_at = claimed_at - interval '3601 seconds'")
        wait_until(partial(is_state, person, job_id, state), f"the job to be {state}")
        assert code_of(worker.call("heartbeat", job)) == (409, "lease_lost")
    ended = person.look(job_id)
    assert (ended["error"]["class"], ended["error"]["code"], ended["attempt"]) == ("timeout", "timeout", 2)
    assert rows(url, "SELECT lost_workers FROM jobs") == [{"lost_workers": 0}]
    assert person.event_types(job_id)[-4:] == ["retry_scheduled", "claimed", "started", "failed"]


def test_the_environment_sets_types_until_an_operator_changes_them(api_server: Callable[..., RunningApi]) -> None:
    """`TASK_TYPES` creates and changes at each start, except types changed by an operator."""
    first = api_server(task_types=[NOISE, {"name": "geotiff_to_png", "maxConcurrentRuns": 4}])
    admin = Person(first, "root", admin=True)
    assert admin.http.get("/api/task-types/noise").json()["input"] == "none"
    kind = admin.http.get("/api/task-types/geotiff_to_png").json()
    assert (kind["maxConcurrentRuns"], len(kind["outputs"])) == (4, 12)
    change(admin, "noise", maxAttempts=2)
    second = api_server(task_types=[NOISE | {"maxAttempts": 9}, {"name": "geotiff_to_png", "maxConcurrentRuns": 6}])
    there = Person(second, "root", admin=True)
    assert there.http.get("/api/task-types/noise").json()["maxAttempts"] == 2
    assert there.http.get("/api/task-types/geotiff_to_png").json()["maxConcurrentRuns"] == 6


async def test_invalid_types_of_the_environment_are_named(postgres_url: str, tmp_path: Any) -> None:
    """One sentence at startup, with the field."""
    from geo_jobs_api.app import services
    from tests.support.api import make_settings

    settings = make_settings(postgres_url, tmp_path / "data", task_types=[{"name": "noise", "maxAttempts": 0}])
    with pytest.raises(ConfigurationError, match=r"TASK_TYPES.*maxAttempts"):
        async with services(settings):
            pass


@pytest.fixture
def command(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line on the API's database."""
    from geo_jobs_api import cli

    settings = api.settings
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)
    monkeypatch.setattr("geo_jobs_api.cli.load_settings", lambda: settings)
    return lambda *arguments: cli.main(arguments)


def test_types_are_managed_by_commands(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """apply, list, show, set, pause and resume have the effect of the API calls."""
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(NOISE)))
    assert command("task-types", "apply", "-") == 0
    assert command("task-types", "set", "noise", "rateLimit=10/60", "backoffSeconds=[1,5]", "maxConcurrentRuns=3") == 0
    assert command("task-types", "pause", "noise") == 0
    capsys.readouterr()
    assert command("task-types", "show", "noise", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rateLimit"] == {"count": 10, "periodSeconds": 60}
    assert (shown["backoffSeconds"], shown["paused"], shown["input"]) == ([1, 5], True, "none")
    assert command("task-types", "list") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("noise")]
    assert line.split()[:3] == ["noise", "yes", "3"]
    # A second apply keeps limits that it does not contain.
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([NOISE])))
    assert command("task-types", "apply", "-") == 0
    assert command("task-types", "resume", "noise") == 0
    capsys.readouterr()
    command("task-types", "show", "noise", "--json")
    assert json.loads(capsys.readouterr().out)["maxConcurrentRuns"] == 3
    assert command("task-types", "set", "noise", "maxAttempts=none") == 1
    assert "maxAttempts" in capsys.readouterr().err
    assert command("task-types", "pause", "nothing") == 1
    with pytest.raises(SystemExit):
        command("task-types", "set", "noise", "maxAttemps=3")
