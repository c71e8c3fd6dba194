"""Fixtures of the API's tests."""

from __future__ import annotations

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
