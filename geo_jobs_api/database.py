"""The way to PostgreSQL: the pool, the migrations, the connection that listens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.log import get_logger

Pool = AsyncConnectionPool[psycopg.AsyncConnection[DictRow]]

_log = get_logger(__name__)

# Any number that no other program on the same database uses; "geojobs" in a telephone's keys.
_MIGRATION_LOCK = 4_365_627
_MINIMUM_VERSION = 140_000
_RECONNECT_SECONDS = 3.0
_MIGRATION_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")

# A forgotten transaction keeps vacuum from the queue's table, and claims slow down eightfold within seconds.
_SESSION_OPTIONS = "-c statement_timeout=15s -c idle_in_transaction_session_timeout=15s -c timezone=UTC"
# For connections whose few statements are planned once, and not each time for what they are asked.
_PLANS_KEPT = " -c plan_cache_mode=force_generic_plan"
# A peer that vanished without a word is noticed after 25 seconds.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


@dataclass(frozen=True, slots=True)
class Migration:
    """One forward step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of the text, to notice one that was changed after it had been applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations() -> tuple[Migration, ...]:
    """All migrations of this version, in order."""
    folder = resources.files("geo_jobs_api") / "sql" / "migrations"
    found = [
        Migration(int(match[1]), entry.name, entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (match := _MIGRATION_NAME.match(entry.name))
    ]
    return tuple(sorted(found, key=lambda migration: migration.version))


def _connection_arguments(application_name: str, *, keep_plans: bool = False) -> dict[str, Any]:
    return {
        "autocommit": True,
        "prepare_threshold": 0,
        "row_factory": dict_row,
        "application_name": application_name,
        "options": _SESSION_OPTIONS + (_PLANS_KEPT if keep_plans else ""),
        "connect_timeout": 10,
        **_KEEPALIVES,
    }


async def connect(conninfo: str, application_name: str) -> psycopg.AsyncConnection[DictRow]:
    """One connection outside the pool, in autocommit mode."""
    return await psycopg.AsyncConnection.connect(conninfo, **_connection_arguments(application_name))


@asynccontextmanager
async def open_pool(conninfo: str, *, size: int, wait_seconds: float, keep_plans: bool = False) -> AsyncIterator[Pool]:
    """A pool in autocommit mode with rows as dicts, closed at the end.

    Args:
        conninfo: libpq URL or key-value string.
        size: most connections at once.
        wait_seconds: how long to wait for a free connection.
        keep_plans: plan each statement once per connection, whatever its parameters; for statements made for that.

    Raises:
        ConfigurationError: the server does not answer.
    """
    pool: Pool = AsyncConnectionPool(
        conninfo,
        connection_class=psycopg.AsyncConnection[DictRow],
        kwargs=_connection_arguments("geo-jobs-api", keep_plans=keep_plans),
        min_size=1,
        max_size=size,
        timeout=wait_seconds,
        # The pool doubles its pause between attempts up to this; then a request starts anew from a short one. Its
        # default of 300 s would keep a service away for minutes after its database has come back.
        reconnect_timeout=_RECONNECT_SECONDS,
        open=False,
        name="geo-jobs-api",
    )
    await pool.open()
    try:
        try:
            await pool.wait(timeout=wait_seconds)
        except psycopg.Error as error:
            raise ConfigurationError(
                f"The database does not answer within {wait_seconds:.0f} s: check DATABASE_URL, or PGHOST and the like."
            ) from error
        yield pool
    finally:
        await pool.close(timeout=5)


async def migrate(conninfo: str) -> list[str]:
    """Bring the schema up to date; safe to run from many processes at once.

    Returns:
        The names of the migrations that were applied, in order.

    Raises:
        ConfigurationError: no connection, the server is older than PostgreSQL 14, or its schema is newer than we know.
    """
    try:
        connection = await connect(conninfo, "geo-jobs-migrate")
    except psycopg.OperationalError as error:
        raise ConfigurationError(f"The database cannot be reached: {error}") from error
    async with connection:
        if connection.info.server_version < _MINIMUM_VERSION:
            raise ConfigurationError(
                f"PostgreSQL {connection.info.server_version // 10_000} is too old; version 14 or newer is needed."
            )
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
            return await _apply_missing(connection)


async def _apply_missing(connection: psycopg.AsyncConnection[DictRow]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
        " sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    cursor = await connection.execute("SELECT version, sha256 FROM schema_migrations")
    applied = {row["version"]: row["sha256"] for row in await cursor.fetchall()}
    migrations = load_migrations()
    unknown = applied.keys() - {migration.version for migration in migrations}
    if unknown:
        raise ConfigurationError(
            f"The database's schema (version {max(unknown)}) is newer than this program: install a newer one."
        )
    names = []
    for migration in migrations:
        if migration.version in applied:
            if applied[migration.version] != migration.sha256:
                raise ConfigurationError(f"{migration.name} was changed after the database had applied it.")
            continue
        await connection.execute(migration.sql.encode(), prepare=False)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, sha256) VALUES (%s, %s, %s)",
            [migration.version, migration.name, migration.sha256],
        )
        names.append(migration.name)
        _log.info("migration_applied", name=migration.name)
    return names


_CURES: tuple[tuple[type[psycopg.Error], str], ...] = (
    (psycopg.errors.InsufficientPrivilege, "The role must own its schema."),
    (psycopg.errors.ReadOnlySqlTransaction, "Connect to the primary: standbys take no changes."),
    (psycopg.errors.QueryCanceled, "Try again when the database has less to do."),
    (psycopg.errors.DiskFull, "Make room on the database's disk."),
    (psycopg.errors.TooManyConnections, "End other connections, or raise max_connections."),
)


def describe(error: psycopg.Error) -> str:
    """A database error in words, with advice only where the kind of error has some, and without passwords."""
    # A connection string that cannot be read is quoted in the error, password and all.
    said = re.sub(r"(://[^:@/\s]*:)[^@\s]*@|(password=)\S+", r"\1\2********@", " ".join(str(error).split())).rstrip(".")
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        return f"The database cannot be reached: {said}. Check DATABASE_URL, or PGHOST and the like."
    if error.sqlstate is None and isinstance(error, psycopg.ProgrammingError):
        return f"DATABASE_URL, or PGHOST and the like, cannot be read: {said}."
    cure = next((f" {cure}" for kind, cure in _CURES if isinstance(error, kind)), "")
    return f"The database refuses this: {said}.{cure}"
