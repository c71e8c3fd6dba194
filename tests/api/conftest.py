"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.api import RunningApi
from tests.support.clients import Person, Worker


@pytest.fixture
def person(api: RunningApi) -> Person:
    """A person with access to the test's own API."""
    return Person(api)


@pytest.fixture
def worker(api: RunningApi) -> Worker:
    """A worker of the test's own API."""
    return Worker(api)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for concurrent calls, joined at the end of the test."""
    with ThreadPoolExecutor(max_workers=24) as pool:
        yield pool
