"""An operator's day from docs/OPERATIONS.md, on one running service."""

import functools
import http.server
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.clients import unfinished_uploads
from tests.support.database import DatabaseServer
from tests.support.processes import Programs, programs
from tests.support.rasters import Tiff
from tests.support.waiting import wait_until

NO_MORE_THAN = 200_000  # largest file of the API in bytes while its disk is "full"


@pytest.fixture(scope="module")
def service(postgres: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """An API that allows sources on loopback, with a worker."""
    folder = tmp_path_factory.mktemp("service")
    with postgres.clone() as url, programs(url, folder, SOURCE_HOSTS="127.0.0.1") as running:
        running.worker("day", SOURCE_HOSTS="127.0.0.1")
        yield running


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def site(small_map: Path) -> Iterator[str]:
    """The address of a map on a web server that sends modification times."""
    handler = functools.partial(_Quiet, directory=str(small_map.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{small_map.name}"
        server.shutdown()


def test_a_new_api_removes_unfinished_uploads_of_a_killed_one(service: Programs) -> None:
    """Within seconds and not after a day, since the new process sees that the old one is dead."""
    person = service.person()
    body = {"taskType": "geotiff_to_png", "inputPayload": {}}
    job_id = str(person.post("/api/geo-jobs", json=body).raise_for_status().json()["id"])
    wanted = {"fileName": "large.tif", "fileSize": 9_000_000, "fileType": "image/tiff"}
    url = person.post(f"/api/geo-jobs/{job_id}/upload", json=wanted).raise_for_status().json()["uploadUrl"]
    place = httpx.URL(url)
    objects = service.folder / "api" / "data" / "objects"
    with socket.create_connection((place.host, place.port or 80), 10) as half:
        head = b"PUT %b HTTP/1.1\r\nHost: %b\r\nContent-Length: 9000000\r\n\r\n" % (place.raw_path, place.netloc)
        half.sendall(head + bytes(3_000_000))
        wait_until(lambda: len(unfinished_uploads(objects)) == 1, "half an upload", 30)
        service.kill_api()
    assert len(unfinished_uploads(objects)) == 1
    service.start_api()
    wait_until(lambda: unfinished_uploads(objects) == [], "the rest of the dead process to go", 30)


def test_an_unchanged_source_of_a_schedule_is_not_rendered_again(service: Programs, site: str) -> None:
    """The second job's conditional request uses the validators of the first one's answer. Real programs."""
    person = service.person()
    template = {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": site}}
    wanted = {"name": "map", "at": "2099-01-01T06:00:00Z", "skipUnchanged": True, "template": template}
    schedule = "/api/schedules/" + person.post("/api/schedules", json=wanted).raise_for_status().json()["id"]
    by_hand = person.post(f"{schedule}/run").raise_for_status().json()
    jobs = [service.until_over(by_hand["jobId"])]
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    person.put(schedule, json=wanted | {"at": soon}).raise_for_status()

    def fires() -> list[dict[str, str]]:
        found: list[dict[str, str]] = person.get(f"{schedule}/fires").raise_for_status().json()["fires"]
        return found

    wait_until(lambda: len(fires()) == 2, "the schedule to fire", 30, pause=0.1)
    jobs += [service.until_over(fire["jobId"]) for fire in fires() if fire["jobId"] != by_hand["jobId"]]
    assert [job["state"] for job in jobs] == ["succeeded", "succeeded"], jobs
    outputs = [person.get(f"/api/geo-jobs/{job['id']}/download/output").json()["outputs"] for job in jobs]
    assert [len(each) for each in outputs] == [6, 0]
    assert jobs[1]["metadata"] == {"unchanged": True}


def refusals(person: httpx.Client) -> float:
    lines = person.get("/metrics").raise_for_status().text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'status="507"' in line and "_total{" in line)


def test_a_full_disk_refuses_uploads_and_costs_the_worker_no_result(service: Programs, tmp_path: Path) -> None:
    """While the API can write no long files, callers get 507. The worker retries and spends no attempt."""
    pixels = np.random.default_rng(3).integers(0, 255, (3, 300, 300), "uint8")
    large = Tiff(pixels).write(tmp_path / "large.tif")
    squeezed = {"compress": "jpeg", "jpeg_quality": 40, "photometric": "ycbcr"}
    small = Tiff(pixels, profile=squeezed).write(tmp_path / "small.tif")
    assert small.stat().st_size < NO_MORE_THAN
    person = service.person()
    body = {"taskType": "geotiff_to_png", "inputPayload": {}}
    waiting = str(person.post("/api/geo-jobs", json=body).raise_for_status().json()["id"])
    wanted = {"fileName": "large.tif", "fileSize": large.stat().st_size, "fileType": "image/tiff"}
    slot = person.post(f"/api/geo-jobs/{waiting}/upload", json=wanted).raise_for_status().json()
    before = resource.prlimit(service.api.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.api.pid, resource.RLIMIT_FSIZE, (NO_MORE_THAN, before[1]))
    try:
        refused = httpx.put(slot["uploadUrl"], content=large.read_bytes(), timeout=30)
        assert (refused.status_code, refused.json()["code"]) == (507, "storage_full")
        assert service.look(waiting)["state"] == "awaiting_upload"
        before_it = refusals(person)
        job_id = service.submit(small)
        wait_until(lambda: refusals(person) > before_it, "an upload of the worker to be refused", 60, pause=0.05)
    finally:
        resource.prlimit(service.api.pid, resource.RLIMIT_FSIZE, before)
    done = service.until_over(job_id)
    assert (done["state"], done["attempt"]) == ("succeeded", 1), done
    assert unfinished_uploads(service.folder / "api" / "data" / "objects") == []


def test_grep_error_finds_the_job_that_failed_for_good_and_no_other(
    service: Programs, small_map: Path, tmp_path: Path
) -> None:
    """README's two greps, on the log of a worker with one good and one bad job."""
    log = service.folder / "day" / "worker.log"
    (tmp_path / "page.tif").write_text("<html>")
    good, bad = service.submit(small_map), service.submit(tmp_path / "page.tif")
    assert [service.until_over(job)["state"] for job in (good, bad)] == ["succeeded", "failed"]
    wait_until(lambda: bad in grep("ERROR", log), "the failure to be logged", 10)
    errors = [line for line in grep("ERROR", log).splitlines() if good in line or bad in line]
    assert len(errors) == 1
    assert f"Job {bad} failed for good" in errors[0]
    completed = [line for line in grep("Job.*completed", log).splitlines() if good in line or bad in line]
    assert len(completed) == 1


def grep(pattern: str, file: Path) -> str:
    return subprocess.run(["grep", pattern, file], capture_output=True, text=True, timeout=10).stdout


def test_a_disabled_worker_stays_up_without_claims_until_sigterm(service: Programs, small_map: Path) -> None:
    """The job goes to the other worker. SIGTERM ends the disabled one with exit code 0."""
    disabled = service.worker("disabled", DISABLE_WORKERS="true")
    log = service.folder / "disabled" / "worker.log"
    wait_until(lambda: log.exists() and "worker_disabled" in log.read_text(), "it to say so", 30)
    assert service.until_over(service.submit(small_map))["state"] == "succeeded"
    assert disabled.poll() is None
    disabled.terminate()
    assert disabled.wait(20) == 0
    lines = log.read_text()
    assert "job_claimed" not in lines
    assert "worker_shutdown_complete" in lines
