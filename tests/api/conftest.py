"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.api import RunningApi, make_settings, run_api
from tests.support.clients import Person, Worker
from tests.support.database import DatabaseServer


@pytest.fixture(scope="session")
def shared_api(postgres: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """One API for all tests that claim nothing; each uses jobs and people of its own."""
    with postgres.clone() as url, run_api(make_settings(url, tmp_path_factory.mktemp("shared") / "data")) as api:
        yield api


@pytest.fixture
def person(api: RunningApi) -> Person:
    """Somebody who submits to the test's own API."""
    return Person(api)


@pytest.fixture
def worker(api: RunningApi) -> Worker:
    """A worker of the test's own API."""
    return Worker(api)
