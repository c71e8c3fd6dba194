"""Updates the schema: migrations and functions under a lock, indexes without one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg.rows import DictRow

from geo_jobs_api.database.sessions import (
    Pooling,
    ReadOnlyError,
    check_writable,
    connect_checked,
)
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.log import get_logger

_log = get_logger(__name__)

# No other program on the same database uses this number ("geojobs" on telephone keys).
_MIGRATION_LOCK = 4_365_627
_MINIMUM_VERSION = 140_000
_MIGRATION_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_INDEX_NAME = re.compile(r"^CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+)", re.MULTILINE)
_INDEX_PATIENCE_MS = 30_000


@dataclass(frozen=True, slots=True)
class SqlFile:
    """A migration or a function, by name."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Return the digest of the text, which shows changes since it was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations() -> dict[int, SqlFile]:
    """Return all migrations of this program version, by number, in order."""
    return {int(file.name[:4]): file for file in _load("migrations") if _MIGRATION_NAME.match(file.name)}


def load_functions() -> list[SqlFile]:
    """Return the SQL functions, each a `CREATE OR REPLACE FUNCTION`.

    A function with new parameters needs a migration that drops it. A change that breaks older programs needs a
    migration too. Its number stops them, as they would restore their own function.
    """
    return _load("functions")


def _load(folder: str) -> list[SqlFile]:
    entries = (resources.files("geo_jobs_api.database") / "sql" / folder).iterdir()
    files = (SqlFile(entry.name, entry.read_text(encoding="utf-8")) for entry in entries if entry.name.endswith(".sql"))
    return sorted(files, key=lambda file: file.name)


async def migrate(conninfo: str, pooling: Pooling = "session") -> list[str]:
    """Update the schema. Safe for many concurrent processes. Checks `pooling` first.

    Returns:
        The applied migrations and functions, in order.

    Raises:
        ConfigurationError: no connection, a server that is read-only or older than PostgreSQL 14, a schema newer than
            this program, or a `pooling` that does not match the server.
    """
    try:
        connection = await connect_checked(conninfo, "geo-jobs-migrate", pooling)
    except psycopg.OperationalError as error:
        raise ConfigurationError(f"The database cannot be reached: {error}") from error
    # A migration may take as long as the table is large.
    connection.silence_seconds = None
    async with connection:
        if connection.info.server_version < _MINIMUM_VERSION:
            raise ConfigurationError(
                f"PostgreSQL {connection.info.server_version // 10_000} is too old. Use version 14 or newer."
            )
        try:
            await check_writable(connection)
        except ReadOnlyError as error:
            raise ConfigurationError("The database is read-only. Connect to the primary, or wait for it.") from error
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
            return await _apply_migrations(connection) + await _apply_functions(connection)


async def build_indexes(conninfo: str) -> list[str]:
    """Build missing indexes of `sql/indexes.sql` without blocking writes.

    Safe for many concurrent processes. A failed index is left to the next start, since it only affects speed.

    Args:
        conninfo: a direct address, since a pooler may end long statements.

    Returns:
        The names of the new indexes.
    """
    built = []
    connection = await connect_checked(conninfo, "geo-jobs-migrate", "session")
    connection.silence_seconds = None
    async with connection:
        # The build waits for older transactions, such as a dump.
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(f"SET lock_timeout = {_INDEX_PATIENCE_MS}".encode())
        for name, statement in load_indexes().items():
            row = await (await connection.execute(_FIND_INDEX, [name])).fetchone()
            if row is not None and (row["is_valid"] or row["is_in_work"]):
                continue
            try:
                if row is not None:
                    # An interrupted build leaves an invalid index.
                    await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}".encode())
                await connection.execute(statement.encode(), prepare=False)
            except psycopg.Error as error:
                _log.warning("index_not_built", name=name, reason=type(error).__name__)
            else:
                built.append(name)
                _log.info("index_built", name=name)
    return built


def load_indexes() -> dict[str, str]:
    """Return the statements of `sql/indexes.sql` by index name."""
    text = (resources.files("geo_jobs_api.database") / "sql" / "indexes.sql").read_text(encoding="utf-8")
    statements = [statement for statement in text.split(";\n") if statement.strip()]
    return {_INDEX_NAME.findall(statement)[0]: statement for statement in statements}


_FIND_INDEX = """
    SELECT
        indisvalid AS is_valid,
        EXISTS (SELECT FROM pg_stat_progress_create_index WHERE index_relid = indexrelid) AS is_in_work
    FROM pg_index WHERE indexrelid = to_regclass(%s)
"""


async def _apply_migrations(connection: psycopg.AsyncConnection[DictRow]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
        " sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    cursor = await connection.execute("SELECT version, sha256 FROM schema_migrations")
    applied = {row["version"]: row["sha256"] for row in await cursor.fetchall()}
    migrations = load_migrations()
    if unknown := applied.keys() - migrations.keys():
        raise ConfigurationError(
            f"The database's schema (version {max(unknown)}) is newer than this program. Install a newer version."
        )
    names = []
    for version, migration in migrations.items():
        if version in applied:
            if applied[version] != migration.sha256:
                raise ConfigurationError(
                    f"{migration.name} was changed after the database applied it. Restore the file."
                )
            continue
        await connection.execute(migration.sql.encode(), prepare=False)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, sha256) VALUES (%s, %s, %s)",
            [version, migration.name, migration.sha256],
        )
        names.append(migration.name)
        _log.info("migration_applied", name=migration.name)
    return names


async def _apply_functions(connection: psycopg.AsyncConnection[DictRow]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_functions (name text PRIMARY KEY, sha256 text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    cursor = await connection.execute("SELECT name, sha256 FROM schema_functions")
    applied = {row["name"]: row["sha256"] for row in await cursor.fetchall()}
    changed = [function for function in load_functions() if applied.get(function.name) != function.sha256]
    for function in changed:
        await connection.execute(function.sql.encode(), prepare=False)
        await connection.execute(
            "INSERT INTO schema_functions (name, sha256) VALUES (%s, %s) ON CONFLICT (name)"
            " DO UPDATE SET sha256 = excluded.sha256, applied_at = excluded.applied_at",
            [function.name, function.sha256],
        )
        _log.info("function_applied", name=function.name)
    return [function.name for function in changed]
