"""The pool of connections to PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from geo_jobs_api.database.queries import Row, fetch_all
from geo_jobs_api.database.sessions import (
    Connection,
    Pooling,
    ReadOnlyError,
    connection_arguments,
    set_session,
)
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.limits import CALLER, KeyedSemaphore

_RECONNECT_SECONDS = 3.0
# Pause between two drains of a pool with a read-only server. Each drain replaces all connections.
_DRAIN_PAUSE_SECONDS = 1.0
# Lost connections, too few resources, a server that stops or starts. Without a code: the client gave up.
_OUTAGE_CLASSES = ("08", "53", "57P")


Query = Callable[..., Any]


class Record(Protocol):
    """A value made from a row."""

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Return the record of a row."""


RecordT = TypeVar("RecordT", bound=Record)


class Pool(AsyncConnectionPool[Connection]):
    """A connection pool with a limit per caller.

    It leaves a server that has become read-only, so that it reaches the new primary after a failover.
    """

    # When a statement or a wait for a connection last failed for an outage, in monotonic seconds.
    last_outage = float("-inf")
    _drained = float("-inf")
    _shares: KeyedSemaphore | None = None

    def share(self) -> None:
        """Limit each caller to a quarter of the connections."""
        self._shares = KeyedSemaphore(max(1, self.max_size // 4))

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:  # noqa: ASYNC109  # the base's
        """Lend a connection.

        Raises:
            ReadOnlyError: the block's statement needs a server that takes writes.
            Problem: `rate_limited` when the caller's other requests hold its share.
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
            self.last_outage = time.monotonic()
            raise ReadOnlyError(str(error)) from error
        except psycopg.OperationalError as error:
            if error.sqlstate is None or error.sqlstate.startswith(_OUTAGE_CLASSES):
                self.last_outage = time.monotonic()
            raise

    async def fetch(self, query: Query, record: type[RecordT], /, **parameters: object) -> list[RecordT]:
        """Run a named query. Return its rows as records."""
        return [record.from_row(row) for row in await self.fetch_rows(query, **parameters)]

    async def fetch_rows(self, query: Query, /, **parameters: object) -> list[Row]:
        """Run a named query. Return its rows."""
        async with self.connection() as connection:
            return await fetch_all(query(connection, **parameters))

    async def fetch_one(self, query: Query, record: type[RecordT], /, **parameters: object) -> RecordT | None:
        """Run a named query with at most one row. Return the row as a record."""
        async with self.connection() as connection:
            row = await query(connection, **parameters)
        return None if row is None else record.from_row(row)

    async def execute(self, query: Query, /, **parameters: object) -> int:
        """Run a named statement. Return the number of changed rows."""
        async with self.connection() as connection:
            changed: int = await query(connection, **parameters)
        return changed

    async def _leave_server(self) -> None:
        # Idle connections are closed at once, those in use when returned.
        if time.monotonic() - self._drained >= _DRAIN_PAUSE_SECONDS:
            self._drained = time.monotonic()
            await self.drain()


@asynccontextmanager
async def open_pool(
    conninfo: str, *, size: int, wait_seconds: float, keep_plans: bool = False, pooling: Pooling = "session"
) -> AsyncIterator[Pool]:
    """Open a pool in autocommit mode with rows as dicts.

    Args:
        conninfo: libpq URL or key-value string.
        size: maximum number of connections.
        wait_seconds: how long to wait for a free connection.
        keep_plans: plan each statement once per connection, for all parameters. No effect in transaction pooling.
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
        # The pool doubles its pause between attempts up to this. Then a request starts over from a short one. The
        # default of 300 s would keep a service offline for minutes after its database is back.
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
                f"The database did not answer within {wait_seconds:.0f} s."
                " Check DATABASE_URL, or PGHOST and related settings."
            ) from error
        yield pool
    finally:
        await pool.close(timeout=5)
