"""The queue against a model of it: any order of calls by several workers, on the real API and database.

A long run: `pytest tests/api/test_model.py --hypothesis-profile=long`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from psycopg.rows import dict_row

from geo_jobs_api.database.pool import Pool, open_pool
from geo_jobs_api.maintenance.rescuer import RescuePolicy
from geo_jobs_api.maintenance.store import MaintenanceStore
from geo_jobs_api.queue.lease_records import RescuedJob
from tests.support.api import RunningApi, make_settings, run_api
from tests.support.clients import Person, Worker
from tests.support.database import DatabaseServer, empty_queue

MAX_ATTEMPTS, MAX_LOSSES = 3, 3
# For each class of failure: whether the attempt is spent, and whether the job may be retried.
CLASSES = {
    "transient": (True, True), "internal": (True, True), "interrupted": (False, True), "invalid_input": (True, False),
}  # fmt: skip
Answer = tuple[int, str]
PICK = st.integers(0, 1000)
# The model's clock advances once for each moment that order depends on. A turn is longer than any run.
TURN = 1_000_000
# Leases must not expire by the machine's clock. The state machine expires them.
LONG = {"rescue_interval_seconds": 3600, "first_lease_seconds": 3600, "lease_seconds": 7200}


@dataclass(eq=False)
class Job:
    """The state of a job by the design."""

    id: str
    number: int
    turn: int
    state: str = "queued"
    attempt: int = 0
    losses: int = 0
    lease_seq: int = 0
    percent: float = 0
    is_confirmed: bool = False
    is_expired: bool = False
    is_cancel_requested: bool = False
    claimed_at: int = 0

    def release(self, state: str) -> None:
        self.state = state
        self.is_confirmed = self.is_expired = False
        if state == "queued":
            self.turn = min(self.turn, self.claimed_at)


@dataclass(eq=False)
class Lease:
    """A granted lease, and its end."""

    job: Job
    seq: int
    claim_id: str
    wire: Mapping[str, Any]
    ended_by: str | None = None
    report: object = None
    answer: Answer | None = None

    @property
    def is_held(self) -> bool:
        return self.job.state == "running" and self.job.lease_seq == self.seq

    def refusal(self) -> Answer:
        """The response to every call on an ended lease, unless it repeats a report."""
        if self.job.state == "cancelled":
            return (409, "job_cancelled")
        return (409, "already_finalized" if self.ended_by in {"complete", "fail"} else "lease_lost")


@dataclass
class System:
    """The real system."""

    api: RunningApi
    connection: psycopg.Connection[Any]
    rescue: Callable[[], list[RescuedJob]]
    person: Person = field(init=False)
    worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        self.person, self.worker = Person(self.api), Worker(self.api)


class Queue(RuleBasedStateMachine):
    """Each rule acts on the real queue and on the model, and compares them."""

    system: System

    def __init__(self) -> None:
        super().__init__()
        empty_queue(self.system.api.settings.conninfo or "")
        self.system.connection.execute(
            "UPDATE task_types SET max_attempts = %s, backoff_seconds = '{0}'", [MAX_ATTEMPTS]
        )
        self.jobs: list[Job] = []
        self.leases: list[Lease] = []
        self.now = 0

    def next_turn(self) -> int:
        """One turn after the last waiting job: all belong to one caller and have one priority."""
        self.now += 1
        return max([self.now] + [job.turn + TURN for job in self.jobs if job.state == "queued"])

    def job(self, pick: int) -> Job:
        return self.jobs[pick % len(self.jobs)]

    def lease(self, pick: int) -> Lease:
        """Any granted lease, recent ones more often."""
        return self.leases[-1 - pick % len(self.leases)]

    @rule()
    def create(self) -> None:
        self.jobs.append(Job(self.system.person.submit(), len(self.jobs), self.next_turn()))
        self.compare()

    @rule(most=st.integers(1, 3))
    def claim(self, most: int) -> None:
        self.claim_as(str(uuid4()), most)

    @precondition(lambda self: self.leases)
    @rule(pick=PICK, most=st.integers(1, 3))
    def repeat_claim(self, pick: int, most: int) -> None:
        """The same claim id returns the held leases. Without any, it is a new claim."""
        self.claim_as(self.lease(pick).claim_id, most)

    def claim_as(self, claim_id: str, most: int) -> None:
        got = self.system.worker.claim_all(claimId=claim_id, maxJobs=most)
        again = [
            lease for lease in self.leases if lease.claim_id == claim_id and lease.is_held and not lease.job.is_expired
        ]
        if again:
            assert {job["leaseToken"] for job in got} == {lease.wire["leaseToken"] for lease in again}
            return
        waiting = [job for job in self.jobs if job.state == "queued"]
        # Jobs of one claim that came back have the turn of that claim. Among them the older is first.
        wanted = sorted(waiting, key=lambda job: (job.turn, job.number))[:most]
        self.now += 1
        assert [job["id"] for job in got] == [job.id for job in wanted]
        for job, wire in zip(wanted, got, strict=True):
            job.state, job.lease_seq, job.percent, job.claimed_at = "running", job.lease_seq + 1, 0, self.now
            assert wire["attempt"] == job.attempt + 1
            self.leases.append(Lease(job, job.lease_seq, claim_id, wire))
        self.compare()

    def call(self, lease: Lease, verb: str, body: Mapping[str, Any]) -> tuple[Answer, Any]:
        answer: httpx.Response = self.system.worker.call(verb, lease.wire, body)
        told = answer.json()
        return (answer.status_code, told.get("code") or told.get("state") or ""), told

    @precondition(lambda self: self.leases)
    @rule(pick=PICK, percent=st.none() | st.integers(0, 100))
    def live(self, pick: int, percent: int | None) -> None:
        """Heartbeat, or progress."""
        lease = self.lease(pick)
        verb, body = ("heartbeat", {}) if percent is None else ("progress", {"percent": percent})
        answer, told = self.call(lease, verb, body)
        job = lease.job
        if not lease.is_held:
            assert answer == lease.refusal()
            return
        assert answer[0] == 200
        assert (told["cancel"] is not None) == job.is_cancel_requested
        if not job.is_confirmed:
            job.attempt, job.is_confirmed = job.attempt + 1, True
        job.percent = max(job.percent, percent or 0)
        job.is_expired = False
        self.compare()

    @precondition(lambda self: self.leases)
    @rule(pick=PICK, content=st.integers(0, 1))
    def complete(self, pick: int, content: int) -> None:
        lease = self.lease(pick)
        answer, told = self.call(lease, "complete", {"outputs": [], "metadata": {"content": content}})
        report = ("complete", content)
        if not lease.is_held:
            self.check_replay(lease, report, answer, told)
            return
        job = lease.job
        job.attempt += not job.is_confirmed
        if job.is_cancel_requested:
            lease.answer = (409, "job_cancelled")
            job.release("cancelled")
        else:
            lease.answer, job.percent = (200, "succeeded"), 100
            job.release("succeeded")
        lease.ended_by, lease.report = "complete", report
        assert answer == lease.answer
        self.compare()

    @precondition(lambda self: self.leases)
    @rule(pick=PICK, error_class=st.sampled_from(sorted(CLASSES)))
    def fail(self, pick: int, error_class: str) -> None:
        lease = self.lease(pick)
        body = {"error": {"class": error_class, "code": "c", "message": "m", "detail": None}}
        answer, told = self.call(lease, "fail", body)
        report = ("fail", error_class)
        if not lease.is_held:
            self.check_replay(lease, report, answer, told)
            return
        job = lease.job
        is_spent, may_retry = CLASSES[error_class]
        job.attempt += (not job.is_confirmed) if is_spent else -job.is_confirmed
        has_left = not is_spent or job.attempt < MAX_ATTEMPTS
        state = "cancelled" if job.is_cancel_requested else "queued" if may_retry and has_left else "failed"
        job.release(state)
        lease.ended_by, lease.report, lease.answer = "fail", report, (200, state)
        assert answer == lease.answer
        assert told["replayed"] is False
        self.compare()

    def check_replay(self, lease: Lease, report: object, answer: Answer, told: Mapping[str, Any]) -> None:
        """The same report gets its first response again, any other one a problem. Nothing changes."""
        if lease.report != report:
            assert answer == lease.refusal()
        else:
            assert answer == lease.answer
            assert told.get("replayed", True) is True
        self.compare()

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        job = self.job(pick)
        status = self.system.person.cancel(job.id).status_code
        if job.state in {"succeeded", "failed"}:
            assert status == 409
        else:
            assert status == 200
            job.is_cancel_requested = True
            if job.state == "queued":
                job.release("cancelled")
        self.compare()

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        job = self.job(pick)
        status = self.system.person.http.post(f"/api/geo-jobs/{job.id}/retry").status_code
        assert status == (200 if job.state == "failed" else 409)
        if job.state == "failed":
            job.attempt = job.losses = 0
            job.percent, job.turn = 0, self.next_turn()
            job.state = "queued"
        self.compare()

    @precondition(lambda self: any(job.state == "running" for job in self.jobs))
    @rule(pick=PICK)
    def expire(self, pick: int) -> None:
        """A worker is silent for longer than its lease."""
        running = [job for job in self.jobs if job.state == "running"]
        job = running[pick % len(running)]
        self.system.connection.execute(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE id = %s", [job.id]
        )
        job.is_expired = True

    @rule()
    def rescue(self) -> None:
        lost = [job for job in self.jobs if job.state == "running" and job.is_expired]
        assert {str(job.id) for job in self.system.rescue()} == {job.id for job in lost}
        for job in lost:
            for lease in self.leases:
                if lease.is_held and lease.job is job:
                    lease.ended_by = "rescue"
            job.losses += job.is_confirmed
            is_final = job.is_confirmed and (job.losses >= MAX_LOSSES or job.attempt >= MAX_ATTEMPTS)
            job.release("cancelled" if job.is_cancel_requested else "failed" if is_final else "queued")
        self.compare()

    def compare(self) -> None:
        """The whole table equals the whole model."""
        statement = "SELECT id::text, state, attempt, lost_workers, lease_seq, percent, lease_confirmed FROM jobs"
        real = {row.pop("id"): row for row in self.system.connection.execute(statement).fetchall()}
        assert real == {
            job.id: {
                "state": job.state,
                "attempt": job.attempt,
                "lost_workers": job.losses,
                "lease_seq": job.lease_seq,
                "percent": job.percent,
                "lease_confirmed": job.is_confirmed,
            }
            for job in self.jobs
        }

    def teardown(self) -> None:
        """Each ended lease has one outcome, each job at most one success, and the log ends with the job's state."""
        outcomes = self.system.connection.execute("SELECT ended_by FROM lease_outcomes").fetchall()
        assert sorted(row["ended_by"] for row in outcomes) == sorted(
            lease.ended_by for lease in self.leases if lease.ended_by
        )
        last = "SELECT DISTINCT ON (job_id) job_id::text, state FROM job_events ORDER BY job_id, id DESC"
        ends = {row["job_id"]: row["state"] for row in self.system.connection.execute(last).fetchall()}
        assert ends == {job.id: job.state for job in self.jobs}


