"""A job's URLs lead to storage only (SSRF)."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from geoprocessing_worker import config_report, worker
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import JobError, Unavailable
from geoprocessing_worker.tasks.picture import OutputFile
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.download import download
from geoprocessing_worker.wire.messages import ClaimRequest, JobInput, UploadSlot
from geoprocessing_worker.wire.upload import upload
from geoprocessing_worker.wire.url_guard import LARGEST_ANSWER, StorageGuard, bound_answer
from tests.support.canary import Canary
from tests.support.scripted_api import ScriptedApi

NAME = "storage.example.com"


@contextlib.asynccontextmanager
async def guarded(guard: StorageGuard) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(event_hooks={"request": [guard]}) as client:
        yield client


async def fetch(url: str, guard: StorageGuard, folder: Path) -> None:
    source = JobInput(file_name="map.tif", download_url=url, size_bytes=10)
    async with guarded(guard) as http:
        await download(source, folder / "map.tif", http=http, max_bytes=1000, report=lambda *_: None)


@pytest.mark.parametrize(
    "url",
    [
        "{bird}",
        "http://localhost:{port}/canary.tif",
        "http://127.0.0.1@storage.example.org:{port}/",
        "http://storage.example.org@127.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://0.0.0.0:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "file://{path}",
        "ftp://storage.example.org/map.tif",
        "gopher://127.0.0.1:{port}/",
        "//storage.example.org/map.tif",
        "storage.example.org/map.tif",
    ],
)
async def test_a_url_outside_of_storage_is_refused(url: str, bird: Canary, tmp_path: Path) -> None:
    port = bird.url.split(":")[2].split("/")[0]
    with pytest.raises(JobError) as caught:
        await fetch(
            url.format(bird=bird.url, port=port, path=bird.path), StorageGuard(["storage.example.org"]), tmp_path
        )
    assert caught.value.code == "address_refused"
    assert bird.touched() == []


@pytest.mark.parametrize(
    "guard",
    [
        StorageGuard([NAME]),
        StorageGuard(["*.example.com"]),
        StorageGuard([], any_host=True),
    ],
    ids=["named", "by its ending", "any"],
)
@pytest.mark.usefixtures("hostile_dns")
async def test_a_public_name_with_a_private_address_is_refused(
    guard: StorageGuard, bird: Canary, tmp_path: Path
) -> None:
    """Checked on the connection itself, since DNS rebinding would defeat an earlier lookup."""
    with pytest.raises(JobError) as caught:
        await fetch(bird.url.replace("127.0.0.1", NAME), guard, tmp_path)
    assert (caught.value.code, caught.value.detail["address"]) == ("address_refused", "127.0.0.1")
    assert all(call == "called: b''" for call in bird.touched()), "something was sent"


@pytest.mark.usefixtures("hostile_dns")
async def test_storage_networks_allow_a_public_name_with_a_private_address(server: ScriptedApi, tmp_path: Path) -> None:
    settings = Settings(storage_hosts=NAME, storage_networks="10.0.0.0/8, 127.0.0.0/8")
    server.on("file", Response(b"x" * 10))
    await fetch(f"{server.base_url}/file".replace("127.0.0.1", NAME), worker._guard(settings), tmp_path)
    assert (tmp_path / "map.tif").read_bytes() == b"x" * 10


async def test_the_apis_own_host_counts_as_storage(server: ScriptedApi, tmp_path: Path) -> None:
    server.on("file", Response(b"x" * 10))
    await fetch(f"{server.base_url}/file", worker._guard(Settings(api_base_url=server.base_url)), tmp_path)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int, server: ScriptedApi, bird: Canary, tmp_path: Path) -> None:
    server.on("file", Response(status_code=status, headers={"Location": bird.url}))
    with pytest.raises(JobError) as caught:
        await fetch(f"{server.base_url}/file", StorageGuard(["127.0.0.1"]), tmp_path)
    assert caught.value.code == "download_refused"
    assert bird.touched() == []


async def test_results_are_uploaded_to_storage_only(bird: Canary, tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(b"a picture")
    made = OutputFile(
        name="map.png", path=tmp_path / "map.png", content_type="image/png", size_bytes=9, sha256="0" * 64
    )
    slot = UploadSlot(name="map.png", url=bird.url, max_bytes=100)
    async with guarded(StorageGuard(["storage.example.org"])) as http:
        with pytest.raises(JobError) as caught:
            await upload([made], lambda _: slot, http=http, report=lambda *_: None)
    assert caught.value.code == "address_refused"
    assert bird.touched() == []


async def test_an_endless_answer_to_an_upload_is_not_read(server: ScriptedApi, tmp_path: Path) -> None:
    async def endless(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0)
                yield bytes(65536)

        return StreamingResponse(body())

    server.on("map.png", endless)
    (tmp_path / "map.png").write_bytes(b"a picture")
    made = OutputFile(
        name="map.png", path=tmp_path / "map.png", content_type="image/png", size_bytes=9, sha256="0" * 64
    )
    slot = UploadSlot(name="map.png", url=f"{server.base_url}/map.png", max_bytes=100)
    async with asyncio.timeout(10), guarded(StorageGuard(["127.0.0.1"])) as http:
        await upload([made], lambda _: slot, http=http, report=lambda *_: None)
    assert [asked.body for asked in server.calls("map.png")] == [b"a picture"]


CLAIM = ClaimRequest(claim_id="a", worker_id="b", worker_name="c", task_types=("d",), max_jobs=1, wait_seconds=0)


@pytest.mark.parametrize("trick", ["too long", "packed"])
async def test_a_huge_answer_of_the_api_is_refused(trick: str, server: ScriptedApi) -> None:
    async def answer(request: Request) -> Response:
        if trick == "packed":
            return Response(gzip.compress(b'{"serverTime": 0}'), headers={"Content-Encoding": "gzip"})

        async def body() -> AsyncIterator[bytes]:
            for _ in range(LARGEST_ANSWER // 65536 + 10):
                await asyncio.sleep(0)
                yield b" " * 65536

        return StreamingResponse(body())

    server.on("claim", answer)
    async with httpx.AsyncClient(base_url=server.base_url, event_hooks={"response": [bound_answer]}) as http:
        with pytest.raises(Unavailable, match=r"an answer of more than|compressed without being requested"):
            await JobApi(http, SecretStr("t")).claim(CLAIM)


@pytest.mark.parametrize(
    ("url", "plain", "wrong"),
    [
        ("http://maps.example.org", False, True),
        ("http://maps.example.org", True, False),
        ("http://203.0.113.9:8000", False, False),  # reserved for documentation, so in no public network
        ("http://93.184.216.34", False, True),
        ("https://maps.example.org", False, False),
        ("http://api:8000", False, False),
        ("http://127.0.0.1:8000", False, False),
    ],
)
def test_the_token_is_never_sent_unencrypted_to_a_public_host(url: str, plain: bool, wrong: bool) -> None:
    settings = Settings(api_base_url=url, worker_auth_token="t", allow_plain_http=plain)
    assert any("unencrypted" in problem for problem in config_report.problems(settings)) is wrong
