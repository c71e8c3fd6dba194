"""Fixtures of all tests. `tests/support` has their code."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

from tests.support.api import RunningApi, make_settings, run_api
from tests.support.database import DatabaseServer, database_server, empty_queue
from tests.support.scripted_api import ScriptedApi, scripted_api
from tests.support.waiting import wait_until

# The duration of an example depends on the machine, not on the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.register_profile("long", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def postgres() -> Iterator[DatabaseServer]:
    """One embedded PostgreSQL for the whole session."""
    with database_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: DatabaseServer) -> Iterator[str]:
    """A fresh migrated database for one test."""
    with postgres.clone() as url:
        yield url


@pytest.fixture
def api_server(postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., RunningApi]]:
    """Start APIs on the test's database. Keyword arguments are settings by field name."""
    with contextlib.ExitStack() as stack:

        def start(**overrides: Any) -> RunningApi:
            port = overrides.pop("port", 0)
            settings = make_settings(overrides.pop("database_url", postgres_url), tmp_path / "data", **overrides)
            return stack.enter_context(run_api(settings, port))

        yield start


@pytest.fixture(scope="session")
def shared_api(postgres: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """One API for the session. The fixture `api` also empties its queue."""
    with postgres.clone() as url, run_api(make_settings(url, tmp_path_factory.mktemp("shared") / "data")) as api:
        yield api


@pytest.fixture(scope="session")
def shared_linked_api(postgres: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """Like `shared_api`, with hosts for sources, and webhooks to loopback."""
    folder = tmp_path_factory.mktemp("linked") / "data"
    settings = {"source_hosts": "maps.example.org, *.tiles.example.org", "webhook_hosts": "127.0.0.1"}
    with postgres.clone() as url, run_api(make_settings(url, folder, **settings)) as api:
        yield api


@pytest.fixture
def api(shared_api: RunningApi) -> Iterator[RunningApi]:
    """A running API with the tests' usual settings and an empty queue."""
    empty_queue(shared_api.settings.conninfo or "")
    with contextlib.ExitStack() as clients:
        yield dataclasses.replace(shared_api, _clients=clients)
    wait_until(lambda: shared_api.parked == 0, "the test's parked claims to go")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedApi]:
    """An API with scripted answers."""
    async with scripted_api() as api:
        yield api


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for one test."""
    async with httpx.AsyncClient() as client:
        yield client
