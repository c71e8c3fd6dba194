"""Fair shares: a caller with thousands of jobs delays no other, and every job is claimed eventually."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from geo_jobs_api.database.queries import load_queries
from tests.support.database import DatabaseServer

_KIND = "geotiff_to_png"
_claim = load_queries("leases.sql").claim_jobs.sql
_fail = load_queries("leases.sql").fail_job.sql
_redrive = load_queries("operators.sql").redrive_failed.sql


@dataclass
class Line:
    """The queue with an adjustable clock, which ages all rows."""

    connection: psycopg.Connection[DictRow]

    def queue(self, owner: str, count: int = 1, priority: int = 0) -> None:
        """Queue this many jobs with one statement, as a batch does."""
        self.connection.execute(
            b"INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name,"
            b" input_size_bytes, uploaded_at, fair_share_at)"
            b" SELECT gen_random_uuid(), %s, %s, 'queued', %s, '{}', 5, 'a.tif', 1,"
            b" now(), next_fair_share(%s, %s, %s, n) FROM generate_series(0, %s - 1) AS n",
            [owner, _KIND, priority, owner, _KIND, priority, count],
        )

    def claim(self, count: int = 1) -> list[str]:
        """Claim and end the next jobs. Return their owners, with priorities other than 0."""
        claimed = self.connection.execute(
            _claim,
            {
                "task_types": [_KIND], "limits_locked": False, "limit": count, "first_lease_seconds": 15.0,
                "claim_ids": ["00000000-0000-4000-8000-000000000000"], "lease_secrets": ["k"], "worker_ids": ["w"],
                "worker_names": ["w"], "shares": [count], "max_file_size": None, "memory_mb": None,
                "source_hosts": None,
            },
        ).fetchall()  # fmt: skip
        ids = [row["id"] for row in claimed]
        found = self.connection.execute(b"SELECT id, owner, priority FROM jobs WHERE id = ANY(%s)", [ids]).fetchall()
        names = {row["id"]: f"{row['owner']}{row['priority'] or ''}" for row in found}
        self.connection.execute(b"DELETE FROM jobs WHERE id = ANY(%s)", [ids])
        return [names[job_id] for job_id in ids]

    def questions(self) -> int:
        """Count this connection's calls of next_fair_share that are not yet in the shared statistics."""
        counted = self.connection.execute(
            b"SELECT coalesce(sum(calls), 0)::integer AS calls FROM pg_stat_xact_user_functions"
            b" WHERE funcname = 'next_fair_share'"
        ).fetchall()
        return int(counted[0]["calls"])

    def wait(self, seconds: float) -> None:
        """Advance the clock."""
        self.connection.execute(
            b"UPDATE jobs SET run_at = run_at - make_interval(secs => %s),"
            b" fair_share_at = fair_share_at - make_interval(secs => %s)",
            [seconds, seconds],
        )


@pytest.fixture(scope="module")
def connection(postgres: DatabaseServer) -> Iterator[psycopg.Connection[Any]]:
    with postgres.clone() as url, psycopg.connect(url, autocommit=True, row_factory=dict_row) as opened:
        yield opened


@pytest.fixture
def line(connection: psycopg.Connection[DictRow]) -> Line:
    connection.execute("DELETE FROM jobs")
    connection.execute("UPDATE task_types SET timeout_seconds = 3600")
    return Line(connection)


@pytest.mark.parametrize("seconds_per_job", [0.01, 60, 3000])
def test_a_newcomer_waits_for_no_more_than_a_few_of_a_thousand(line: Line, seconds_per_job: float) -> None:
    """For jobs of any duration, and any number of them done already."""
    line.queue("bulk", 1000)
    for served in (0, 1, 100):
        assert set(line.claim(served) if served else []) <= {"bulk"}
        line.wait(served * seconds_per_job)
        line.queue("ada")
        assert "ada" in line.claim(4)


def test_two_callers_with_many_jobs_get_every_other_one(line: Line) -> None:
    """The later caller neither waits for all jobs of the earlier one nor passes all of them."""
    line.queue("bulk", 300)
    assert line.claim(100) == ["bulk"] * 100
    line.queue("late", 300)
    got = line.claim(100)
    assert 40 <= got.count("late") <= 60


def test_a_caller_alone_waits_for_nothing(line: Line) -> None:
    """A fair share orders and never delays: all jobs are claimable at once."""
    line.queue("bulk", 50)
    assert len(line.claim(50)) == 50


def test_jobs_of_one_caller_come_in_the_order_of_priority_and_age(line: Line) -> None:
    """Jobs of higher priority share turns with earlier ones. A job of lower priority comes last."""
    line.queue("a", 3)
    line.queue("a", 1, priority=-1)
    line.queue("a", 2, priority=2)
    line.queue("a", 1)
    assert line.claim(7) == ["a2", "a", "a2", "a", "a", "a", "a-1"]


def test_low_priority_waits_longer_but_never_forever(line: Line) -> None:
    """An endless stream of newcomers passes a job for one minute per point of priority, and no longer."""
    line.queue("patient", priority=-3)
    passed = 0
    for number in range(100):
        line.queue(f"stream {number}")
        line.wait(10)
        if line.claim() == ["patient-3"]:
            break
        passed += 1
    assert 17 <= passed <= 19


