"""The pool of connections to PostgreSQL, and the migrations."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import resources

import psycopg
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

from geo_jobs_api.database.sessions import (
    Connection,
    Pooling,
    ReadOnlyError,
    check_writable,
    connect_checked,
    connection_arguments,
    set_session,
)
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.limits import CALLER, Shares
from geo_jobs_api.log import get_logger

_log = get_logger(__name__)

# Any number that no other program on the same database uses; "geojobs" in a telephone's keys.
_MIGRATION_LOCK = 4_365_627
_MINIMUM_VERSION = 140_000
_RECONNECT_SECONDS = 3.0
_MIGRATION_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_INDEX_NAME = re.compile(r"^CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+)", re.MULTILINE)
_INDEX_PATIENCE_MS = 30_000
# Between two drains of a pool whose server turned read-only: each one makes every connection anew.
_DRAIN_PAUSE_SECONDS = 1.0


class Pool(AsyncConnectionPool[Connection]):
    """A pool of which each caller gets a share.

    It leaves a read-only server: after a failover its next connections reach the new primary.
    """

    _drained = float("-inf")
    _shares: Shares | None = None

    def share(self) -> None:
        """From now on lend a quarter of the connections to one caller at most."""
        self._shares = Shares(max(1, self.max_size // 4))

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:  # noqa: ASYNC109  # the base's
        """Lend a connection.

        Raises:
            ReadOnlyError: the block's statement needs a server that takes writes.
            Problem: `rate-limited` when the caller's other requests hold its share.
        """
        caller = CALLER.get()
        share = nullcontext() if caller is None or self._shares is None else self._shares.hold(caller, self.timeout)
        try:
            async with share, super().connection(timeout) as connection:
                try:
                    yield connection
                except (psycopg.errors.ReadOnlySqlTransaction, ReadOnlyError):
                    await self._leave_server()
                    raise
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise ReadOnlyError(str(error)) from error

    async def _leave_server(self) -> None:
        # Drained connections are closed, those in use on their return.
        if time.monotonic() - self._drained >= _DRAIN_PAUSE_SECONDS:
            self._drained = time.monotonic()
            await self.drain()


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
    folder = resources.files("geo_jobs_api.database") / "sql" / "migrations"
    found = [
        Migration(int(match[1]), entry.name, entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (match := _MIGRATION_NAME.match(entry.name))
    ]
    return tuple(sorted(found, key=lambda migration: migration.version))


@asynccontextmanager
async def open_pool(
    conninfo: str, *, size: int, wait_seconds: float, keep_plans: bool = False, pooling: Pooling = "session"
) -> AsyncIterator[Pool]:
    """A pool in autocommit mode with rows as dicts, closed at the end.

    Args:
        conninfo: libpq URL or key-value string.
        size: most connections at once.
        wait_seconds: how long to wait for a free connection.
        keep_plans: plan each statement once per connection, whatever its parameters; for statements made for that.
            Without effect in transaction pooling.
        pooling: whether a connection keeps its server session.

    Raises:
        ConfigurationError: the server does not answer.
    """
    pool = Pool(
        conninfo,
        connection_class=Connection,
        kwargs=connection_arguments("geo-jobs-api", pooling),
        configure=partial(set_session, pooling=pooling, keep_plans=keep_plans),
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


async def migrate(conninfo: str, pooling: Pooling = "session") -> list[str]:
    """Bring the schema up to date; safe to run from many processes at once. Checks `pooling` first.

    Returns:
        The names of the migrations that were applied, in order.

    Raises:
        ConfigurationError: no connection, a server that is read-only or older than PostgreSQL 14, a schema newer than
            ours, or a `pooling` that does not match the server.
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
                f"PostgreSQL {connection.info.server_version // 10_000} is too old; version 14 or newer is needed."
            )
        try:
            await check_writable(connection)
        except ReadOnlyError as error:
            raise ConfigurationError("The database is read-only: connect to the primary, or wait for it.") from error
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
            return await _apply_missing(connection)


async def build_indexes(conninfo: str) -> list[str]:
    """Build the indexes of `sql/indexes.sql` that are missing, without keeping writes waiting.

    Any number of processes may do this at once. An index that cannot be built now is left to the next start, since
    nothing but speed depends on it.

    Args:
        conninfo: a direct address, since a pooler may end long statements.

    Returns:
        The names of those that were built.
    """
    built = []
    connection = await connect_checked(conninfo, "geo-jobs-migrate", "session")
    connection.silence_seconds = None
    async with connection:
        # For transactions of others that began before, such as a dump.
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(f"SET lock_timeout = {_INDEX_PATIENCE_MS}".encode())
        for name, statement in load_indexes().items():
            row = await (await connection.execute(_FIND_INDEX, [name])).fetchone()
            if row is not None and (row["is_valid"] or row["is_in_work"]):
                continue
            try:
                if row is not None:
                    # Left by a build that was broken off.
                    await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}".encode())
                await connection.execute(statement.encode(), prepare=False)
            except psycopg.Error as error:
                _log.warning("index_not_built", name=name, reason=type(error).__name__)
            else:
                built.append(name)
                _log.info("index_built", name=name)
    return built


def load_indexes() -> dict[str, str]:
    """The statements of `sql/indexes.sql`, by the names of their indexes."""
    text = (resources.files("geo_jobs_api.database") / "sql" / "indexes.sql").read_text(encoding="utf-8")
    statements = [statement for statement in text.split(";\n") if statement.strip()]
    return {_INDEX_NAME.findall(statement)[0]: statement for statement in statements}


_FIND_INDEX = """
    SELECT
        indisvalid AS is_valid,
        EXISTS (SELECT FROM pg_stat_progress_create_index WHERE index_relid = indexrelid) AS is_in_work
    FROM pg_index WHERE indexrelid = to_regclass(%s)
"""


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
