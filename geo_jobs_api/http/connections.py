"""Time and size limits of one connection. uvicorn bounds neither request heads nor unread responses."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds from the first byte, or from connecting, to the end of a request's head.
HEAD_SECONDS = 20.0
# Bytes outside the body: request line, headers, trailers, chunk extensions. nginx allows 32 kB, Node 16 kB.
MAX_OVERHEAD = 64 * 1024
# Seconds in which a client must read up to a megabyte of a response (3.5 kB/s).
UNREAD_SECONDS = 300.0
# A longer write is worth its own system call.
_HELD_BYTES = 4096


class _JoinedWrites:
    """A transport that sends the head of a response together with the beginning of its body, in one system call.

    uvicorn writes them apart. A short write waits for the next one, or for the next round of the event loop.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held and len(data) <= _HELD_BYTES:
            self._held = data
            self._loop.call_soon(self._flush)
            return
        held, self._held = self._held, b""
        self._transport.write(held + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP with limits on waiting and buffering, and a drain at shutdown.

    uvicorn has no settings for these. `HttpToolsProtocol` is not documented, but configurable as `http`. This class
    uses only its names without underscore. tests/hostile/test_slow_clients.py covers each limit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._between_requests = True
        self._overhead = 0
        self._timers: dict[str, TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request."""
        super().connection_made(transport)
        self.transport = _JoinedWrites(transport)  # type: ignore[assignment]  # all of its methods
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._stop("head")
        self._stop("unread")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, unless too many of them belong to no body."""
        if self._between_requests:
            self._expect_head()
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MAX_OVERHEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def _expect_head(self) -> None:
        # The first byte starts the clock. Later ones do not restart it.
        if "head" not in self._timers:
            self._timers["head"] = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()

    def on_headers_complete(self) -> None:
        """Stop the clock of the head."""
        self._between_requests, self._overhead = False, 0
        self._stop("head")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Reset the count. The reader of the body bounds it."""
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect another request."""
        self._between_requests, self._overhead = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give the rest of a rejected body a little time. Closing at once would lose the response."""
        super().on_response_complete()
        if not self._between_requests:
            self._expect_head()

    def pause_writing(self) -> None:
        """Abort the connection if the client does not read for too long."""
        super().pause_writing()
        self._timers["unread"] = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        self._stop("unread")
        super().resume_writing()

    def shutdown(self) -> None:
        """Run `drain` of the lifespan state, so that parked requests and streams end, then shut down as the base."""
        self.app_state["drain"]()
        super().shutdown()
