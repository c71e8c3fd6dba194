"""Plans of the hot queries on a queue with a long history: by index, and few pages."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.database.queries import load_queries
from tests.support.database import DatabaseServer

HISTORY = 100_000
_FILL = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, finished_at, outputs, output_lease_seq, lease_seq, run_at
    )
    SELECT
        gen_random_uuid(), 'o' || n % 50, 'geotiff_to_png', 'succeeded', 0, '{}', 5, 'a.tif', 1, now(),
        now() - n * interval '10 seconds', '[]', 1, 1, now() - n * interval '10 seconds'
    FROM generate_series(1, {history}) AS n;
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, run_at
    )
    SELECT
        gen_random_uuid(), 'o' || n % 50, 'geotiff_to_png', 'queued', 0, '{}', 5, 'a.tif', 1, now(),
        now() - n * interval '1 second' + (n % 10 / 9) * interval '1 day'
    FROM generate_series(1, 5000) AS n;
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, lease_seq, lease_secret, lease_expires_at, claim_id, claimed_at, worker_id
    )
    SELECT
        gen_random_uuid(), 'o', 'geotiff_to_png', 'running', 0, '{}', 5, 'a.tif', 1, now(), 1, 'key',
        now() + (n - 2) * interval '1 second', gen_random_uuid(), now(), 'w'
    FROM generate_series(1, 100) AS n;
    INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts, created_at)
    SELECT gen_random_uuid(), 'o', 'geotiff_to_png', 'awaiting_upload', 0, '{}', 5, now() - n * interval '1 hour'
    FROM generate_series(1, 500) AS n;
    INSERT INTO job_events (job_id, type, state) SELECT id, 'succeeded', state FROM jobs;
    INSERT INTO lease_outcomes (job_id, lease_seq, lease_secret, attempt, ended_by, request_digest, state)
    SELECT id, 1, 'k', 1, 'complete', '', 'succeeded' FROM jobs WHERE state = 'succeeded' ON CONFLICT DO NOTHING;
"""


@pytest.fixture(scope="module")
def connection(postgres: DatabaseServer) -> Iterator[psycopg.Connection[Any]]:
    """A queue with 100,000 ended, 5,000 waiting and 100 running jobs, after a vacuum."""
    with postgres.clone() as url, psycopg.connect(url, autocommit=True) as opened:
        opened.execute(_FILL.replace("{history}", str(HISTORY)).encode())
        opened.execute("VACUUM ANALYZE")
        yield opened


def fill(waiting: int = 40_000, running: int = 1000) -> str:
    """Return statements that add jobs, and next to no history."""
    return _FILL.replace("{history}", "1").replace("5000", str(waiting)).replace("(1, 100)", f"(1, {running})")


def some_id(connection: psycopg.Connection[Any], state: str) -> Any:
    row = connection.execute("SELECT id FROM jobs WHERE state = %s LIMIT 1", [state]).fetchone()
    assert row is not None
    return row[0]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


LEASE = {"lease_seq": 1, "lease_secret": "key"}
PROGRESS = {
    "lease_seqs": [1], "lease_secrets": ["key"], "lease_seconds": 60.0,
    "updates": Jsonb([{"percent": 5.0, "stage": "render", "message": "m", "stats": None}]),
}  # fmt: skip
# File, query, parameters, and the expected index.
QUERIES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "claim": (
        "leases.sql",
        "claim_jobs",
        {
            "task_types": ["geotiff_to_png"], "limits_locked": False, "limit": 32,
            "claim_ids": [uuid4() for _ in range(32)], "lease_secrets": ["k"] * 32, "worker_ids": ["w"] * 32,
            "worker_names": ["w"] * 32, "shares": [1] * 32, "first_lease_seconds": 15.0,
            "max_file_size": 100_000_000, "source_hosts": ["%.example.org"], "memory_mb": 4096,
        },
        "jobs_waiting",
    ),
    "heartbeat": ("leases.sql", "renew_leases", PROGRESS, "jobs_pkey"),
    "complete": (
        "leases.sql",
        "complete_jobs",
        {
            "lease_seqs": [1], "lease_secrets": ["key"], "request_digests": [b"d"],
            "results": Jsonb([{"outputs": [], "metadata": {}, "timings": {}, "source": None}]),
        },
        "jobs_pkey",
    ),
    "replay": ("leases.sql", "get_lease_outcome", LEASE, "lease_outcomes_pkey"),
    "rescue": (
        "maintenance.sql",
        "rescue_lost_jobs",
        {
            "max_worker_losses": 3,
            "max_timeouts": 2,
            "cancel_overdue_seconds": 60.0,
            "timeout_grace_seconds": 60.0,
            "limit": 100,
        },
        "",
    ),
    "next loss": (
        "maintenance.sql",
        "seconds_until_next_loss",
        {"cancel_overdue_seconds": 60.0, "timeout_grace_seconds": 60.0},
        "jobs_leases",
    ),
    "wake": (
        "maintenance.sql",
        "poll_queue",
        {"task_types": ["geotiff_to_png"], "limit": 20, "claim_ids": [uuid4() for _ in range(20)]},
        "jobs_due",
    ),
    "retention": (
        "retention.sql",
        "begin_purge",
        {"states": ["succeeded", "cancelled"], "seconds": [86_400.0 * 5, 86_400.0 * 5], "limit": 50},
        "jobs_ended",
    ),
    "retention of the unused": (
        "retention.sql",
        "cancel_unused",
        {"unused_seconds": 86_400.0 * 7, "limit": 50},
        "jobs_unused",
    ),
    "events": ("jobs.sql", "list_events", {"after": 0, "limit": 200}, "job_events_of_job"),
}  # fmt: skip


