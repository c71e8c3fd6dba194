"""Named statements from `sql/`, and the reading of their rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib import resources
from typing import Any

import aiosql
from aiosql.adapters.apyformat import AsyncPyFormatAdapter
from psycopg import AsyncConnection
from psycopg.rows import DictRow

# A row with its columns by name, of types that psycopg does not know before the query.
Row = Mapping[str, Any]

# Longest time that decoding one query's rows may block the event loop.
_DECODING_SECONDS = 0.005


class _RowByRow(AsyncPyFormatAdapter):
    """The library's adapter, decoding row by row instead of all rows at once."""

    async def select(self, conn, _name, sql, parameters, _record=None) -> AsyncIterator[Row]:  # type: ignore[no-untyped-def,override]  # the library's
        async with await conn.execute(sql, parameters) as cursor:
            async for row in cursor:
                yield row


def load_queries(name: str) -> Any:
    """Return the named queries of one file in `sql/`, as coroutine functions of a connection."""
    text = (resources.files("geo_jobs_api.database") / "sql" / name).read_text(encoding="utf-8")
    return aiosql.from_str(text, _RowByRow)


async def fetch_all(rows: AsyncIterator[Row]) -> list[Row]:
    """Return all rows of a query. Yields to the event loop, since a row may hold a mebibyte of JSON to decode."""
    found: list[Row] = []
    began = time.perf_counter()
    async for row in rows:
        found.append(row)
        if time.perf_counter() - began > _DECODING_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return found


def transaction_if(connection: AsyncConnection[DictRow], needed: int) -> AbstractAsyncContextManager[object]:
    """Return a transaction, or a no-op if none is needed."""
    return connection.transaction() if needed else nullcontext()
