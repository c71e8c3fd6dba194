"""What the attacks share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import stamina

from tests.support.canary import Canary, canary
from tests.support.scripted_api import ScriptedApi, scripted_api


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Canary]:
    """A listener and a file that must not be touched."""
    with canary(tmp_path) as made:
        yield made


@pytest.fixture
async def server() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as api:
        yield api


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


@pytest.fixture(autouse=True)
def no_waiting_between_retries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield
