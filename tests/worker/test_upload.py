"""Results arrive whole in their slots, or the job fails with the reason."""

import os
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.tasks.picture import OutputFile
from geoprocessing_worker.wire.messages import UploadSlot
from geoprocessing_worker.wire.upload import upload
from tests.support.scripted_api import ScriptedApi


def made(folder: Path, name: str, content: bytes) -> OutputFile:
    (folder / name).write_bytes(content)
    return OutputFile(name=name, path=folder / name, content_type="image/png", size_bytes=len(content), sha256="00")


async def send(server: ScriptedApi, http: httpx.AsyncClient, outputs: list[OutputFile], max_bytes: int = 10**6) -> None:
    slots = {
        name: UploadSlot(name=name, url=f"{server.base_url}/{name}?signature=s", max_bytes=max_bytes)
        for name in ("a.png", "a.json")
    }
    await upload(outputs, slots.get, http=http, report=lambda *_: None)


async def test_each_file_is_put_whole_into_its_own_slot(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    server.on("a.png", Response(status_code=200))
    server.on("a.json", Response(status_code=200))
    await send(server, http, [made(tmp_path, "a.png", b"p" * 600_000), made(tmp_path, "a.json", b"{}")])
    (picture,), (metadata,) = server.calls("a.png"), server.calls("a.json")
    assert metadata.body == b"{}"
    assert (picture.method, picture.body) == ("PUT", b"p" * 600_000)
    assert picture.headers["content-length"] == "600000"
    assert "authorization" not in picture.headers


async def test_a_busy_storage_is_tried_again(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> None:
    server.on("a.png", Response(status_code=503), Response(status_code=201))
    await send(server, http, [made(tmp_path, "a.png", b"p")])
    assert [asked.body for asked in server.asked] == [b"p", b"p"]


async def test_a_result_that_is_no_longer_a_file_is_not_sent(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    output = made(tmp_path, "a.png", b"p")
    output.path.unlink()
    os.mkfifo(output.path)
    with pytest.raises(OSError, match="not a regular file"):
        await send(server, http, [output])


@pytest.mark.parametrize(
    ("name", "max_bytes", "status", "code"),
    [
        ("other.png", 10, 200, "no_upload_slot"),
        ("a.png", 2, 200, "output_too_large"),
        ("a.png", 10, 403, "upload_refused"),
        ("a.png", 10, 500, "upload_failed"),
    ],
)
async def test_a_result_that_cannot_be_stored_fails_the_job_by_name(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path, name: str, max_bytes: int, status: int, code: str
) -> None:
    server.on("a.png", Response(status_code=status))
    with pytest.raises(JobError) as caught:
        await send(server, http, [made(tmp_path, name, b"four")], max_bytes)
    assert caught.value.code == code


async def test_a_refusal_by_a_clock_that_is_days_off_costs_the_job_no_attempt(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Where clocks differ by days, signed URLs seem expired."""
    server.on("a.png", Response(status_code=403, headers={"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}))
    with pytest.raises(JobError) as caught:
        await send(server, http, [made(tmp_path, "a.png", b"p")])
    assert (caught.value.code, caught.value.error_class) == ("worker_trouble", ErrorClass.INTERRUPTED)
