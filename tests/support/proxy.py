"""A TCP proxy that can silence its connections, to simulate half-open ones."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Link:
    """One connection through the proxy. `opening` has the first bytes of the client."""

    client: socket.socket
    server: socket.socket
    opening: bytes = b""
    is_silent: bool = False


@dataclass(slots=True)
class SilentProxy:
    """Forwards bytes both ways until a connection is silenced. Then it discards them and closes no socket.

    Args:
        port: the proxy's, on 127.0.0.1.
        links: all connections, in order.
        swallows: silence new connections from the start.
    """

    port: int
    links: list[Link] = field(default_factory=list)
    swallows: bool = False

    def silence(self, word: bytes) -> int:
        """Silence the connections with a word in their opening. Return their number."""
        found = [link for link in self.links if word in link.opening and not link.is_silent]
        for link in found:
            link.is_silent = True
        return len(found)

    def talking(self, word: bytes) -> int:
        """Return the number of connections with that word that are not silenced."""
        return sum(word in link.opening and not link.is_silent for link in self.links)


@contextlib.contextmanager
def silent_proxy(connect: Callable[[], socket.socket]) -> Iterator[SilentProxy]:
    """Yield a proxy in front of `connect`. Close all sockets at the end."""
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
            # Unblocks accept(), unlike closing.
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
