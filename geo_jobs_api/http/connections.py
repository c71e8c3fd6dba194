"""How long and how much one connection may keep the server waiting: uvicorn bounds neither heads nor unread answers."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds from the first byte (at the start: from connecting) until a request's head is whole.
HEAD_SECONDS = 20.0
# Bytes that are no body: request line and headers, trailers, extensions of chunks. nginx takes 32 kB, Node 16 kB.
MAX_OVERHEAD = 64 * 1024
# Seconds in which a client must take up to a megabyte that was sent to it: 3.5 kB/s.
UNREAD_SECONDS = 300.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP with an end to everything that it would wait for, or collect, for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._between_requests = True
        self._overhead = 0
        self._timers: dict[str, TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request soon."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop("head")
        self._stop("unread")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in, unless there are too many of those that are collected but are no body."""
        if self._between_requests:
            self._expect_head()
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MAX_OVERHEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def _expect_head(self) -> None:
        # The first byte starts the clock, none that follows does.
        if "head" not in self._timers:
            self._timers["head"] = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._between_requests, self._overhead = False, 0
        self._stop("head")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """What is body is counted by who reads it."""
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next byte begins another request."""
        self._between_requests, self._overhead = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give what is left of a refused body a little time: a break would keep the refusal from its reader."""
        super().on_response_complete()
        if not self._between_requests:
            self._expect_head()

    def pause_writing(self) -> None:
        """The client does not read: break the connection if that goes on."""
        super().pause_writing()
        self._timers["unread"] = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._stop("unread")
        super().resume_writing()
