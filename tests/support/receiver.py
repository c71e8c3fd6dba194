"""A receiver of webhooks on a real socket, with signature checks and scripted answers."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.serving import serving


@dataclass(slots=True)
class Received:
    """One received request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The parsed body."""
        told: dict[str, Any] = json.loads(self.body)
        return told

    def is_signed_with(self, secret: str) -> bool:
        """Return whether the signature matches the secret, the time stamp and this body."""
        message = self.headers["webhook-timestamp"].encode() + b"." + self.body
        expected = hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
        return hmac.compare_digest(f"v1={expected}", self.headers["webhook-signature"])


# Status, headers and body of an answer.
Answer = tuple[int, dict[str, str], bytes]


@dataclass(slots=True)
class Receiver:
    """Received requests, and the function that answers them. An answer may wait."""

    url: str
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Answer] = lambda _: (204, {}, b"")

    def bodies(self) -> list[dict[str, Any]]:
        """Return all bodies, in order."""
        return [one.json for one in self.received]


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """Yield a receiver on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the base class calls it so
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # the sender is dead
            one = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            made.received.append(one)
            status, headers, content = made.answer(one)
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore clients that hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    made = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
    with serving(server):
        yield made
