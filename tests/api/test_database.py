"""Schema, migrations, and rows that the schema rejects."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import fields

import psycopg
import pytest
from uuid_utils.compat import uuid7

from geo_jobs_api.database import migrate as migrations
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.queue import records
from tests.support.clients import rows
from tests.support.database import DatabaseServer
from tests.support.waiting import wait_until


def test_many_processes_may_migrate_at_once(postgres: DatabaseServer) -> None:
    """Under a lock, one process applies everything. The others, and later runs, have nothing to do."""

    async def migrate_all(url: str) -> list[list[str]]:
        return await asyncio.gather(*(migrations.migrate(url) for _ in range(6)))

    files = [*migrations.load_migrations().values(), *migrations.load_functions()]
    with postgres.clone("template1") as url:
        applied = asyncio.run(migrate_all(url))
        assert sorted(applied, key=len) == [[], [], [], [], [], [file.name for file in files]]
        assert asyncio.run(migrations.migrate(url)) == []


def test_a_changed_function_is_applied_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed function replaces the old one. Unchanged functions are not touched."""
    functions = migrations.load_functions()
    states = "SELECT name, applied_at FROM schema_functions ORDER BY name"
    before = rows(postgres_url, states)
    assert [row["name"] for row in before] == [function.name for function in functions]
    changed = migrations.SqlFile(functions[0].name, functions[0].sql.replace("BEGIN", "BEGIN\n-- changed", 1))
    monkeypatch.setattr(migrations, "load_functions", lambda: [changed, *functions[1:]])
    assert asyncio.run(migrations.migrate(postgres_url)) == [changed.name]
    after = rows(postgres_url, states)
    assert after[0]["applied_at"] > before[0]["applied_at"]
    assert after[1:] == before[1:]
    assert rows(postgres_url, "SELECT proname FROM pg_proc WHERE prosrc LIKE '%%-- changed%%'") == [
        {"proname": changed.name.removesuffix(".sql")}
    ]
    assert asyncio.run(migrations.migrate(postgres_url)) == []


def test_a_schema_newer_than_the_program_is_rejected(postgres_url: str) -> None:
    """An old program must not write into unknown tables."""
    rows(postgres_url, "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'later', 'x')")
    with pytest.raises(ConfigurationError, match="newer than this program"):
        asyncio.run(migrations.migrate(postgres_url))


def test_a_migration_that_was_changed_after_it_was_applied_is_noticed(postgres_url: str) -> None:
    """Migrations only go forward."""
    rows(postgres_url, "UPDATE schema_migrations SET sha256 = 'other'")
    with pytest.raises(ConfigurationError, match="was changed after"):
        asyncio.run(migrations.migrate(postgres_url))


def test_a_database_that_is_not_there_is_one_clear_sentence() -> None:
    """No traceback for a wrong address."""
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        asyncio.run(migrations.migrate("host=127.0.0.1 port=9 user=x dbname=x connect_timeout=2"))


def test_the_schema_has_every_column_that_the_records_read(postgres_url: str) -> None:
    """The migrations match the records."""
    columns = {
        row["column_name"]
        for row in rows(postgres_url, "SELECT column_name FROM information_schema.columns WHERE table_name = 'jobs'")
    }
    assert {field.name for field in fields(records.Job)} <= columns


JOB = (
    "INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts, uploaded_at,"
    " input_file_name, input_size_bytes) VALUES (%s, 'ada', 'geotiff_to_png', 'queued', 0, '{}', 3, now(), 'a', 1)"
)


@pytest.mark.parametrize(
    "change",
    [
        "state = 'running'",
        "state = 'lost'",
        "state = 'succeeded', finished_at = now()",
        "state = 'failed', finished_at = now()",
        "state = 'failed', error = '{}'",
        "state = 'cancelled'",
        "finished_at = now()",
        "lease_secret = 'k'",
        "lease_confirmed = true",
        "uploaded_at = NULL",
        "outputs = '[]', output_lease_seq = 1",
        "cancel_requested_at = now()",
        "attempt = 4",
        "percent = 101",
        "percent = 'NaN'",
        "priority = 101",
        "input_payload = '[]'",
        "input_sha256 = 'x'",
        "lease_seq = -1",
    ],
)
def test_the_database_rejects_impossible_rows(postgres_url: str, change: str) -> None:
    """Such rows are impossible whatever the code does."""
    rows(postgres_url, JOB, uuid7())
    with pytest.raises(psycopg.errors.CheckViolation):
        rows(postgres_url, f"UPDATE jobs SET {change}")  # noqa: S608  # our own words


def test_a_limit_of_zero_is_not_a_limit(postgres_url: str) -> None:
    """Only `paused` pauses. A limit of zero would be a second way."""
    with pytest.raises(psycopg.errors.CheckViolation):
        rows(postgres_url, "UPDATE task_types SET max_concurrent_runs = 0")


def test_missing_indexes_are_built_while_jobs_are_written(postgres_url: str) -> None:
    """A start builds them beside open transactions, without blocking writers, and replaces an interrupted build."""
    names = list(migrations.load_indexes())
    with (
        psycopg.connect(postgres_url, autocommit=True) as connection,
        psycopg.connect(postgres_url, autocommit=True) as writer,
    ):
        connection.execute(f"DROP INDEX {', '.join(names)}".encode())
        statement = migrations.load_indexes()[names[1]].replace("(owner", "((1 / length(owner)), owner", 1)
        add_job = (
            "INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts)"
            " VALUES (gen_random_uuid(), %s, 'geotiff_to_png', 'awaiting_upload', 0, '{}', 5)"
        )
        connection.execute(add_job, [""])
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute(statement.encode())
        built: list[str] = []
        building = threading.Thread(target=lambda: built.extend(asyncio.run(migrations.build_indexes(postgres_url))))
        with writer.transaction():
            writer.execute(add_job, ["ada"])
            building.start()
            waiting = "SELECT FROM pg_stat_activity WHERE query ~ 'INDEX CONCURRENTLY' AND wait_event_type = 'Lock'"
            wait_until(lambda: connection.execute(waiting).rowcount == 1, "the build to wait for the writer")
            # Another writer does not wait for the build.
            connection.execute("SET statement_timeout = '5s'")
            connection.execute(add_job, ["eve"])
        building.join(timeout=30)
        assert built == names
        assert asyncio.run(migrations.build_indexes(postgres_url)) == []
        valid = connection.execute(
            "SELECT bool_and(indisvalid), count(*) FROM pg_index WHERE indexrelid::regclass::text = ANY(%s)", [names]
        )
        assert valid.fetchone() == (True, len(names))
