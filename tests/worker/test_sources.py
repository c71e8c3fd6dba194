"""Jobs with `sourceUrl`, and jobs without a file. Real HTTP, real child processes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.jobs.runner import Ending
from geoprocessing_worker.wire import transfer
from geoprocessing_worker.worker import source_client
from tests.support.api import NO_TLS
from tests.support.bench import Bench
from tests.support.processes import free_port
from tests.support.scripted_api import ScriptedApi

ETAG = {"ETag": '"v1"', "Last-Modified": "Sun, 22 Nov 2026 08:00:00 GMT"}


@pytest.fixture
async def bench(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench with a worker that may fetch from loopback, by a client like the worker's own."""
    bench = Bench(server, http, tmp_path)
    async with source_client(Settings(source_hosts=("127.0.0.1",)), NO_TLS) as sources:
        bench.tools = bench.with_tools(sources=sources)
        yield bench
    await bench.api.aclose()
    assert bench.folders() == [], "a folder was left behind"


def named(bench: Bench, **more: Any) -> dict[str, Any]:
    """Return the input of a job with `sourceUrl`."""
    usual = {"kind": "url", "fileName": "map.tif", "downloadUrl": f"{bench.server.base_url}/in", "contentType": None}
    return usual | {"sizeBytes": None, "etag": None, "lastModified": None} | more


async def test_a_file_is_fetched_by_its_address_and_its_version_is_reported(bench: Bench) -> None:
    bench.server.on("in", Response(bench.source, headers=ETAG))
    assert await bench.run(input=named(bench)) is Ending.COMPLETED
    (completion,) = bench.server.calls("complete")
    assert completion.json["source"] == {
        "etag": '"v1"',
        "lastModified": ETAG["Last-Modified"],
        "sizeBytes": len(bench.source),
        "sha256": hashlib.sha256(bench.source).hexdigest(),
        "unchanged": False,
    }
    assert len(completion.json["outputs"]) == 6
    (asked,) = bench.server.calls("in")
    assert not {"authorization", "lease-token", "cookie", "if-none-match"} & set(asked.headers)


async def test_an_uploaded_files_version_is_nobodys_business(bench: Bench) -> None:
    assert await bench.run() is Ending.COMPLETED
    assert "source" not in bench.server.calls("complete")[0].json


async def test_a_source_that_has_not_changed_ends_its_job_without_work(bench: Bench) -> None:
    async def conditional(request: Request) -> Response:
        known = request.headers.get("if-none-match") == '"v1"'
        return Response(status_code=304, headers=ETAG) if known else Response(bench.source, headers=ETAG)

    bench.server.on("in", conditional)
    known = {"etag": '"v1"', "lastModified": ETAG["Last-Modified"]}
    assert await bench.run(input=named(bench, **known)) is Ending.COMPLETED
    (completion,) = bench.server.calls("complete")
    assert completion.json["outputs"] == []
    assert completion.json["metadata"] == {"unchanged": True}
    assert completion.json["source"] == {**known, "unchanged": True}
    assert bench.server.calls("in")[0].headers["if-modified-since"] == ETAG["Last-Modified"]


async def test_a_changed_source_is_worked_on_again(bench: Bench) -> None:
    bench.server.on("in", Response(bench.source, headers={"ETag": '"v2"'}))
    assert await bench.run(input=named(bench, etag='"v1"')) is Ending.COMPLETED
    assert bench.server.calls("complete")[0].json["source"]["etag"] == '"v2"'


async def test_not_modified_without_a_condition_is_an_error(bench: Bench) -> None:
    bench.server.on("in", Response(status_code=304))
    assert await bench.run(input=named(bench)) is Ending.FAILED
    assert (bench.failure()["code"], bench.failure()["class"]) == ("download_refused", "transient")


async def test_a_source_that_never_ends_is_cut_off_at_the_largest_file(bench: Bench) -> None:
    """The source declares no length, so received bytes are counted."""
    small = bench.tools.settings.model_copy(update={"max_file_size": len(bench.source) - 1})
    bench.tools = bench.with_tools(settings=small)
    assert await bench.run(input=named(bench)) is Ending.FAILED
    assert bench.failure()["code"] == "too_large"


async def test_a_source_declared_too_large_is_not_fetched(bench: Bench) -> None:
    """Its length is in the report, so that a server can give the job to a worker that takes so much."""

    async def body() -> AsyncIterator[bytes]:
        yield bench.source[:100]
        await asyncio.Event().wait()

    bench.server.on("in", StreamingResponse(body(), headers={"Content-Length": "999999999"}))
    bench.tools = bench.with_tools(settings=bench.tools.settings.model_copy(update={"max_file_size": 1000}))
    assert await bench.run(input=named(bench)) is Ending.FAILED
    assert bench.failure()["class"] == "invalid_input"
    assert bench.failure()["detail"] == {"limit": "MAX_FILE_SIZE", "limit_bytes": 1000, "size_bytes": 999_999_999}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 451])
