"""Dependent jobs: any order of ends, deep and wide graphs, races between ends and creations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from geo_jobs_api.database.queries import load_queries
from tests.support.api import RunningApi
from tests.support.clients import TIFF, Person, Worker, code_of, expire_leases, put, rows
from tests.support.waiting import wait_until

WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SOURCE = {"sourceUrl": "https://maps.example.org/data/a%20map.tif?day=1"}


@pytest.fixture(scope="session")
def shared_api(shared_linked_api: RunningApi) -> RunningApi:
    """An API that allows all source hosts."""
    return shared_linked_api


def wait_for(*parents: Mapping[str, Any] | str, on: str = "cancel", **fields: Any) -> dict[str, Any]:
    """The body of a job that depends on these."""
    ids = [parent if isinstance(parent, str) else parent["id"] for parent in parents]
    edges = [{"jobId": parent, "onParentFailure": on} for parent in ids]
    return {"taskType": "geotiff_to_png", "inputPayload": SOURCE, "dependsOn": edges} | fields


def make(person: Person, body: Mapping[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = person.http.post("/api/geo-jobs", json=body).raise_for_status().json()
    return job


def state_of(person: Person, job: Mapping[str, Any] | str) -> str:
    return str(person.look(job if isinstance(job, str) else job["id"])["state"])


def test_a_child_is_queued_by_the_end_of_its_last_parent(person: Person, worker: Worker) -> None:
    """One of two parents is not enough. A parked claim is woken for the child."""
    parents = [person.submit(), person.submit()]
    child = make(person, wait_for(*parents))
    assert (child["state"], child["pendingParents"]) == ("blocked", 2)
    worker.complete(worker.claim())
    assert state_of(person, child) == "blocked"
    worker.complete(worker.claim())
    claimed = worker.claim()
    assert claimed["id"] == child["id"]
    assert person.event_types(child["id"]) == ["created", "queued", "claimed"]


@pytest.mark.parametrize(("policy", "state"), [("cancel", "cancelled"), ("run", "queued"), ("hold", "blocked")])
@pytest.mark.parametrize("ending", ["fail", "cancel", "cancel a running one", "rescue", "unlock"])
def test_the_child_decides_the_effect_of_its_parents_failure(
    person: Person, worker: Worker, api: RunningApi, policy: str, state: str, ending: str
) -> None:
    """For each kind of end: a report, its owner, its owner while it runs, the rescuer, an operator."""
    parent = person.submit()
    child, other = make(person, wait_for(parent, on=policy)), make(person, {"taskType": "geotiff_to_png"})
    if ending == "fail":
        worker.fail(worker.claim(), "invalid_input").raise_for_status()
    elif ending == "cancel":
        person.cancel(parent).raise_for_status()
    elif ending == "cancel a running one":
        job = worker.claim()
        person.cancel(parent).raise_for_status()
        assert state_of(person, child) == "blocked"
        worker.fail(job, "cancelled").raise_for_status()
    elif ending == "unlock":
        worker.claim()
        person.cancel(parent).raise_for_status()
        admin = Person(api, "root", admin=True)
        admin.http.post(f"/api/geo-jobs/{parent}/unlock").raise_for_status()
    else:
        rows(api.settings.conninfo or "", "UPDATE jobs SET lost_workers = 2 WHERE id = %s", parent)
        worker.heartbeat(worker.claim())
        expire_leases(api.settings.conninfo or "")
        wait_until(lambda: state_of(person, parent) == "failed", "the rescuer to give up on the job")
    assert state_of(person, child) == state
    assert state_of(person, other) == "awaiting_upload"
    if state == "cancelled":
        assert parent in person.look(child["id"])["cancelReason"]


def test_a_held_child_waits_until_its_parent_has_succeeded_after_all(person: Person, worker: Worker) -> None:
    """A child that ran despite the failure is not counted down twice."""
    parent = person.submit()
    held, other = make(person, wait_for(parent, on="hold")), person.submit()
    both = make(person, wait_for(parent, other, on="run"))
    worker.fail(worker.claim(), "invalid_input")
    assert [state_of(person, job) for job in (held, both)] == ["blocked", "blocked"]
    assert person.look(both["id"])["pendingParents"] == 1
    person.http.post(f"/api/geo-jobs/{parent}/retry").raise_for_status()
    jobs = {job["id"]: job for job in worker.claim_all(maxJobs=5)}
    worker.complete(jobs[parent])
    assert [state_of(person, job) for job in (held, both)] == ["queued", "blocked"]
    worker.complete(jobs[other])
    assert state_of(person, both) == "queued"


def test_a_waiting_child_lists_its_open_parents(person: Person, worker: Worker) -> None:
    """Each open parent, with the remedy for one that never succeeds."""
    good, bad, waiting = person.submit(), person.submit(), person.submit()
    child = make(person, wait_for(good, bad, waiting, on="hold"))
    jobs = {job["id"]: job for job in worker.claim_all(maxJobs=2)}
    worker.complete(jobs[good], [])
    worker.fail(jobs[bad], "invalid_input")
    told = person.http.get(f"/api/geo-jobs/{child['id']}/explain").json()
    assert {reason["code"] for reason in told["reasons"]} == {"parent"}
    failed, queued = sorted((reason["text"] for reason in told["reasons"]), key=len, reverse=True)
    assert f"job {bad} (geotiff_to_png), which is failed. It must succeed" in failed
    assert queued == f"It waits for job {waiting} (geotiff_to_png), which is queued."


def test_a_job_created_after_its_parents_end_behaves_as_one_created_before(person: Person, worker: Worker) -> None:
    """Succeeded: queued at once. Failed: by the child's policy."""
    good, bad = person.submit(), person.submit()
    for job in worker.claim_all(maxJobs=2):
        worker.complete(job) if job["id"] == good else worker.fail(job, "invalid_input")
    assert make(person, wait_for(good))["state"] == "queued"
    assert make(person, wait_for(good, bad))["state"] == "cancelled"
    assert make(person, wait_for(good, bad, on="run"))["state"] == "queued"
    assert make(person, wait_for(good, bad, on="hold"))["state"] == "blocked"


