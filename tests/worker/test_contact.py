"""The log of the connection to the API. Real sockets."""

import socket
import time
from collections.abc import AsyncIterator, MutableMapping
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import Response
from structlog.testing import capture_logs

from geoprocessing_worker.errors import ApiError, Unavailable
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.retry import Policy
from tests.support.processes import free_port
from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.worker.test_client import Held, claim

RENEWED = {"leaseExpiresAt": "2030-01-01T00:00:00Z", "leaseSeconds": 60, "cancel": None}


@pytest.fixture
async def client(server: ScriptedApi) -> AsyncIterator[JobApi]:
    async with httpx.AsyncClient(base_url=server.base_url) as http:
        yield JobApi(http, SecretStr("worker-secret"))


def events(said: list[MutableMapping[str, Any]]) -> list[str]:
    return [line["event"] for line in said if line["log_level"] != "debug"]


async def test_the_first_refused_connection_is_logged_at_once_and_the_return_once(
    server: ScriptedApi,
) -> None:
    """Eight refused tries are one WARNING. The next answer is one INFO with the length of the outage."""
    server.on("heartbeat", answer(RENEWED))
    port = free_port()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        api = JobApi(http, SecretStr("t"))
        with capture_logs() as said:
            with pytest.raises(Unavailable):
                await api.heartbeat(Held())
            assert events(said) == ["api_unreachable"]
            http.base_url = httpx.URL(server.base_url)
            await api.heartbeat(Held())
            await api.heartbeat(Held())
    away, back = (line for line in said if line["log_level"] != "debug")
    assert (away["log_level"], back["log_level"]) == ("warning", "info")
    assert f"127.0.0.1:{port}" in away["message"]
    assert "start it or correct API_BASE_URL" in away["message"]
    assert "ConnectError" in away["reason"]
    assert (back["event"], back["seconds"] >= 0) == ("api_reachable", True)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_in_front_of_a_missing_api_counts_as_unreachable(
    server: ScriptedApi, client: JobApi, status: int
) -> None:
    """A 503 of the API itself has a code, and is an answer."""
    server.on("heartbeat", Response(b"<h1>Bad gateway</h1>", status), answer(RENEWED))
    with capture_logs() as said:
        await client.heartbeat(Held())
    assert events(said) == ["api_unreachable", "api_reachable"]
    server.on("heartbeat", problem(status, "unavailable"), answer(RENEWED))
    with capture_logs() as said:
        await client.heartbeat(Held())
    assert events(said) == []


async def test_a_server_that_accepts_and_stays_silent_is_unreachable() -> None:
    """The connection stands, so only the time limit of the call ends it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url) as http:
            with capture_logs() as said, pytest.raises(Unavailable):
                await JobApi(http, SecretStr("t")).heartbeat(
                    Held(), policy=Policy(try_timeout=0.1, wait_initial=0.01, wait_max=0.01)
                )
    assert events(said) == ["api_unreachable"]


async def test_a_refusal_of_the_api_is_an_answer(server: ScriptedApi, client: JobApi) -> None:
    """401, 404 and 409 end calls, and the API is there."""
    with capture_logs() as said:
        for status, code in ((401, "token_invalid"), (404, "job_not_found"), (409, "lease_lost")):
            server.on("heartbeat", problem(status, code))
            with pytest.raises(ApiError):
                await client.heartbeat(Held())
    assert events(said) == []


async def test_the_api_s_clock_is_read_from_any_answer(server: ScriptedApi, client: JobApi) -> None:
    """A Date that cannot be read changes nothing."""
    assert client.contact.clock_offset is None
    for date in (formatdate(time.time() + 3600, usegmt=True), "yesterday"):
        server.on("heartbeat", Response(b"{}", 401, headers={"Date": date}))
        with pytest.raises(ApiError):
            await client.heartbeat(Held())
        assert client.contact.clock_offset == pytest.approx(3600, abs=5)


async def test_extensions_are_those_of_the_last_answer_at_the_claim_s_address(
    server: ScriptedApi, client: JobApi
) -> None:
    """Other addresses announce no extension. A server of an earlier release withdraws them."""
    server.on("heartbeat", Response(b"{}", 401, headers={"Worker-Extensions": "other"}))
    with pytest.raises(ApiError):
        await client.heartbeat(Held())
    assert client.contact.extensions is None
    server.on("claim", Response(status_code=204, headers={"Worker-Extensions": "trouble, Other"}), answer(status=204))
    await client.claim(claim())
    assert client.contact.extensions == {"trouble", "other"}
    await client.claim(claim())
    assert client.contact.extensions == frozenset()
