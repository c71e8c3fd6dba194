"""Inline results: stored, checked and fenced like uploaded ones, over HTTP on a real disk."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from geo_jobs_api.config import MAX_INLINE_BYTES
from geo_jobs_api.storage.local_storage import LocalStorage
from geo_jobs_api.storage.storage import UrlSigner
from tests.support.api import RunningApi
from tests.support.clients import (
    Person,
    Worker,
    code_of,
    expire_leases,
    get,
    input_file,
    output_file,
    output_of,
    storage_files,
    unfinished_uploads,
)
from tests.support.waiting import wait_until


def inline(name: str, content: bytes) -> dict[str, Any]:
    return output_of(name, content) | {"content": base64.b64encode(content).decode()}


def served(person: Person, job_id: str) -> dict[str, bytes]:
    links = person.http.get(f"/api/geo-jobs/{job_id}/download/output").raise_for_status().json()["outputs"]
    return {link["name"]: get(link["url"]).content for link in links}


def test_inline_results_are_served_like_uploaded_ones(person: Person, worker: Worker) -> None:
    """A job with both: the owner sees no difference, and no base64 content."""
    job_id = person.submit()
    job = worker.claim()
    assert job["inlineBytes"] == MAX_INLINE_BYTES
    outputs = [*worker.upload(job), inline("map.pgw", b"1\n0\n"), inline("map.json", b"{}"), inline("map.prj", b"")]
    assert worker.complete(job, outputs).json() == {"state": "succeeded", "replayed": False}
    assert served(person, job_id) == {
        "map.png": b"\x89PNG picture",
        "map.pgw": b"1\n0\n",
        "map.json": b"{}",
        "map.prj": b"",
    }
    assert "content" not in str(person.events(job_id)[-1]["data"]["outputs"]).replace("contentType", "")


def test_the_largest_inline_results_fit_beside_the_largest_metadata(person: Person, worker: Worker) -> None:
    """The limit on bodies allows the offered inline bytes."""
    person.submit()
    job = worker.claim()
    body = {"outputs": [inline("map.png", bytes(MAX_INLINE_BYTES))], "metadata": {"note": "é" * 43_000}}
    worker.call("complete", job, body).raise_for_status()


@pytest.mark.parametrize(
    ("name", "size", "lie", "refusal"),
    [
        ("map.pgw", 9, {"sha256": "0" * 64}, (422, "output_mismatch")),
        ("map.pgw", 9, {"sizeBytes": 8}, (422, "output_mismatch")),
        ("../../map.pgw", 9, {}, (422, "output_mismatch")),
        ("map.pgw", 9, {"content": "no base64"}, (422, "output_mismatch")),
        ("map.pgw", 9, {"content": "AA="}, (422, "validation")),
        ("map.png", MAX_INLINE_BYTES + 1, {}, (413, "too_large")),
    ],
)
def test_a_result_that_differs_from_its_report_or_is_too_large_is_not_stored(
    api: RunningApi, person: Person, worker: Worker, name: str, size: int, lie: dict[str, Any], refusal: tuple[int, str]
) -> None:
    """A valid one beside it is not stored either. The job keeps running."""
    job_id = person.submit()
    job = worker.claim()
    outputs = [inline("map.json", b"{}"), inline(name, bytes(size)) | lie]
    assert code_of(worker.complete(job, outputs)) == refusal
    assert storage_files(api, job_id) == [input_file()]
    assert person.look(job_id)["state"] == "running"


def test_uploaded_results_must_exist_beside_inline_ones(person: Person, worker: Worker) -> None:
    """An inline output does not replace the check of the others."""
    person.submit()
    job = worker.claim()
    outputs = [inline("map.pgw", b"1"), output_of("map.png", b"never uploaded")]
    assert code_of(worker.complete(job, outputs)) == (422, "output_mismatch")


async def test_small_objects_appear_whole_and_survive_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is synced before its rename, and its name afterwards."""
    storage = LocalStorage(tmp_path, UrlSigner(bytes(32), time.time))
    storage.prepare()
    synced: list[str] = []

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(str(path.relative_to(tmp_path)))
        assert list(tmp_path.glob("jobs/a/outputs/1/*")) == [] or path.is_dir(), (
            "it had its name before it was on the disk"
        )

    monkeypatch.setattr(os, "fsync", note)
    await storage.put_small({"jobs/a/outputs/1/x": b"1"})
    assert (tmp_path / "jobs/a/outputs/1/x").read_bytes() == b"1"
    assert [place.split("/")[0] for place in synced] == [".incoming", "jobs"]
    assert synced[1] == "jobs/a/outputs/1"
    assert unfinished_uploads(tmp_path) == []