def test_an_output_of_a_parent_is_the_childs_input(person: Person, worker: Worker) -> None:
    """By suffix. The file is the parent's own object with the output's name."""
    parent = person.submit()
    body = {"taskType": "geotiff_to_png", "inputFrom": {"jobId": parent, "output": ".png"}}
    child = make(person, body)
    assert (child["state"], child["input"]) == ("blocked", None)
    missing = make(person, body | {"inputFrom": {"jobId": parent, "output": "_thumb.png"}})
    worker.complete(worker.claim())
    told = worker.claim()
    assert (told["id"], told["input"]["kind"], told["input"]["fileName"]) == (child["id"], "output", "map.png")
    assert worker.http.get(told["input"]["downloadUrl"]).content == b"\x89PNG picture"
    assert told["input"]["sizeBytes"] == len(b"\x89PNG picture")
    assert person.look(missing["id"])["cancelReason"] == f"Job {parent} has no output _thumb.png."


def test_an_upload_and_parents_are_both_waited_for(person: Person, worker: Worker) -> None:
    """In either order."""
    parent = person.submit()
    body = wait_for(parent, inputPayload={})
    early, late = make(person, body), make(person, body)
    put(person.upload_url(early["id"]), content=TIFF).raise_for_status()
    assert [state_of(person, job) for job in (early, late)] == ["blocked", "awaiting_upload"]
    worker.complete(worker.claim())
    assert [state_of(person, job) for job in (early, late)] == ["queued", "awaiting_upload"]
    put(person.upload_url(late["id"]), content=TIFF).raise_for_status()
    assert state_of(person, late) == "queued"


def test_a_failure_at_the_root_cancels_a_deep_chain(person: Person, worker: Worker) -> None:
    """A hundred jobs in a chain. The last one names the job that ended it."""
    root = person.submit()
    chain = [root]
    for _ in range(100):
        chain.append(make(person, wait_for(chain[-1]))["id"])
    worker.fail(worker.claim(), "invalid_input").raise_for_status()
    states = {job["state"] for job in person.http.get("/api/geo-jobs?limit=200").json()["jobs"]}
    assert states == {"failed", "cancelled"}
    assert chain[-2] in person.look(chain[-1])["cancelReason"]


