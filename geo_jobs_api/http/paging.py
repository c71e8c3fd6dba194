"""Large responses, serialized outside the event loop, and pages bounded by bytes and by count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from uuid import UUID

from fastapi import Response
from pydantic import BaseModel

# A page ends before the item that would exceed this. Its first item may be larger.
MAX_PAGE_BYTES = 1024 * 1024
# Rows of a page's first query. Their size decides how many rows the next query reads.
_FIRST_ROWS = 2


class _Listed(Protocol):
    @property
    def id(self) -> Any:
        """The cursor of the page that follows this record."""


Record = TypeVar("Record", bound=_Listed)
# Returns up to this many records after an id (None: from the start), in list order.
Fetch = Callable[[Any, int], Awaitable[Sequence[Record]]]


async def answer(
    make: Callable[[], BaseModel | bytes], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a large response, built and serialized in a thread."""
    text = await asyncio.to_thread(lambda: _write(make()))
    return Response(text, status, headers, media_type="application/json")


def _write(view: BaseModel | bytes) -> bytes:
    return view if isinstance(view, bytes) else view.model_dump_json(by_alias=True).encode()


async def read_page(  # noqa: PLR0913  # the parts of a list
    name: str,
    fetch: Fetch[Record],
    view: Callable[[Record], BaseModel | bytes],
    *,
    after: UUID | int | None,
    limit: int,
    cursor_at_end: bool = False,
) -> Response:
    """Return `{name: items, next}` with up to `limit` items after `after`, of about 1 MiB.

    Args:
        name: key of the list.
        fetch: the query.
        view: builds the item of a record.
        after: the cursor of the page.
        limit: maximum number of items. A page has at least one, if one exists.
        cursor_at_end: whether the last page has a cursor too, for a list that grows at its end.
    """
    items: list[bytes] = []
    size, rows = 0, _FIRST_ROWS
    while True:
        # One extra item shows whether another page follows.
        requested = min(rows, limit + 1 - len(items))
        found = await fetch(after, requested)
        texts = await asyncio.to_thread(lambda records: [_write(view(record)) for record in records], found)
        for record, text in zip(found, texts, strict=True):
            if items and (len(items) == limit or size + len(text) > MAX_PAGE_BYTES):
                return _page(name, items, after)
            items.append(text)
            size, after = size + len(text), record.id
        if len(found) < requested:
            return _page(name, items, after if cursor_at_end else None)
        # As many as fit by the mean size so far. At least one, which may be small.
        rows = 1 + max(0, MAX_PAGE_BYTES - size) * len(items) // size


def _page(name: str, items: Sequence[bytes], cursor: UUID | int | None) -> Response:
    following = "null" if cursor is None else str(cursor) if isinstance(cursor, int) else f'"{cursor}"'
    text = b'{"%s":[%s],"next":%s}' % (name.encode(), b",".join(items), following.encode())
    return Response(text, media_type="application/json")
