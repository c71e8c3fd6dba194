"""Fixtures that all tests share; what they do stands in `tests/support`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import RunningApi, make_settings, run_api
from tests.support.database import DatabaseServer, database_server


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
    """Starts APIs on the test's database; keyword arguments are settings by field name."""
    with contextlib.ExitStack() as stack:

        def start(**overrides: Any) -> RunningApi:
            port = overrides.pop("port", 0)
            settings = make_settings(overrides.pop("database_url", postgres_url), tmp_path / "data", **overrides)
            return stack.enter_context(run_api(settings, port))

        yield start


@pytest.fixture
def api(api_server: Callable[..., RunningApi]) -> RunningApi:
    """One running API with the tests' usual settings."""
    return api_server()