def test_a_thousand_children_and_a_thousand_parents(person: Person, worker: Worker) -> None:
    """One parent releases a thousand jobs. The last of a thousand parents releases one."""
    root = person.submit()
    jobs = [wait_for(root) for _ in range(1000)]
    parents = person.http.post("/api/geo-jobs/batch", json={"jobs": jobs}).raise_for_status().json()["jobs"]
    last = make(person, wait_for(*parents))
    worker.complete(worker.claim()).raise_for_status()
    claimed = [job for _ in range(10) for job in worker.claim_all(maxJobs=100)]
    assert len(claimed) == 1000
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda job: worker.complete(job, []), claimed[1:]):
            answer.raise_for_status()
    assert (state_of(person, last), person.look(last["id"])["pendingParents"]) == ("blocked", 1)
    worker.complete(claimed[0], []).raise_for_status()
    assert worker.claim()["id"] == last["id"]


def waiting_for(api: RunningApi, parent: str, count: int, *, in_a_chain: bool) -> None:
    """Insert blocked jobs behind a parent, more than a test would create over HTTP, with ids before all later ones."""
    rows(
        api.settings.conninfo or "",
        "WITH made AS ("
        " INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, input_kind, max_attempts, run_at,"
        " pending_parents)"
        " SELECT overlay(gen_random_uuid()::text PLACING '00' FROM 1)::uuid,"
        " 'ada', 'geotiff_to_png', 'blocked', 0, '{}', 'none', 5, now(), 1"
        " FROM generate_series(1, %s) RETURNING id"
        "), line AS (SELECT id, lag(id) OVER (ORDER BY id) AS before FROM made)"
        " INSERT INTO job_dependencies (parent_id, child_id, on_parent_failure)"
        " SELECT CASE WHEN %s THEN coalesce(before, %s) ELSE %s END, id, 'cancel' FROM line",
        count, in_a_chain, parent, parent,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "in_a_chain", "ending", "state"),
    [(6000, False, "complete", "queued"), (6000, False, "fail", "cancelled"), (700, True, "fail", "cancelled")],
    ids=["all succeed", "all are cancelled", "a long chain"],
)
def test_an_end_with_very_many_dependents_reaches_them_in_batches(
    person: Person, worker: Worker, api: RunningApi, count: int, in_a_chain: bool, ending: str, state: str
) -> None:
    """The statement that ends a job does a bounded part. The rescuer does the rest at once."""
    parent = person.submit()
    waiting_for(api, parent, count, in_a_chain=in_a_chain)
    job = worker.claim()
    (worker.complete(job, []) if ending == "complete" else worker.fail(job, "invalid_input")).raise_for_status()

    def reached() -> int:
        url = api.settings.conninfo or ""
        ended = "SELECT count(*) AS n FROM jobs WHERE state = %s AND id <> %s"
        return int(rows(url, ended, state, parent)[0]["n"])

    assert 0 < reached() < count
    wait_until(lambda: reached() == count, "all that wait for it to have heard of it", 30)
    assert rows(api.settings.conninfo or "", "SELECT * FROM pending_releases") == []
    events = rows(api.settings.conninfo or "", "SELECT job_id FROM job_events WHERE type = %s", state)
    assert len(events) - len({event["job_id"] for event in events}) == 0, "each of them once"


@contextlib.contextmanager
def gate(api: RunningApi, trigger: str) -> Iterator[tuple[Callable[[], int], Callable[[], None]]]:
    """Stop transactions at a trigger. Yields the number of those that wait, for the gate or a row, and the opener."""
    url = api.settings.conninfo or ""
    function = (
        "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END'"
    )
    rows(url, f"{function}; {trigger} FOR EACH ROW EXECUTE FUNCTION wait_at_gate()")
    try:
        with psycopg.connect(url) as keeper:
            keeper.execute("SELECT pg_advisory_xact_lock(1)")
            yield lambda: len(rows(url, WAITING)), keeper.rollback
    finally:
        rows(url, "DROP FUNCTION wait_at_gate CASCADE")


