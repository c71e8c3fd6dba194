"""Signed storage: the permissions of a URL, and their limits."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from geo_jobs_api.errors import Problem
from geo_jobs_api.storage.local_storage import StagedObject
from tests.support.api import RunningApi
from tests.support.clients import (
    TIFF,
    Person,
    Worker,
    code_of,
    get,
    head,
    input_file,
    output_file,
    put,
    storage_files,
    unfinished_uploads,
)


def finished(api: RunningApi, content: bytes) -> str:
    """The download URL of a job's only output."""
    person, worker = Person(api), Worker(api)
    job_id = person.submit()
    job = worker.claim()
    worker.complete(job, worker.upload(job, content)).raise_for_status()
    return str(person.http.get(f"/api/geo-jobs/{job_id}/download/output").json()["outputs"][0]["url"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size=100", "size=1000000"),
        ("size=100", "maxSize=100"),
        ("map.tif", "other.tif"),
        ("expires=", "expires=9"),
        ("signature=", "signature=x"),
        ("/input/", "/outputs/"),
    ],
)
def test_an_altered_signed_upload_is_rejected(person: Person, old: str, new: str) -> None:
    """The signature covers key, size, kind of size and expiry."""
    url = person.upload_url(person.create()["id"])
    assert old in url
    assert code_of(put(url.replace(old, new), content=TIFF)) == (403, "signature_invalid")


def test_a_signature_is_for_one_method(api: RunningApi, person: Person) -> None:
    """An upload URL cannot read, and a download URL cannot write."""
    upload = person.upload_url(person.create()["id"])
    assert code_of(get(upload)) == (403, "signature_invalid")
    download = finished(api, b"picture")
    assert code_of(put(f"{download}&size=1", content=b"x")) == (403, "signature_invalid")


def test_a_signature_without_its_parts_is_rejected(api: RunningApi) -> None:
    """A URL without signature returns nothing."""
    assert code_of(get(f"{api.base_url}/storage/jobs/x")) == (422, "validation")


def test_an_expired_signature_is_rejected(api_server: Callable[..., RunningApi]) -> None:
    """A URL that was valid a moment ago expires."""
    api = api_server(signed_url_seconds=1)
    person = Person(api)
    job_id = person.create()["id"]
    url = person.upload_url(job_id)
    signer = api.app.state.services.storage.signer
    later = signer._clock() + 2
    signer._clock = lambda: later
    assert code_of(put(url, content=TIFF)) == (403, "signature_expired")


@pytest.mark.parametrize(("size", "expected"), [(99, (422, "validation")), (101, (413, "too_large"))])
def test_an_upload_of_another_size_than_announced_leaves_nothing_behind(
    api: RunningApi, person: Person, size: int, expected: tuple[int, str]
) -> None:
    """Exactly the announced bytes, with or without Content-Length. Otherwise no file and no queued job."""
    job_id = person.create()["id"]
    url = person.upload_url(job_id, size=100)

    def chunks() -> Iterator[bytes]:
        for _ in range(size):
            yield b"x"

    assert code_of(put(url, content=bytes(size))) == expected
    assert code_of(put(url, content=chunks())) == expected
    assert storage_files(api, job_id) == []
    assert unfinished_uploads(api.settings.object_dir) == []
    assert person.look(job_id)["state"] == "awaiting_upload"


def test_an_upload_that_breaks_off_leaves_nothing_behind_and_can_be_repeated(api: RunningApi, person: Person) -> None:
    """Files appear atomically."""
    job_id = person.create()["id"]
    url = person.upload_url(job_id, size=1000)

    def chunks() -> Iterator[bytes]:
        yield bytes(500)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        put(url, content=chunks(), headers={"Content-Length": "1000"})
    assert storage_files(api, job_id) == []
    put(url, content=bytes(1000)).raise_for_status()
    assert person.look(job_id)["state"] == "queued"


def test_a_second_upload_of_the_same_file_does_not_replace_the_first(api: RunningApi, person: Person) -> None:
    """A file that the worker may be reading does not change."""
    job_id = person.create()["id"]
    url = person.upload_url(job_id)
    put(url, content=TIFF).raise_for_status()
    assert code_of(put(url, content=TIFF[::-1])) == (409, "invalid_state")
    assert person.look(job_id)["input"]["sha256"] == hashlib.sha256(TIFF).hexdigest()
    assert storage_files(api, job_id) == [input_file()]