async def test_all_small_results_of_a_job_take_two_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file has them, and each is found by its own key."""
    storage = LocalStorage(tmp_path, UrlSigner(bytes(32), time.time))
    storage.prepare()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    objects = {f"jobs/a/outputs/1/{number}/map é.json": str(number).encode() for number in range(6)}
    await storage.put_small(objects)
    assert len(synced) == 2
    infos = await storage.stat(list(objects))
    digests = [hashlib.sha256(content).hexdigest() for content in objects.values()]
    assert [info and info.sha256 for info in infos] == digests
    assert await storage.stat(["jobs/a/outputs/1/7/map é.json", "jobs/a/outputs/2/0/map é.json"]) == [None, None]


async def test_two_reports_of_a_lease_keep_their_results_apart(tmp_path: Path) -> None:
    """The report that wins may be either, so the later one removes nothing of the earlier."""
    storage = LocalStorage(tmp_path, UrlSigner(bytes(32), time.time))
    storage.prepare()
    first, second = ({f"jobs/a/outputs/1/{sha}/{name}": b"1" for name in "xy"} for sha in ("1", "2"))
    await storage.put_small(first)
    await storage.put_small(second)
    assert all(await storage.stat([*first, *second]))


def test_a_small_result_is_served_in_ranges(person: Person, worker: Worker) -> None:
    """Map clients read tile archives by ranges, and by the ETag of their first answer."""
    job_id = person.submit()
    outputs = [inline("map.png", b"0123456789"), inline("map.pgw", b"1")]
    worker.complete(worker.claim(), outputs).raise_for_status()
    url = person.http.get(f"/api/geo-jobs/{job_id}/download/output").json()["outputs"][0]["url"]
    whole = get(url)
    part = get(url, headers={"Range": "bytes=2-4", "If-Range": whole.headers["ETag"]})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["Last-Modified"] == whole.headers["Last-Modified"]


def test_a_result_larger_than_its_slot_is_rejected_inline_and_uploaded(api: RunningApi, worker: Worker) -> None:
    """The task type's limit applies to inline and uploaded results."""
    rule = {"suffix": ".csv", "contentType": "text/csv", "maxBytes": 3}
    noise = {"name": "noise", "input": "none", "outputs": [rule], "timeoutSeconds": 30}
    admin = Person(api, "root", admin=True)
    admin.http.put("/api/task-types/noise", json=noise).raise_for_status()
    job_id = admin.create(taskType="noise")["id"]
    job = worker.claim(taskTypes=["noise"])
    assert code_of(worker.complete(job, [inline("noise.csv", b"1234")])) == (413, "too_large")
    assert storage_files(api, job_id) == []
    worker.complete(job, [inline("noise.csv", b"123")]).raise_for_status()
    assert storage_files(api, job_id) == [output_file(b"123", "noise.csv")]


def test_a_stale_workers_results_are_not_even_stored(api: RunningApi, person: Person, worker: Worker) -> None:
    """Its report is rejected, and the winner's results do not change."""
    job_id = person.submit()
    stale = worker.claim()
    worker.heartbeat(stale)
    expire_leases(api.settings.conninfo or "")
    wait_until(lambda: person.look(job_id)["state"] == "queued", "the job to be queued again")
    fresh = worker.claim()
    assert code_of(worker.complete(stale, [inline("map.png", b"stale")])) == (409, "lease_lost")
    worker.complete(fresh, [inline("map.png", b"fresh")]).raise_for_status()
    assert code_of(worker.complete(stale, [inline("map.png", b"stale")])) == (409, "lease_lost")
    assert served(person, job_id) == {"map.png": b"fresh"}
    assert storage_files(api, job_id) == [input_file(), output_file(b"fresh", lease_seq=2)]


def test_a_repeated_report_is_the_same_with_and_without_its_results(person: Person, worker: Worker) -> None:
    """Their digests are equal. Other content under the same names is a conflict and changes nothing."""
    job_id = person.submit()
    job = worker.claim()
    worker.complete(job, [inline("map.png", b"picture")]).raise_for_status()
    for told in (inline("map.png", b"picture"), output_of("map.png", b"picture")):
        assert worker.complete(job, [told]).json() == {"state": "succeeded", "replayed": True}
    assert code_of(worker.complete(job, [inline("map.png", b"another")])) == (409, "already_finalized")
    assert served(person, job_id) == {"map.png": b"picture"}
