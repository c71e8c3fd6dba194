"""A proxy between workers and the API that causes network faults by a seed."""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter

GARBAGE = b"<html><body>Welcome to the hotel's network</body></html>"
CAPTIVE_PORTAL = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(GARBAGE), GARBAGE)
# Largest head of a request or an answer, in bytes.
LIMIT = 1 << 20


class Fault(StrEnum):
    """A fault of one request."""

    NONE = "none"
    DELAY = "delay"
    DROP_REQUEST = "drop the request"
    DROP_REPLY = "drop the reply"
    DUPLICATE = "duplicate"
    GARBAGE_REPLY = "garbage instead of the reply"
    GARBAGE = "garbage instead of all"
    HALF_OPEN = "half-open"


# Shares of all requests. A half-open connection costs a worker seconds of its lease.
SHARES = {
    Fault.DELAY: 0.03,
    Fault.DROP_REQUEST: 0.01,
    Fault.DROP_REPLY: 0.015,
    Fault.DUPLICATE: 0.02,
    Fault.GARBAGE_REPLY: 0.007,
    Fault.GARBAGE: 0.003,
    Fault.HALF_OPEN: 0.002,
}
# How often the API receives a request, if not once.
TIMES = {Fault.DUPLICATE: 2, Fault.GARBAGE: 0}
# Seconds.
LONGEST_DELAY = 1.5


@dataclass
class _Message:
    head: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.head + self.body


class _Gone(Exception):  # noqa: N818 - not an error
    """One end hung up."""


@dataclass
class FaultProxy:
    """Forwards requests to the API at `port`, with faults.

    Args:
        port: the API's, on this machine.
        seed: decides the fault of each request, in order of arrival.
        factor: multiplies the shares in `SHARES`.
        held_open: seconds until a half-open connection ends.
    """

    port: int
    seed: int
    factor: float = 1.0
    held_open: float = 40.0
    done: Counter[Fault] = field(default_factory=Counter)
    base_url: str = ""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._calm = threading.Event()

    def calm(self) -> None:
        """End the faults."""
        self._calm.set()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Serve until stopped."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=LIMIT)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _choose(self) -> Fault:
        if self._calm.is_set():
            return Fault.NONE
        point = self._random.random() / self.factor
        for fault, share in SHARES.items():
            point -= share
            if point < 0:
                return fault
        return Fault.NONE

    async def _connection(self, reader: Reader, writer: Writer) -> None:
        upstream: tuple[Reader, Writer] | None = None
        with contextlib.suppress(_Gone, ConnectionError, asyncio.CancelledError):
            try:
                while True:
                    request = await _read(reader)
                    fault = self._choose()
                    self.done[fault] += 1
                    if upstream is None or upstream[1].is_closing() or upstream[0].at_eof():
                        if upstream is not None:
                            upstream[1].close()
                        upstream = await asyncio.open_connection("127.0.0.1", self.port, limit=LIMIT)
                    await self._exchange(request, fault, upstream, (reader, writer))
            finally:
                ends = (writer, *(upstream or ())[1:])
                for end in ends:
                    end.close()
                for end in ends:
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    async def _exchange(
        self, request: _Message, fault: Fault, upstream: tuple[Reader, Writer], client: tuple[Reader, Writer]
    ) -> None:
        reader, writer = client
        if fault is Fault.DELAY:
            await asyncio.sleep(self._random.uniform(0, LONGEST_DELAY))
        elif fault is Fault.DROP_REQUEST:
            raise _Gone
        elif fault is Fault.HALF_OPEN:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.held_open):
                    await reader.read(1)
            raise _Gone
        answer = CAPTIVE_PORTAL
        for _ in range(TIMES.get(fault, 1)):
            answer = (await self._ask(request, upstream, reader)).raw
        if fault is Fault.DROP_REPLY:
            raise _Gone
        writer.write(CAPTIVE_PORTAL if fault is Fault.GARBAGE_REPLY else answer)
        await writer.drain()

    @staticmethod
    async def _ask(request: _Message, upstream: tuple[Reader, Writer], client: Reader) -> _Message:
        """Return the API's answer. Close the connection to the API if the client hangs up."""
        upstream[1].write(request.raw)
        await upstream[1].drain()
        answering = asyncio.ensure_future(_read(upstream[0], request.head.split(b" ", 1)[0]))
        # An HTTP/1.1 client sends no data before its answer, so any event here is its end.
        leaving = asyncio.ensure_future(client.read(1))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _Gone
            return answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)


async def _read(reader: Reader, method: bytes = b"") -> _Message:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        if b"content-length" in fields and method != b"HEAD":
            body = await reader.readexactly(int(fields[b"content-length"]))
        elif fields.get(b"transfer-encoding") == b"chunked":
            while True:
                size = await reader.readuntil(b"\r\n")
                chunk = await reader.readexactly(int(size, 16) + 2)
                body += size + chunk
                if int(size, 16) == 0:
                    break
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
        raise _Gone from error
    return _Message(head, body)


@contextlib.contextmanager
def fault_proxy(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy, running in a thread."""
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(ready, stop)), daemon=True)
    thread.start()
    assert ready.wait(10), "the proxy did not start"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