def test_an_output_larger_than_its_slot_is_rejected(person: Person, worker: Worker) -> None:
    """`maxBytes` applies."""
    person.submit()
    slot = next(slot for slot in worker.claim()["uploads"] if slot["name"] == "map.pgw")
    assert code_of(put(slot["url"], content=bytes(slot["maxBytes"] + 1))) == (413, "too_large")


def test_downloads_are_attachments_that_a_browser_neither_shows_nor_guesses_at(api: RunningApi) -> None:
    """Headers, ranges and HEAD."""
    url = finished(api, bytes(range(100)))
    whole = get(url)
    assert whole.content == bytes(range(100))
    assert whole.headers["content-disposition"] == 'attachment; filename="map.png"'
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-type"] == "application/octet-stream"
    part = get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert head(url).headers["content-length"] == "100"


def test_names_in_any_script_survive_the_whole_way(api: RunningApi, person: Person, worker: Worker) -> None:
    """Keys, URLs and outputs keep an Arabic name."""
    job_id = person.create()["id"]
    put(person.upload_url(job_id, "خريطة صنعاء (1).tif"), content=TIFF).raise_for_status()
    job = worker.claim()
    assert job["input"]["fileName"] == "خريطة صنعاء (1).tif"
    assert get(job["input"]["downloadUrl"]).content == TIFF
    assert worker.complete(job).raise_for_status().json()["state"] == "succeeded"
    assert storage_files(api, job_id)[-1] == output_file(b"\x89PNG picture", "خريطة صنعاء (1).png")


def test_signed_urls_use_the_configured_public_address(api_server: Callable[..., RunningApi]) -> None:
    """Behind a proxy the request's own address would be useless."""
    person = Person(api_server(api_public_url="https://maps.example/base/"))
    assert person.upload_url(person.create()["id"]).startswith("https://maps.example/base/storage/jobs/")


@pytest.mark.parametrize(
    "key",
    [
        "jobs/../../etc/passwd",
        "jobs/..",
        "/etc/passwd",
        "other/x",
        "jobs//x",
        "jobs/a/\0",
        "",
        "jobs/./x",
        ".incoming/x",
    ],
)
def test_even_a_signed_key_cannot_leave_the_store(api: RunningApi, key: str) -> None:
    """The store checks keys itself, independent of signatures."""
    storage = api.app.state.services.storage
    with pytest.raises(Problem, match="object_not_found"):
        storage.path_of(key)
    url = storage.sign_get(api.base_url, key, 60).url.replace("..", "%2e%2e")
    assert get(url).status_code in {403, 404}


async def test_objects_below_a_prefix_can_be_removed(api: RunningApi, person: Person) -> None:
    """For retention. A prefix without objects is no error."""
    job_id = person.submit()
    storage = api.app.state.services.storage
    for _ in range(2):
        await storage.delete_prefix(f"jobs/{job_id}")
        assert storage_files(api, job_id) == []
    assert await storage.stat([f"jobs/{job_id}/input/map.tif"]) == [None]


def test_an_upload_that_waits_for_the_disk_holds_nothing_of_the_database(
    api_server: Callable[..., RunningApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hanging disk and a pool of two, the service keeps responding during three uploads."""
    api = api_server(database_pool_size=2, database_timeout_seconds=2)
    person, go_on, stuck = Person(api), threading.Event(), threading.Semaphore(0)
    publish = StagedObject.publish

    def slowly(staged: StagedObject, target: Path) -> None:
        stuck.release()
        assert go_on.wait(20)
        publish(staged, target)

    monkeypatch.setattr(StagedObject, "publish", slowly)
    ids = [person.create()["id"] for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        uploads = [threads.submit(put, person.upload_url(job_id), content=TIFF) for job_id in ids]
        try:
            for _ in ids:
                assert stuck.acquire(timeout=10)
            assert {person.look(job_id)["state"] for job_id in ids} == {"awaiting_upload"}
        finally:
            go_on.set()
        assert [upload.result(timeout=20).status_code for upload in uploads] == [201] * 3


def test_of_two_concurrent_uploads_the_one_that_queued_the_job_stays(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """The worker's download always matches the job's digest."""
    for _ in range(5):
        job_id = person.create()["id"]
        url = person.upload_url(job_id)
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda data, url=url: put(url, content=data), (TIFF, TIFF[::-1])))
        assert sorted(answer.status_code for answer in answers) == [201, 409]
        content = get(worker.claim()["input"]["downloadUrl"]).content
        assert hashlib.sha256(content).hexdigest() == person.look(job_id)["input"]["sha256"]
