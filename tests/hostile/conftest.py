"""Fixtures of the attacks."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina

from tests.support.canary import Canary, canary


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Canary]:
    """A listener and a file that must stay untouched."""
    with canary(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def no_waiting_between_retries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
def hostile_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve every name of example.com to this machine, like a hostile name server."""
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **named: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if str(text).endswith("example.com") else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
