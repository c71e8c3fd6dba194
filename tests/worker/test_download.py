"""Files arrive whole, within their limit, over bad links, or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from geoprocessing_worker.errors import JobError, Unavailable
from geoprocessing_worker.wire import transfer
from geoprocessing_worker.wire.download import Downloaded, download
from geoprocessing_worker.wire.messages import JobInput
from geoprocessing_worker.wire.transfer import PATIENCE, STEP, Pulse
from tests.support.scripted_api import ScriptedApi

BODY = bytes(range(256)) * 4096


async def fetch(
    server: ScriptedApi, http: httpx.AsyncClient, folder: Path, *, size: int = len(BODY), max_bytes: int = 10**9
) -> Downloaded:
    source = JobInput(file_name="map.tif", download_url=f"{server.base_url}/file", size_bytes=size)
    return await download(source, folder / "map.tif", http=http, max_bytes=max_bytes, report=lambda *_: None)


def broken_off_after(count: int, headers: dict[str, str]) -> Any:
    async def answer(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield BODY[:count]
            raise ConnectionResetError

        return StreamingResponse(body(), headers={"Content-Length": str(len(BODY)), **headers})

    return answer


async def rest(request: Request) -> Response:
    start = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))
    headers = {"Content-Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}", "ETag": '"v1"'}
    return Response(BODY[start:], 206, headers=headers)


async def test_a_file_appears_whole_with_its_digest(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    server.on("file", Response(BODY))
    got = await fetch(server, http, tmp_path)
    assert got.path.read_bytes() == BODY
    assert got.sha256 == hashlib.sha256(BODY).hexdigest()
    assert "authorization" not in server.asked[0].headers
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


async def test_a_download_that_broke_off_goes_on_where_it_was(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    server.on("file", broken_off_after(300_000, {"ETag": '"v1"'}), rest)
    got = await fetch(server, http, tmp_path)
    assert got.sha256 == hashlib.sha256(BODY).hexdigest()
    again = server.asked[1].headers
    assert again["if-range"] == '"v1"'
    assert 0 < int(again["range"].removeprefix("bytes=").rstrip("-")) <= 300_000


async def test_a_download_starts_anew_where_the_server_cannot_go_on(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    server.on("file", broken_off_after(300_000, {}), Response(BODY))
    assert (await fetch(server, http, tmp_path)).path.read_bytes() == BODY


async def test_a_body_longer_than_the_limit_is_refused_whatever_its_declared_length(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async def endless(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0)  # lets the server notice the closed connection
                yield BODY

        return StreamingResponse(body())

    server.on("file", endless)
    with pytest.raises(JobError) as caught:
        await fetch(server, http, tmp_path, size=1000, max_bytes=3_000_000)
    assert (caught.value.code, caught.value.error_class) == ("too_large", "invalid_input")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3_000_000


async def test_an_input_declared_too_large_is_not_requested(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="most that is accepted"):
        await fetch(server, http, tmp_path, max_bytes=1000)
    assert server.asked == []


async def test_a_file_larger_than_the_free_room_is_not_requested(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """The report is worker trouble, sent before the disk is full."""
    with pytest.raises(JobError) as caught:
        await fetch(server, http, tmp_path, size=10**18, max_bytes=10**19)
    assert (caught.value.code, caught.value.error_class) == ("worker_trouble", "interrupted")
    assert server.asked == []


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_an_address_that_ran_out_is_a_trouble_that_passes(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path, status: int
) -> None:
    server.on("file", Response(status_code=status))
    with pytest.raises(JobError) as caught:
        await fetch(server, http, tmp_path)
    assert (caught.value.code, caught.value.error_class) == ("download_refused", "transient")


@pytest.mark.parametrize(
    "answer",
    [
        Response(b"<Error><Code>NoSuchKey</Code></Error>", 404),
        Response(b'{"status": 404, "code": "object_not_found"}', 404),
        Response(b"", 404, headers={"x-ms-error-code": "BlobNotFound"}),
    ],
    ids=["S3", "local", "Azure"],
)
async def test_an_object_that_storage_itself_reports_as_gone_is_final(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path, answer: Response
) -> None:
    """A 404 without a code may be a proxy's. The error codes of storage are not."""
    server.on("file", answer)
    with pytest.raises(JobError, match="status 404") as caught:
        await fetch(server, http, tmp_path)
    assert (caught.value.code, caught.value.error_class) == ("download_refused", "invalid_input")


async def test_storage_that_stays_broken_ends_the_patience(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    server.on("file", Response(status_code=502))
    with pytest.raises(JobError) as caught:
        await fetch(server, http, tmp_path)
    assert (caught.value.code, caught.value.error_class) == ("download_failed", "transient")
    assert len(server.asked) > 1


def test_patience_is_counted_from_the_last_byte_that_moved() -> None:
    times = iter([0.0, PATIENCE - 1, PATIENCE * 1.5 - 1])
    pulse = Pulse(lambda: next(times))
    pulse.beat(STEP)
    assert pulse.patience_left() == PATIENCE / 2


def test_a_trickle_is_no_step_forward() -> None:
    """A byte a second keeps a transfer going until patience ends, and no longer."""
    now = 0.0
    pulse = Pulse(lambda: now)
    while now < PATIENCE - 1:
        now += 1
        pulse.beat(1)
    now += 1
    with pytest.raises(Unavailable, match="too_slow"):
        pulse.beat(1)


async def test_slow_and_silent_servers_are_given_up(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a real socket: bytes now and then keep no download going beyond patience, nor does silence."""
    monkeypatch.setattr(transfer, "PATIENCE", 0.6)
    monkeypatch.setattr(transfer, "SILENCE", 0.2)
    over = asyncio.Event()
    sent = 0

    async def answer(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            while request.url.path == "/drip/file" and not over.is_set():
                sent += 1
                yield b"x"
                await asyncio.sleep(0.05)
            await over.wait()

        return StreamingResponse(body())

    server.on("file", answer)
    try:
        for name in ("drip", "silent"):
            source = JobInput(file_name="map.tif", download_url=f"{server.base_url}/{name}/file", size_bytes=10**6)
            async with asyncio.timeout(20):
                with pytest.raises(JobError) as caught:
                    await download(source, tmp_path / name, http=http, max_bytes=10**9, report=lambda *_: None)
            assert (caught.value.code, caught.value.error_class) == ("download_failed", "transient")
    finally:
        over.set()
    assert sent > 2, "nothing dripped"


async def test_a_file_of_another_size_than_was_uploaded_is_not_used(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """After three downloads."""
    server.on("file", Response(BODY[:-1]))
    with pytest.raises(JobError) as caught:
        await fetch(server, http, tmp_path)
    assert caught.value.code == "size_mismatch"
    assert len(server.asked) == transfer.MAX_MISMATCHES
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize("answer", [b"<html>", BODY + b"<html>"])
async def test_a_page_in_the_place_of_the_file_is_not_used(
    answer: bytes, server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """A proxy answered for storage with a page: the file is requested again."""
    server.on("file", Response(answer), Response(BODY))
    assert (await fetch(server, http, tmp_path)).path.read_bytes() == BODY
