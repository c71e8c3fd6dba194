"""The worker's own HTTP client: it asks once, keeps nothing, and goes nowhere else."""

from __future__ import annotations

import httpx
import pytest
from starlette.responses import Response

from geoprocessing_worker.lean_client import LeanClient
from tests.support.scripted_api import ScriptedApi


async def test_no_cookie_redirect_or_credential_of_an_address_is_taken_up(server: ScriptedApi) -> None:
    """What httpx does for browsers' sake is not done for a worker's calls."""
    server.on("first", Response(status_code=302, headers={"Location": "/second", "Set-Cookie": "a=b"}))
    server.on("third", Response(b"told"))
    async with LeanClient() as client:
        assert (await client.get(f"{server.base_url}/first", follow_redirects=True)).status_code == 302
        answer = await client.get(f"{server.base_url.replace('//', '//somebody:secret@')}/third")
    assert answer.content == b"told"
    assert [asked.path for asked in server.asked] == ["/first", "/third"]
    assert not server.asked[-1].headers.keys() & {"cookie", "authorization"}


async def test_an_answer_that_a_hook_refuses_gives_its_connection_back(server: ScriptedApi) -> None:
    """A connection that were kept for each refused answer would end the worker's calls after a few."""
    server.on("file", Response(b"x" * 100_000))

    async def refuse(response: httpx.Response) -> None:
        raise httpx.DecodingError("refused", request=response.request)

    limits = httpx.Limits(max_connections=1)
    async with LeanClient(event_hooks={"response": [refuse]}, limits=limits, timeout=10) as client:
        for _ in range(3):
            with pytest.raises(httpx.DecodingError):
                await client.get(f"{server.base_url}/file")
    with pytest.raises(RuntimeError, match="closed"):
        await client.get(server.base_url)