@pytest.mark.parametrize("ending", ["complete", "cancel"])
@pytest.mark.parametrize(
    ("first", "trigger"),
    [
        ("create", "CREATE TRIGGER gate BEFORE INSERT ON jobs"),
        ("create", "CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED"),
        ("end", "CREATE TRIGGER gate BEFORE UPDATE ON jobs"),
        ("end", "CREATE CONSTRAINT TRIGGER gate AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED"),
    ],
    ids=["parent locked by creation", "creation commits", "parent locked by end", "end commits"],
)
def test_a_parent_that_ends_while_its_child_is_created_is_never_missed(
    person: Person, worker: Worker, api: RunningApi, threads: ThreadPoolExecutor, ending: str, first: str, trigger: str
) -> None:
    """One pauses until the other waits for it, then both go on. The child never waits for an ended parent."""
    parent = person.submit()
    job = worker.claim() if ending == "complete" else None

    def end() -> dict[str, Any]:
        answer = person.cancel(parent) if job is None else worker.complete(job, [])
        return dict(answer.raise_for_status().json())

    with gate(api, trigger) as (waiting, let_pass):
        one = threads.submit(make, Person(api), wait_for(parent)) if first == "create" else threads.submit(end)
        wait_until(lambda: waiting() == 1, "the first at the gate")
        other = threads.submit(end) if first == "create" else threads.submit(make, Person(api), wait_for(parent))
        wait_until(lambda: waiting() == 2, "the second behind it")
        let_pass()
        child = (one.result(), other.result())[first == "end"]
    assert state_of(person, child) == ("cancelled" if job is None else "queued")


@pytest.mark.parametrize("ending", ["complete", "cancel"])
def test_an_end_that_began_before_the_creation_of_a_child_releases_it(
    person: Person, worker: Worker, api: RunningApi, threads: ThreadPoolExecutor, ending: str
) -> None:
    """The statement has begun, and waits for the parent's row while the child is created."""
    parent = person.submit()
    job = worker.claim() if ending == "complete" else None
    url = api.settings.conninfo or ""
    with psycopg.connect(url) as reader:
        reader.execute("SELECT FROM jobs WHERE id = %s FOR SHARE", [parent])
        ended = threads.submit(person.cancel, parent) if job is None else threads.submit(worker.complete, job, [])
        wait_until(lambda: len(rows(url, WAITING)) == 1, "the end to wait")
        child = make(Person(api), wait_for(parent))
        assert child["state"] == "blocked"
        reader.rollback()
        ended.result().raise_for_status()
    assert state_of(person, child) == ("cancelled" if job is None else "queued")


def test_a_child_created_during_a_batched_release_is_not_left_behind(
    api_server: Callable[..., RunningApi], threads: ThreadPoolExecutor
) -> None:
    """The creation finds its parent already noted for a release, which runs before the creation commits."""
    api = api_server(rescue_interval_seconds=600)  # the test releases
    url, person, worker = api.settings.conninfo or "", Person(api), Worker(api)
    parent = person.submit()
    worker.complete(worker.claim(), []).raise_for_status()
    waiting_for(api, parent, 2000, in_a_chain=False)
    rows(url, "INSERT INTO pending_releases VALUES (%s)", parent)
    release = load_queries("maintenance.sql").release_pending.sql.replace("%(limit)s", "%s")
    with gate(api, "CREATE TRIGGER gate BEFORE UPDATE ON job_dependencies") as (waiting, let_pass):
        creation = threads.submit(make, person, {"taskType": "geotiff_to_png", "dependsOn": [{"jobId": parent}]})
        wait_until(lambda: waiting() == 1, "the creation at the gate")
        released = threads.submit(rows, url, release, 100)
        wait_until(lambda: released.done() or waiting() == 2, "the release to end or wait")
        let_pass()
        creation.result()
        released.result()
    while rows(url, release, 100)[0]["jobs"]:
        pass
    assert rows(url, "SELECT * FROM job_dependencies WHERE NOT settled") == []


def test_a_parent_must_be_there_and_be_the_callers(person: Person, api: RunningApi) -> None:
    """Unknown and other owners' parents give the same message, and nothing is created."""
    mine = person.submit()
    other = Person(api, "bob")
    for body in (wait_for(mine), wait_for("01900000-0000-7000-8000-000000000000")):
        assert code_of(other.http.post("/api/geo-jobs", json=body)) == (422, "parent_not_found")
    assert other.http.get("/api/geo-jobs").json()["jobs"] == []
    twice = {"jobId": mine}
    assert (
        code_of(person.http.post("/api/geo-jobs", json=wait_for() | {"dependsOn": [twice, twice]}))[1] == "validation"
    )
    held = {"inputPayload": {}, "inputFrom": {"jobId": mine, "output": ".png"}}
    assert code_of(person.http.post("/api/geo-jobs", json=wait_for(mine, on="run") | held))[1] == "validation"