@pytest.mark.parametrize("name", QUERIES)
def test_a_hot_query_uses_its_index_and_reads_few_pages(connection: psycopg.Connection[Any], name: str) -> None:
    """No plan scans the history, of any length."""
    file, query, parameters, index = QUERIES[name]
    running = some_id(connection, "running")
    parameters = {"id": running, "job_id": running, "ids": [running]} | parameters
    statement = getattr(load_queries(file), query).sql
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL statement_timeout = '20s'")
        cursor = psycopg.ClientCursor(connection)
        row = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode(), parameters).fetchone()
    assert row is not None
    judge(row[0][0]["Plan"], index)


def judge(plan: dict[str, Any], index: str, most_pages: int = 3000) -> None:
    """Check that the plan uses this index, scans no growing table, and reads few pages."""
    found = list(nodes(plan))
    walked = [
        node["Relation Name"]
        for node in found
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in {"jobs", "job_events", "lease_outcomes"}
    ]
    assert walked == []
    assert not index or index in {node.get("Index Name") for node in found}
    # 100,000 jobs fill more than 5,000 pages.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < most_pages


@pytest.mark.parametrize("analyzed", ["never", "small", "full"])
@pytest.mark.parametrize("name", ["claim", "heartbeat", "complete"])
async def test_a_kept_plan_is_good_for_any_queue_and_statistics(
    postgres: DatabaseServer, name: str, analyzed: str
) -> None:
    """Planned from statistics of another queue, it reads a few pages among 40,000 waiting and 1,000 running jobs."""
    file, query, parameters, index = QUERIES[name]
    statement = getattr(load_queries(file), query).sql
    with postgres.clone() as url:
        async with (
            open_pool(url, size=1, wait_seconds=10, keep_plans=True) as pool,
            pool.connection() as queue,
            psycopg.AsyncClientCursor(queue) as cursor,
        ):
            await cursor.execute(b"ALTER TABLE jobs SET (autovacuum_enabled = false)")
            await cursor.execute({"never": "", "small": fill(waiting=20, running=1), "full": fill()}[analyzed].encode())
            if analyzed != "never":
                await cursor.execute(b"VACUUM ANALYZE jobs")
            values = ({} if name == "claim" else {"ids": [uuid4()]}) | parameters
            for place, given in enumerate(values, 1):
                statement = statement.replace(f"%({given})s", f"${place}")
            await cursor.execute(f"PREPARE kept AS {statement}".encode())
            execute = f"EXECUTE kept ({', '.join(['%s'] * len(values))})"
            # The plan is made here.
            await cursor.execute(execute.encode(), [*values.values()])
            if analyzed != "full":
                await cursor.execute(fill().encode())
            await cursor.execute(b"SELECT id FROM jobs WHERE state = 'running' LIMIT 1")
            if name != "claim":
                values["ids"] = [(await cursor.fetchone() or {})["id"]]
            await cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}".encode(), [*values.values()])
            (plan,) = (await cursor.fetchone() or {}).values()
    judge(plan[0]["Plan"], index, most_pages=1000)
    assert "jobs_due" not in {node.get("Index Name") for node in nodes(plan[0]["Plan"])}


_CHILDREN = """
    WITH parents AS (
        INSERT INTO jobs (
            id, owner, task_type, state, priority, input_payload, input_kind, max_attempts, finished_at, error
        )
        SELECT gen_random_uuid(), 'ada', 'geotiff_to_png', 'failed', 0, '{}', 'none', 5, now(), '{}'
        FROM generate_series(1, %(parents)s) RETURNING id
    ), children AS (
        INSERT INTO jobs (
            id, owner, task_type, state, priority, input_payload, input_kind, max_attempts, pending_parents
        )
        SELECT gen_random_uuid(), 'ada', 'geotiff_to_png', 'blocked', 0, '{}', 'none', 5, 1
        FROM generate_series(1, %(children)s) RETURNING id
    )
    INSERT INTO job_dependencies (child_id, parent_id, on_parent_failure)
    SELECT child.id, parent.id, 'run'
    FROM (SELECT id, row_number() OVER () %% %(parents)s AS place FROM children) AS child
    JOIN (SELECT id, row_number() OVER () - 1 AS place FROM parents) AS parent USING (place)
    RETURNING parent_id, child_id
"""
# Variables of the function, in the order of the parameters of its prepared statements.
_RELEASE = {
    "wave": "uuid[]", "budget": "integer", "first_deferred": "uuid",
    "children": "uuid[]", "counts": "integer[]", "reasons": "text[]",
}  # fmt: skip