def test_new_callers_do_not_delay_a_caller_with_scheduled_turns(line: Line) -> None:
    """Future turns, used while alone, do not put a caller last for as long as newcomers keep coming."""
    line.connection.execute("UPDATE task_types SET timeout_seconds = 20")
    line.queue("bulk", 50)
    line.claim(40)
    got: list[str] = []
    for number in range(60):
        line.queue(f"stream {number}")
        got += line.claim()
        if got.count("bulk") == 2:
            break
    assert got.count("bulk") == 2


def test_a_job_that_is_tried_again_keeps_its_turn(line: Line) -> None:
    """It stays next. Jobs that its caller queued after it stay behind newcomers."""
    line.queue("bulk", 5)
    line.claim(1)
    claimed = line.connection.execute(
        _claim,
        {
            "task_types": [_KIND], "limits_locked": False, "limit": 1, "first_lease_seconds": 15.0,
            "claim_ids": ["00000000-0000-4000-8000-000000000000"], "lease_secrets": ["k"], "worker_ids": ["w"],
            "worker_names": ["w"], "shares": [1], "max_file_size": None, "memory_mb": None, "source_hosts": None,
        },
    ).fetchall()  # fmt: skip
    (job,) = claimed
    line.connection.execute(b"UPDATE jobs SET owner = 'again' WHERE id = %s", [job["id"]])
    line.connection.execute(
        _fail,
        {
            "id": job["id"], "lease_seq": 1, "lease_secret": "k", "request_digest": b"d", "next_state": "queued",
            "delay_seconds": 30.0, "uses_attempt": True, "source_bytes": None, "error": Jsonb({"class": "transient"}),
            "avoid_seconds": 0.0, "live_seconds": 0.0,
        },
    )  # fmt: skip
    line.wait(31)
    line.queue("newcomer")
    assert line.claim(5) == ["again", "newcomer", "bulk", "bulk", "bulk"]


def test_requeued_jobs_line_up_with_one_query_of_their_place(line: Line) -> None:
    """Oldest failure first, one step apart, for any number. One call per job took 45 s for 10,000 of them."""
    line.queue("bulk", 40)
    line.queue("bulk", 10, priority=3)
    line.queue("ada", 10)
    line.connection.execute(
        b"UPDATE jobs SET state = 'failed', error = '{}',"
        b" finished_at = now() - make_interval(secs => hashtext(id::text) % 1000 + 2000)"
    )
    wanted = ("owner", "task_type", "error_class", "error_code", "ended_after", "ended_before")
    with line.connection.transaction():
        failed = line.connection.execute(b"SELECT id FROM jobs ORDER BY owner, priority, finished_at, id").fetchall()
        line.connection.execute(b"SET LOCAL track_functions = 'all'")
        before = line.questions()
        line.connection.execute(_redrive, dict.fromkeys(wanted) | {"limit": 1000})
        asked = line.questions() - before
    assert asked <= 3 * 3
    back = line.connection.execute(b"SELECT id FROM jobs ORDER BY owner, priority, fair_share_at").fetchall()
    assert back == failed
    assert line.connection.execute(
        b"SELECT count(DISTINCT fair_share_at) AS n FROM jobs WHERE owner = 'bulk'"
    ).fetchone() == {"n": 40}


def test_ready_children_line_up_with_one_query_of_their_place(line: Line) -> None:
    """In creation order, one step apart. One call per child took 3 s for 4,000 of them."""
    line.queue("ada", 60)
    line.queue("bob", 20)
    (parent, *_) = line.connection.execute(b"SELECT id FROM jobs WHERE owner = 'ada' ORDER BY id LIMIT 1").fetchall()
    with line.connection.transaction():
        line.connection.execute(
            b"UPDATE jobs SET state = 'blocked', fair_share_at = NULL, pending_parents = 1 WHERE id <> %s",
            [parent["id"]],
        )
        line.connection.execute(
            b"INSERT INTO job_dependencies (parent_id, child_id, on_parent_failure)"
            b" SELECT %s, id, 'run' FROM jobs WHERE state = 'blocked'",
            [parent["id"]],
        )
        line.connection.execute(
            b"UPDATE jobs SET state = 'failed', error = '{}', finished_at = now() WHERE id = %s", [parent["id"]]
        )
        line.connection.execute(b"SET LOCAL track_functions = 'all'")
        before = line.questions()
        line.connection.execute(b"SELECT release_dependents(ARRAY[%s])", [parent["id"]])
        asked = line.questions() - before
    assert asked <= 2 * 3
    for owner, count in (("ada", 59), ("bob", 20)):
        ready = line.connection.execute(
            b"SELECT id, fair_share_at FROM jobs WHERE state = 'queued' AND owner = %s ORDER BY fair_share_at", [owner]
        ).fetchall()
        assert [job["id"] for job in ready] == sorted(job["id"] for job in ready)
        assert {later["fair_share_at"] - job["fair_share_at"] for job, later in pairwise(ready)} == {
            timedelta(seconds=3600)
        }
        assert len(ready) == count
