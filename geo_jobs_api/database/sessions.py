"""Connections to PostgreSQL: session settings, directly or through a pooler, and limits of every wait."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Literal

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_dumps
from pydantic_core import to_json

from geo_jobs_api.errors import ConfigurationError

# Encoding blocks the event loop. For 250 kB of metadata the standard library takes 17 ms, this one 1.3 ms.
set_json_dumps(to_json)

# Whether a connection keeps its server session ("session"), or only for a transaction ("transaction", PgBouncer).
Pooling = Literal["session", "transaction"]

# An idle transaction keeps vacuum from the queue's table, and claims become eight times slower within seconds.
_SESSION = {"statement_timeout": "15s", "idle_in_transaction_session_timeout": "15s", "timezone": "UTC"}
# For connections with few statements: plan each once instead of once per set of parameters. The plan must be good for a
# queue of any length, so it may only follow indexes in their order. jit would compile plans with a forced sort.
_PLANS_KEPT = {
    "plan_cache_mode": "force_generic_plan",
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_sort", "jit"), "off"),
}
# Detects a lost peer after 25 seconds, on idle connections and on those with unacknowledged data.
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
# Longer than statement_timeout, so that a server that still works returns its own error first.
_SILENCE_SECONDS = 20.0
_PROBES = 3


class ReadOnlyError(psycopg.OperationalError):
    """The server accepts no writes: a standby, or a read-only primary. Handled as an outage."""


class Connection(psycopg.AsyncConnection[DictRow]):
    """A connection with a bounded wait for the server.

    `statement_timeout` runs on the server. Where a proxy or a network drops bytes, only the client can give up.
    """

    silence_seconds: float | None = _SILENCE_SECONDS

    async def wait(self, *args: Any, **options: Any) -> Any:
        """Wait as the base does. OperationalError when the server has sent nothing for too long."""
        seconds = None if self.silence_seconds is None else self.silence_seconds + (options.get("timeout") or 0.0)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await super().wait(*args, **options)
        except TimeoutError as error:
            if not limit.expired():
                raise
            # The base has tried to cancel the statement, and has closed the connection if that failed.
            raise psycopg.OperationalError(f"The database sent no answer within {seconds:.0f} s.") from error


def connection_arguments(application_name: str, pooling: Pooling) -> dict[str, Any]:
    """Return the keyword arguments of a connection in autocommit mode with rows as dicts."""
    return {
        "autocommit": True,
        # A prepared statement belongs to one server session.
        "prepare_threshold": 0 if pooling == "session" else None,
        "row_factory": dict_row,
        "application_name": application_name,
        "connect_timeout": 10,
        **_KEEPALIVES,
    }


async def connect(conninfo: str, application_name: str, pooling: Pooling = "session") -> Connection:
    """Open one connection outside the pool."""
    connection = await _connect_unset(conninfo, application_name, pooling)
    try:
        await set_session(connection, pooling)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _connect_unset(conninfo: str, application_name: str, pooling: Pooling) -> Connection:
    return await Connection.connect(conninfo, **connection_arguments(application_name, pooling))


async def set_session(
    connection: psycopg.AsyncConnection[DictRow], pooling: Pooling, *, keep_plans: bool = False
) -> None:
    """Set timeouts and time zone. In transaction pooling the role has these settings, see `check_pooling`.

    The startup parameter `options` would save this trip, but PgBouncer rejects or drops it.
    """
    if pooling == "session":
        await _apply(connection, _SESSION | (_PLANS_KEPT if keep_plans else {}))


async def _apply(connection: psycopg.AsyncConnection[DictRow], settings: Mapping[str, str]) -> None:
    calls = ", ".join("set_config(%s, %s, false)" for _ in settings)
    parameters = [part for setting in settings.items() for part in setting]
    await connection.execute(f"SELECT {calls}".encode(), parameters, prepare=False)


async def check_writable(connection: psycopg.AsyncConnection[DictRow]) -> None:
    """Raise ReadOnlyError when the server accepts no writes."""
    cursor = await connection.execute(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS is_read_only"
    )
    row = await cursor.fetchone()
    if row is None or row["is_read_only"]:
        raise ReadOnlyError("The server is read-only.")


async def connect_checked(conninfo: str, application_name: str, pooling: Pooling) -> Connection:
    """Open a connection after checking that `pooling` matches the server.

    Raises:
        ConfigurationError: the server pools by transaction although `pooling` is "session", or the role lacks its
            settings.
    """
    connection = await _connect_unset(conninfo, application_name, pooling)
    try:
        if pooling == "transaction":
            await _check_role(connection)
        else:
            # Before any setting of ours could reach another client's transactions.
            await _check_session_kept(connection, conninfo)
        await set_session(connection, pooling)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _check_session_kept(connection: Connection, conninfo: str) -> None:
    if await _shares_sessions(connection, conninfo):
        raise ConfigurationError(
            "The database is behind a pooler that assigns a session to each transaction."
            " Set DATABASE_POOLING=transaction and DATABASE_LISTEN_URL."
        )


async def _shares_sessions(connection: Connection, conninfo: str) -> bool:
    """Return whether transactions of two open connections run in one server session."""
    pid = await _backend_pid(connection)
    if pid == connection.info.backend_pid:
        # PgBouncer invents the number in the startup message. This one is the server's own.
        return False
    own_pids, other_pids = {pid}, set()
    try:
        async with await _connect_unset(conninfo, "geo-jobs-probe", "transaction") as other:
            for _ in range(_PROBES):
                other_pids.add(await _backend_pid(other))
                own_pids.add(await _backend_pid(connection))
    except psycopg.OperationalError:
        # A session pool without a free session.
        return False
    return len(own_pids) > 1 or not own_pids.isdisjoint(other_pids)


async def _backend_pid(connection: Connection) -> int:
    cursor = await connection.execute("SELECT pg_backend_pid() AS pid", prepare=False)
    row = await cursor.fetchone()
    return 0 if row is None else int(row["pid"])


async def _check_role(connection: Connection) -> None:
    cursor = await connection.execute(
        "SELECT quote_ident(current_user) AS role, current_setting('timezone') AS zone,"
        " current_setting('statement_timeout') AS statement,"
        " current_setting('idle_in_transaction_session_timeout') AS idle"
    )
    row = await cursor.fetchone()
    if row is None or row["zone"] not in {"UTC", "Etc/UTC"} or "0" in {row["statement"], row["idle"]}:
        role = "ROLE" if row is None else row["role"]
        commands = "; ".join(f"ALTER ROLE {role} SET {name} = '{value}'" for name, value in _SESSION.items())
        raise ConfigurationError(
            f"With DATABASE_POOLING=transaction the role needs the settings of a session. Run: {commands}."
            " Then let the pooler reconnect (PgBouncer: RECONNECT)."
        )


_ADVICE: tuple[tuple[type[psycopg.Error], str], ...] = (
    (psycopg.errors.InsufficientPrivilege, "The role must own its schema."),
    (psycopg.errors.ReadOnlySqlTransaction, "Connect to the primary, since standbys accept no changes."),
    (psycopg.errors.QueryCanceled, "Try again when the database is less busy."),
    (psycopg.errors.DiskFull, "Free space on the database's disk."),
    (psycopg.errors.TooManyConnections, "End other connections, or raise max_connections."),
)


def describe(error: psycopg.Error) -> str:
    """Return a database error in words, without passwords. Some kinds of errors come with advice."""
    # libpq quotes an unreadable connection string with its password.
    message = re.sub(r"(://[^:@/\s]*:)[^@\s]*@|(password=)\S+", r"\1\2********@", " ".join(str(error).split())).rstrip(
        "."
    )
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        return f"The database cannot be reached: {message}. Check DATABASE_URL, or PGHOST and related settings."
    if error.sqlstate is None and isinstance(error, psycopg.ProgrammingError):
        return f"DATABASE_URL, or PGHOST and related settings, are invalid: {message}."
    advice = next((f" {advice}" for kind, advice in _ADVICE if isinstance(error, kind)), "")
    return f"The database rejected the statement: {message}.{advice}"