@pytest.mark.parametrize("parents", [1, 2000])
def test_release_of_dependents_reads_each_child_once_by_a_plan_from_nearly_empty_tables(
    postgres: DatabaseServer, parents: int
) -> None:
    """Planned once, with statistics of nearly empty tables. Other plans compare each child with each job."""
    with postgres.clone() as url, psycopg.connect(url, autocommit=True) as queue:
        queue.execute("SET statement_timeout = '20s'")
        queue.execute(_CHILDREN, {"parents": 1, "children": 1})
        queue.execute("ANALYZE jobs, job_dependencies")
        row = queue.execute("SELECT prosrc, proconfig FROM pg_proc WHERE proname = 'release_dependents'").fetchone()
        assert row is not None
        for setting in ("plan_cache_mode=force_generic_plan", *(row[1] or ())):
            queue.execute("SELECT set_config(split_part(%s, '=', 1), split_part(%s, '=', 2), false)", [setting] * 2)
        statements = re.findall(r"WITH (?:settled|share) AS .*?;", row[0], re.DOTALL)
        for number, statement in enumerate(statements):
            text = re.sub(r"--.*|^\s*INTO .*", "", statement, flags=re.MULTILINE)
            for place, name in enumerate(_RELEASE, 1):
                text = re.sub(rf"\b{name}\b", f"${place}", text)
            queue.execute(f"PREPARE release{number} ({', '.join(_RELEASE.values())}) AS {text}".encode())
            queue.execute(f"EXPLAIN EXECUTE release{number} ({', '.join(['NULL'] * len(_RELEASE))})".encode())
        edges = queue.execute(_CHILDREN, {"parents": parents, "children": 2000}).fetchall()
        wave, children = list({parent for parent, _ in edges}), sorted(child for _, child in edges)
        values = [wave, 2000, None, children, [1] * 2000, [None] * 2000]
        slots = ", ".join(f"%s::{kind}" for kind in _RELEASE.values())
        assert len(statements) == 2
        for number in range(2):
            explained = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE release{number} ({slots})".encode()
            row = psycopg.ClientCursor(queue).execute(explained, values).fetchone()
            assert row is not None
            plan = row[0][0]["Plan"]
            read = [node.get("Rows Removed by Join Filter", 0) + node["Actual Rows"] for node in nodes(plan)]
            loops = [node["Actual Loops"] for node in nodes(plan)]
            assert sum(map(operator.mul, read, loops)) <= 30 * len(children)


_OF_ONE_OWNER = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, finished_at, outputs, output_lease_seq, lease_seq, error
    )
    SELECT
        gen_random_uuid(), 'ada', 'geotiff_to_png', CASE WHEN fails THEN 'failed' ELSE 'succeeded' END, 0, '{}', 5,
        'a.tif', 1, now(), now(), CASE WHEN NOT fails THEN '[]'::jsonb END, CASE WHEN NOT fails THEN 1 END, 1,
        CASE WHEN fails THEN '{"class": "internal", "code": "usual"}'::jsonb END
    FROM generate_series(1, 100000) AS n, LATERAL (SELECT n % 2 = 0 AS fails) AS how;
    INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts)
    SELECT gen_random_uuid(), 'ada', 'geotiff_info', 'awaiting_upload', 0, '{}', 5 FROM generate_series(1, 20) AS n;
