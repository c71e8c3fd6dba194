"""Databases for tests: one embedded server for the session, one cloned database for each test."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

from geo_jobs_api.database import embedded
from geo_jobs_api.database.migrate import build_indexes, migrate

_TEMPLATE = "geo_jobs_template"


@dataclass(slots=True)
class DatabaseServer:
    """A running server with a migrated template database."""

    server: embedded.EmbeddedPostgres
    _numbers: count[int] = field(default_factory=count)

    def execute(self, statement: str) -> None:
        """Run one administrative statement."""
        with psycopg.connect(self.server.conninfo, autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextlib.contextmanager
    def clone(self, template: str = _TEMPLATE) -> Iterator[str]:
        """Yield the connection string of a fresh migrated database, and drop it afterwards."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self.server.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def empty_queue(database_url: str) -> None:
    """Empty a used database, except for the tokens of workers."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        # At the first call they are unchanged.
        connection.execute("CREATE TABLE IF NOT EXISTS shipped_task_types AS TABLE task_types")
        connection.execute("DELETE FROM jobs")
        connection.execute("DELETE FROM pipelines")
        connection.execute("DELETE FROM schedules")
        connection.execute("DELETE FROM webhooks")
        connection.execute("DELETE FROM workers")
        connection.execute("DELETE FROM task_types")
        connection.execute("INSERT INTO task_types TABLE shipped_task_types")


@contextlib.contextmanager
def database_server() -> Iterator[DatabaseServer]:
    """Yield an embedded server in a temporary folder. It does not wait for the disk, since no test cuts its power."""
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-pg-"))
    try:
        server = embedded.start(folder / "postgres", {"fsync": "off"})
        try:
            made = DatabaseServer(server)
            made.execute(f"CREATE DATABASE {_TEMPLATE}")
            asyncio.run(migrate(server.url(_TEMPLATE)))
            asyncio.run(build_indexes(server.url(_TEMPLATE)))
            yield made
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
