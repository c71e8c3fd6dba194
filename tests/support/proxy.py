"""A TCP proxy in front of a server, whose connections can be made to go silent: a half-open connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Link:
    """One connection through the proxy; `opening` is what the client said first."""

    client: socket.socket
    server: socket.socket
    opening: bytes = b""
    is_silent: bool = False


@dataclass(slots=True)
class SilentProxy:
    """Passes bytes on, both ways, until a connection is silenced: then it swallows them and closes nothing.

    Args:
        port: where it listens, on 127.0.0.1.
        links: all connections that were made, in order.
        swallows: silence new connections from the start.
    """

    port: int
    links: list[Link] = field(default_factory=list)
    swallows: bool = False

    def silence(self, word: bytes) -> int:
        """Silence the connections whose opening holds a word; how many there were."""
        found = [link for link in self.links if word in link.opening and not link.is_silent]
        for link in found:
            link.is_silent = True
        return len(found)

    def talking(self, word: bytes) -> int:
        """How many connections with that word in their opening are not silenced."""
        return sum(word in link.opening and not link.is_silent for link in self.links)


@contextlib.contextmanager
def silent_proxy(connect: Callable[[], socket.socket]) -> Iterator[SilentProxy]:
    """A proxy in front of whatever `connect` reaches; everything is closed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        proxy = SilentProxy(listener.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                link = Link(client, connect(), is_silent=proxy.swallows)
                stack.callback(client.close)
                stack.callback(link.server.close)
                proxy.links.append(link)
                for source, target in ((link.client, link.server), (link.server, link.client)):
                    threading.Thread(target=_pump, args=(link, source, target), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield proxy
        finally:
            # Unblocks accept(); closing alone does not.
            listener.shutdown(socket.SHUT_RDWR)
            for link in proxy.links:
                for end in (link.client, link.server):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)


def _pump(link: Link, source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if source is link.client and len(link.opening) < 1000:
                link.opening += data
            if not link.is_silent:
                target.sendall(data)
        if not link.is_silent:
            target.shutdown(socket.SHUT_WR)