"""
_ALL: dict[str, Any] = {"state": None, "task_type": None, "error_code": None, "before": None, "limit": 51}
# Queries of an owner with 100,000 ended jobs: query, parameters, maximum pages.
OF_ONE_OWNER: dict[str, tuple[str, dict[str, Any], int]] = {
    "all": ("list_jobs", _ALL, 100),
    "an error that no job has": ("list_jobs", _ALL | {"error_code": "none"}, 20),
    "an error that half of them have": ("list_jobs", _ALL | {"error_code": "usual"}, 200),
    "a state that few have": ("list_jobs", _ALL | {"state": "awaiting_upload"}, 100),
    "a state that none has": ("list_jobs", _ALL | {"state": "cancelled"}, 20),
    "a type that few have": ("list_jobs", _ALL | {"task_type": "geotiff_info"}, 100),
    "a type that none has": ("list_jobs", _ALL | {"task_type": "geotiff_to_cog"}, 20),
    "how many are open, at each creation": ("count_open_of_owner", {}, 100),
}


@pytest.fixture(scope="module")
def long_history(postgres: DatabaseServer) -> Iterator[psycopg.Connection[Any]]:
    with postgres.clone() as url, psycopg.connect(url, autocommit=True) as opened:
        opened.execute(_OF_ONE_OWNER.encode())
        opened.execute("VACUUM ANALYZE")
        yield opened


@pytest.mark.parametrize("name", OF_ONE_OWNER)
def test_no_query_of_an_owner_scans_its_history(long_history: psycopg.Connection[Any], name: str) -> None:
    """With any filter, a page costs as much as its rows, and a creation as much as the open jobs."""
    query, parameters, most_pages = OF_ONE_OWNER[name]
    statement = getattr(load_queries("jobs.sql"), query).sql
    explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode()
    row = psycopg.ClientCursor(long_history).execute(explained, {"owner": "ada"} | parameters).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert not [node for node in nodes(plan) if node["Node Type"] == "Seq Scan"]
    assert sum(node.get("Rows Removed by Filter", 0) for node in nodes(plan)) <= 100
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= most_pages


def test_the_place_in_a_long_queue_is_counted_up_to_a_bound(postgres: DatabaseServer) -> None:
    """Behind 40,000 jobs, an explanation reads 10,000."""
    statement = load_queries("operators.sql").find_waiting_reasons.sql
    with postgres.clone() as url, psycopg.connect(url, autocommit=True) as queue:
        queue.execute(fill().encode())
        queue.execute("VACUUM ANALYZE")
        last = queue.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY order_key DESC LIMIT 1").fetchone()
        assert last is not None
        cursor = psycopg.ClientCursor(queue)
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode()
        row = cursor.execute(explained, {"id": last[0], "limit": 10_000}).fetchone()
    assert row is not None
    assert max(node["Actual Rows"] for node in nodes(row[0][0]["Plan"])) <= 10_000


async def test_connections_for_claims_keep_their_plans(postgres_url: str) -> None:
    """Planning would take longer than claiming. Other statements use PostgreSQL's default."""
    for keep_plans, mode in ((True, "force_generic_plan"), (False, "auto")):
        async with (
            open_pool(postgres_url, size=1, wait_seconds=10, keep_plans=keep_plans) as pool,
            pool.connection() as connection,
        ):
            row = await (await connection.execute("SHOW plan_cache_mode")).fetchone()
        assert row == {"plan_cache_mode": mode}


def test_the_queue_is_vacuumed_long_before_a_fifth_of_it_is_dead(connection: psycopg.Connection[Any]) -> None:
    """With the default of 20 %, claims would step over thousands of dead entries."""
    row = connection.execute("SELECT reloptions FROM pg_class WHERE relname = 'jobs'").fetchone()
    assert row is not None
    assert {"autovacuum_vacuum_scale_factor=0.01", "fillfactor=80", "autovacuum_vacuum_cost_delay=0"} <= set(row[0])


HEAD = """
    SELECT id FROM jobs WHERE state = 'queued' AND task_type = 'geotiff_to_png' AND run_at <= now()
    ORDER BY order_key, id LIMIT 1 FOR UPDATE SKIP LOCKED
"""


def test_an_old_snapshot_slows_claims_in_proportion_to_claims_since_and_only_while_it_lasts(
    postgres: DatabaseServer,
) -> None:
    """The cost is bounded by the claims under the snapshot, for any number of waiting jobs, and ends with it."""
    claim = {**QUERIES["claim"][2], "limit": 100, "claim_ids": [], "lease_secrets": ["k"] * 100}
    claim |= {"worker_ids": ["w"] * 100, "worker_names": ["w"] * 100, "shares": [1] * 100}
    sql = load_queries("leases.sql").claim_jobs.sql
    with postgres.clone() as url, psycopg.connect(url, autocommit=True) as queue, psycopg.connect(url) as forgotten:
        queue.execute(fill(waiting=20_000).encode())
        queue.execute("VACUUM ANALYZE")

        def pages() -> int:
            row = queue.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {HEAD}".encode()).fetchone()
            assert row is not None
            plan = row[0][0]["Plan"]
            return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

        few = pages()
        forgotten.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        forgotten.execute("SELECT count(*) FROM jobs")
        for _ in range(20):
            got = queue.execute(sql, claim | {"claim_ids": [uuid4() for _ in range(100)]}).fetchall()
            assert len(got) == 100
        queue.execute("VACUUM jobs")
        under = pages()
        forgotten.rollback()
        queue.execute("VACUUM jobs")
        assert few <= 10
        # An index page holds at least 20 of the 2,000 claimed jobs.
        assert under <= few + 2000 / 20
        assert pages() <= few
