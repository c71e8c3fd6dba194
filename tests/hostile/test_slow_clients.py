"""Clients that occupy a connection with few bytes are disconnected, and others are served."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from geo_jobs_api.endpoints import files
from geo_jobs_api.http import connections
from tests.support.api import RunningApi, make_jwt
from tests.support.clients import Person, Worker, get
from tests.support.waiting import wait_until

HEAD = f"Host: a\r\nAuthorization: Bearer {make_jwt()}\r\n"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.4)


@contextlib.contextmanager
def connected(api: RunningApi) -> Iterator[socket.socket]:
    host, port = api.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        yield slow


def drip(slow: socket.socket, piece: bytes, most: int) -> bytes:
    """Send a piece again and again, until the server closes. Return its answer. AssertionError if it never closes."""
    answer = b""
    slow.settimeout(0.02)
    for _ in range(most):
        try:
            slow.sendall(piece)
            got = slow.recv(65_536)
        except TimeoutError:
            continue
        except (ConnectionError, BrokenPipeError):
            return answer
        if not got:
            return answer
        answer += got
    raise AssertionError(f"still connected after {most} pieces, with the answer {answer!r}")


def test_a_slow_head_is_refused(api: RunningApi) -> None:
    """Nor is the second head of a connection."""
    with connected(api) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        assert get(f"{api.base_url}/health").status_code == 200
        assert drip(slow, b"a", 500) == b""
    with connected(api) as slow:
        slow.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nX-Fast: b\r\n\r\n")
        assert slow.recv(10).startswith(b"HTTP/1.1 2")
        drip(slow, b"G", 500)


def test_an_idle_connection_is_closed(api: RunningApi) -> None:
    with connected(api) as silent:
        assert silent.recv(10) == b""


def test_a_used_connection_stays_open_between_requests(api: RunningApi) -> None:
    """A worker claims again on the same connection after the time of a job."""
    with connected(api) as kept:
        for _ in range(2):
            kept.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 404 " in kept.recv(65_536).split(b"\r\n")[0]
            kept.settimeout(0.6)
            with pytest.raises(TimeoutError):
                kept.recv(1)
            kept.settimeout(20)


@pytest.mark.parametrize(
    "start",
    [
        "GET /health HTTP/1.1\r\nHost: a\r\nX-Long: ",
        "GET /health?",
        "GET /health HTTP/1.1\r\nHost: a\r\n" + "X-Many: b\r\n" * 5,
        f"POST /api/geo-jobs HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\nX-Trailer: ",
        f"POST /api/geo-jobs HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n1;extension=",
    ],
    ids=["header", "address", "headers", "trailer", "chunk"],
)
def test_an_endless_head_is_refused(api: RunningApi, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no token: a gigabyte of it would take a gigabyte of memory."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 20.0)
    with connected(api) as endless:
        endless.sendall(start.encode())
        piece = b"X-Many: b\r\n" * 1000 if start.endswith("\n") else b"a" * 10_000
        answer = drip(endless, piece, 100)
        assert b" 400 " in answer.split(b"\r\n")[0] or answer == b""


def test_a_client_that_does_not_read_is_disconnected(api: RunningApi) -> None:
    Person(api).submit(data=os.urandom(30_000_000))
    url = Worker(api).claim()["input"]["downloadUrl"]
    with connected(api) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(f"GET {url.removeprefix(api.base_url)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

        def is_open() -> bool:
            return any(
                getattr(one, "client", None) == deaf.getsockname() for one in [*api.server.server_state.connections]
            )

        wait_until(is_open, "the connection to be accepted")
        wait_until(lambda: not is_open(), "the connection to be broken")


def test_a_slow_upload_is_refused(api_server: Callable[..., RunningApi], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pauses. No file of it remains."""
    monkeypatch.setattr(files, "UPLOAD_SECONDS", 0.3)
    api = api_server()
    person = Person(api)
    url = person.upload_url(person.create()["id"], size=200)
    with connected(api) as slow:
        slow.sendall(
            f"PUT {url.removeprefix(api.base_url)} HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n".encode()
        )
        assert b" 408 " in drip(slow, b"a", 199).split(b"\r\n")[0]
    assert not [path for path in api.settings.object_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]
