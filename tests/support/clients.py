"""Plain HTTP clients for tests: a caller that submits files, and a worker that can misbehave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
from psycopg.rows import DictRow, dict_row

from tests.support.api import NO_TLS, RunningApi, bearer, worker_header

TIFF = b"II*\0" + bytes(96)

get = partial(httpx.get, verify=NO_TLS, timeout=30)
head = partial(httpx.head, verify=NO_TLS, timeout=30)
put = partial(httpx.put, verify=NO_TLS, timeout=30)


def rows(database_url: str, statement: str, *parameters: object) -> list[DictRow]:
    """Run a statement behind the API's back. Return its rows, if any."""
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def expire_leases(database_url: str) -> None:
    """Expire all leases now, like those of silent workers."""
    rows(database_url, "UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE state = 'running'")


class Person:
    """A caller with a token."""

    def __init__(self, api: RunningApi, subject: str = "ada", *, admin: bool = False) -> None:
        self.http = api.client(headers=bearer(subject, admin=admin))

    def create(self, payload: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """Create a job that waits for its file."""
        body = {"taskType": "geotiff_to_png", "inputPayload": dict(payload or {})} | fields
        job: dict[str, Any] = self.http.post("/api/geo-jobs", json=body).raise_for_status().json()
        return job

    def upload_url(self, job_id: str, file_name: str = "map.tif", size: int = len(TIFF)) -> str:
        """Request an upload URL."""
        body = {"fileName": file_name, "fileSize": size, "fileType": "image/tiff"}
        answer = self.http.post(f"/api/geo-jobs/{job_id}/upload", json=body).raise_for_status()
        return str(answer.json()["uploadUrl"])

    def submit(self, payload: Mapping[str, Any] | None = None, data: bytes = TIFF, **fields: Any) -> str:
        """Create a job and upload its file. Return the id of the queued job."""
        job_id = str(self.create(payload, **fields)["id"])
        put(self.upload_url(job_id, size=len(data)), content=data).raise_for_status()
        return job_id

    def look(self, job_id: str) -> dict[str, Any]:
        """Return the job."""
        job: dict[str, Any] = self.http.get(f"/api/geo-jobs/{job_id}").raise_for_status().json()
        return job

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return the job's events."""
        page = self.http.get(f"/api/geo-jobs/{job_id}/events", params={"limit": 1000}).raise_for_status().json()
        return list(page["events"])

    def event_types(self, job_id: str) -> list[str]:
        """Return the types of the job's events, in order."""
        return [event["type"] for event in self.events(job_id)]

    def cancel(self, job_id: str, reason: str | None = None) -> httpx.Response:
        """Request the cancellation of a job."""
        return self.http.post(f"/api/geo-jobs/{job_id}/cancel", json={"reason": reason})


class Worker:
    """A worker, one call at a time."""

    def __init__(self, api: RunningApi, name: str = "worker-1", timeout: float = 60) -> None:
        self.name = name
        self.id = f"{name}/{uuid4()}"
        self.http = api.client("/api/internal/geo-jobs", headers=worker_header(), timeout=timeout)

    def claim_request(self, **fields: Any) -> dict[str, Any]:
        """Return the body of a claim with a fresh id."""
        usual = {"claimId": str(uuid4()), "workerId": self.id, "workerName": self.name}
        return usual | {"taskTypes": ["geotiff_to_png"]} | fields

    def claim_all(self, **fields: Any) -> list[dict[str, Any]]:
        """Claim. Return the jobs, possibly none."""
        answer = self.http.post("/claim", json=self.claim_request(**fields)).raise_for_status()
        return [] if answer.status_code == 204 else list(answer.json()["jobs"])

    def claim(self, **fields: Any) -> dict[str, Any]:
        """Claim exactly one job."""
        jobs = self.claim_all(**fields)
        assert len(jobs) == 1, f"claimed {len(jobs)} jobs"
        return jobs[0]

    def call(self, verb: str, job: Mapping[str, Any], body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Send heartbeat, progress, complete or fail with the lease of a claimed job."""
        headers = {"Lease-Token": job["leaseToken"]}
        return self.http.patch(f"/{job['id']}/{verb}", json=dict(body or {}), headers=headers)

    def heartbeat(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Send a heartbeat that must succeed."""
        answer: dict[str, Any] = self.call("heartbeat", job).raise_for_status().json()
        return answer

    def upload(self, job: Mapping[str, Any], content: bytes = b"\x89PNG picture") -> list[dict[str, Any]]:
        """Upload the picture. Return the outputs for `complete`."""
        slot = next(slot for slot in job["uploads"] if slot["contentType"] == "image/png")
        put(slot["url"], content=content).raise_for_status()
        return [output_of(slot["name"], content)]

    def complete(self, job: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]] | None = None) -> httpx.Response:
        """Upload (unless outputs are given) and complete."""
        told = self.upload(job) if outputs is None else outputs
        return self.call(
            "complete", job, {"outputs": list(told), "metadata": {"crs": "EPSG:4326"}, "timings": {"render": 1.5}}
        )

    def fail(
        self, job: Mapping[str, Any], error_class: str, code: str = "went_wrong", detail: Any = None, **fields: Any
    ) -> httpx.Response:
        """Report a failure."""
        error = {"class": error_class, "code": code, "message": "It went wrong.", "detail": detail or {"n": 1}}
        return self.call("fail", job, {"error": error} | fields)


def output_of(name: str, content: bytes) -> dict[str, Any]:
    """Return a worker's entry for an output with this content."""
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "sizeBytes": len(content), "sha256": digest, "contentType": "image/png"}


def unfinished_uploads(objects: Path) -> list[str]:
    """Return the names of unfinished uploads in an object store's folder."""
    files = (path for path in (objects / ".incoming").rglob("*") if path.is_file())
    return [path.name for path in files if path.suffix != ".lock"]


def code_of(response: httpx.Response) -> tuple[int, str]:
    """Return status and code of a problem. AssertionError if the answer is malformed."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert body["status"] == response.status_code
    assert body["title"]
    assert body["detail"]
    return response.status_code, body["code"]


def input_file(data: bytes = TIFF, name: str = "map.tif") -> str:
    """Return the path of an uploaded file below its job's folder."""
    return f"input/{hashlib.sha256(data).hexdigest()}/{name}"


def output_file(data: bytes, name: str = "map.png", lease_seq: int = 1) -> str:
    """Return the path of an output below its job's folder."""
    return f"outputs/{lease_seq}/{hashlib.sha256(data).hexdigest()}/{name}"


def storage_files(api: RunningApi, job_id: str | UUID) -> list[str]:
    """Return the objects of a job as paths below its folder."""
    folder = api.settings.object_dir / "jobs" / str(job_id)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