@contextlib.contextmanager
def opened(portal: BlockingPortal, url: str) -> Iterator[Pool]:
    with portal.wrap_async_context_manager(open_pool(url, size=2, wait_seconds=10)) as pool:
        yield pool


@pytest.fixture
def system(postgres: DatabaseServer, tmp_path: Path) -> Iterator[System]:
    """An API without a rescuer of its own: the state machine decides."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres.clone())
        api = stack.enter_context(run_api(make_settings(url, tmp_path / "data", **LONG)))
        connection: psycopg.Connection[Any] = stack.enter_context(
            psycopg.connect(url, autocommit=True, row_factory=dict_row)
        )
        portal = stack.enter_context(start_blocking_portal())
        store = MaintenanceStore(stack.enter_context(opened(portal, url)))

        async def rescue() -> list[RescuedJob]:
            return await store.rescue_lost_jobs(RescuePolicy(1, 10, 60, MAX_LOSSES, 3600))

        yield System(api, connection, lambda: portal.call(rescue))


@pytest.mark.timeout(3600)
def test_any_calls_in_any_order_keep_the_queue_equal_to_its_model(system: System) -> None:
    """After each call every job has the model's state, and every response is the model's."""
    is_long = settings.get_current_profile_name() == "long"
    machine = type("Machine", (Queue,), {"system": system})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=400 if is_long else 12,
            stateful_step_count=80 if is_long else 40,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
