"""What the worker's tests share."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import stamina

from tests.support.scripted_api import ScriptedApi, scripted_api


@pytest.fixture(autouse=True)
def no_waiting_between_retries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=8, cap=True):
        yield


@pytest.fixture
async def server() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as api:
        yield api


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client