async def test_a_source_that_refuses_its_file_ends_the_job_for_good(bench: Bench, status: int) -> None:
    """The message has status and host. No report has the signature in the address."""
    bench.server.on("in", Response(status_code=status))
    signed = f"{bench.server.base_url}/in?X-Amz-Signature=secret-of-the-source"
    assert await bench.run(input=named(bench, downloadUrl=signed)) is Ending.FAILED
    assert b"secret-of-the-source" not in b"".join(asked.body for asked in bench.server.asked)
    failure = bench.failure()
    assert (failure["code"], failure["class"], failure["detail"]["status"]) == (
        "download_refused",
        "invalid_input",
        status,
    )
    assert failure["message"].startswith(f"127.0.0.1 answered {status} ")
    assert len(bench.server.calls("in")) == 1


@pytest.mark.parametrize(
    ("status", "headers"), [(500, {}), (503, {}), (408, {}), (425, {}), (429, {}), (403, {"Retry-After": "0"})]
)
async def test_a_source_that_is_only_busy_is_asked_again(bench: Bench, status: int, headers: dict[str, str]) -> None:
    """Server errors, rate limits, and any refusal with Retry-After."""
    bench.server.on("in", Response(status_code=status, headers=headers), Response(bench.source))
    assert await bench.run(input=named(bench)) is Ending.COMPLETED
    assert len(bench.server.calls("in")) == 2


async def test_a_refusal_after_a_redirect_is_final_too(bench: Bench) -> None:
    bench.server.on("moved", Response(status_code=302, headers={"Location": "/gone"}))
    bench.server.on("gone", Response(status_code=410))
    assert await bench.run(input=named(bench, downloadUrl=f"{bench.server.base_url}/moved")) is Ending.FAILED
    assert (bench.failure()["class"], bench.failure()["detail"]["status"]) == ("invalid_input", 410)


async def test_a_job_without_a_file_fails_where_one_is_needed(bench: Bench) -> None:
    assert await bench.run(input=None) is Ending.FAILED
    assert (bench.failure()["code"], bench.failure()["class"]) == ("no_input", "invalid_input")


async def test_a_job_without_a_file_is_named_after_its_task_type(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    bench = Bench(server, http, tmp_path, "tests.support.child_work:make_from_nothing", needs_input=False)
    bench.server.on("geotiff_to_png.json", Response(status_code=200))
    slot = {"name": "geotiff_to_png.json", "url": f"{server.base_url}/geotiff_to_png.json", "maxBytes": 100}
    assert await bench.run(input=None, uploads=[slot]) is Ending.COMPLETED
    assert bench.server.calls("geotiff_to_png.json")[0].body == b"{}"
    assert bench.server.calls("in") == []
    await bench.api.aclose()


def client(*hosts: str) -> httpx.AsyncClient:
    return source_client(Settings(source_hosts=hosts), NO_TLS)


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        ((), "http://example.org/map.tif"),
        (("maps.example.org",), "http://example.org/map.tif"),
        (("*.example.org",), "http://example.com/map.tif"),
        (("*",), "http://127.0.0.1:9/map.tif"),
        (("*",), "http://localhost:9/map.tif"),
        (("example.org",), "http://somebody@example.org/map.tif"),
        (("example.org",), "ftp://example.org/map.tif"),
    ],
)
async def test_an_address_that_is_not_allowed_is_not_asked(hosts: tuple[str, ...], url: str, bench: Bench) -> None:
    """Without SOURCE_HOSTS no address is allowed. `*` allows public hosts, and no private address."""
    if "127.0.0.1" in url or "localhost" in url:
        url = url.replace(":9", f":{bench.server.base_url.rpartition(':')[2]}")
    async with client(*hosts) as http:
        with pytest.raises(JobError) as caught:
            await http.get(url)
    assert (caught.value.code, caught.value.error_class) == ("source_not_allowed", "invalid_input")
    assert bench.server.asked == []


async def test_a_redirect_is_followed_to_allowed_hosts_only(bench: Bench) -> None:
    port = bench.server.base_url.rpartition(":")[2]
    bench.server.on("moved", Response(status_code=302, headers={"Location": "/in", "Set-Cookie": "a=b"}))
    bench.server.on("away", Response(status_code=302, headers={"Location": f"http://localhost:{port}/in"}))
    assert await bench.run(input=named(bench, downloadUrl=f"{bench.server.base_url}/moved")) is Ending.COMPLETED
    (asked,) = bench.server.calls("in")
    assert "cookie" not in asked.headers
    assert await bench.run(input=named(bench, downloadUrl=f"{bench.server.base_url}/away")) is Ending.FAILED
    assert bench.failure_after_completion()["code"] == "source_not_allowed"
    assert len(bench.server.calls("in")) == 1


async def test_a_dead_source_is_given_up_long_before_dead_storage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source without a listener fails the job as transient after a short patience, so other jobs can run."""
    patience: list[float] = []

    async def noted(once: Any, pulse: transfer.Pulse, **told: Any) -> None:
        patience.append(pulse.patience_left())
        await patiently(once, pulse, **told)

    patiently = transfer.patiently
    monkeypatch.setattr(transfer, "patiently", noted)
    nobody = f"http://127.0.0.1:{free_port()}/map.tif"
    assert await bench.run(input=named(bench, downloadUrl=nobody)) is Ending.FAILED
    (failure,) = bench.server.calls("fail")
    assert (failure.json["error"]["code"], failure.json["error"]["class"]) == ("download_failed", "transient")
    assert max(patience) <= 60
    assert transfer.SILENCE.connect is not None
    assert transfer.SILENCE.connect <= 10
