"""A small server with only the five endpoints, written from docs/PROTOCOL.md alone.

A POST of a file to `/queue` queues a job, outside of the protocol. Each fault makes the server break one rule.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "token-of-the-five-endpoints"
SUFFIXES = (".png", ".pgw", ".prj", ".png.aux.xml", "_thumb.png", ".json")
FIRST_LEASE, LEASE, HEARTBEAT, RETRY = 1.0, 1.5, 0.6, 0.5  # seconds


@dataclass
class Job:
    """One job, in memory."""

    id: str
    type: str
    name: str
    content: bytes
    payload: dict[str, Any]
    state: str = "queued"
    attempts: int = 0
    fence: int = 0
    not_before: float = 0.0
    ends: float = 0.0
    confirmed: bool = False
    cancel: str | None = None
    claim_id: str = ""
    secret: str = ""
    endings: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - an answer
    """A problem detail."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class FiveEndpoints:
    """The queue and its rules.

    Args:
        fault: the rule to break, by its name in the code below.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.jobs: dict[str, Job] = {}
        self.base_url = ""
        self.change = threading.Condition()

    def queue(self, task_type: str, name: str, content: bytes, payload: dict[str, Any] | None = None) -> str:
        with self.change:
            job = Job(str(uuid.uuid4()), task_type, name, content, payload or {})
            self.jobs[job.id] = job
            self.change.notify_all()
            return job.id

    def cancel(self, job_id: str, reason: str) -> None:
        with self.change:
            job = self.jobs[job_id]
            if job.state == "running":
                job.cancel = reason
            elif job.state == "queued":
                job.state = "cancelled"

    def claim(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + float(body.get("waitSeconds", 0))
        with self.change:
            while True:
                self._end_leases()
                again = [
                    job for job in self.jobs.values() if job.claim_id == body["claimId"] and job.state == "running"
                ]
                given = again if self.fault != "forgets_claims" and again else self._give(body)
                if given or (left := deadline - time.monotonic()) <= 0:
                    return [self._claimed(job) for job in given]
                self.change.wait(min(left, 0.05))

    def _give(self, body: dict[str, Any]) -> list[Job]:
        ready = [
            job
            for job in self.jobs.values()
            if (job.state == "queued" or (self.fault == "gives_twice" and job.state == "running"))
            and job.not_before <= time.monotonic()
            and (job.type in body["taskTypes"] or self.fault == "ignores_types")
        ]
        most = int(body.get("maxJobs", 1)) + (1 if self.fault == "gives_too_many" else 0)
        for job in ready[:most]:
            job.state, job.fence, job.claim_id = "running", job.fence + 1, body["claimId"]
            job.secret = uuid.uuid4().hex if self.fault != "one_lease_token" else job.id
            job.confirmed, job.ends = False, time.monotonic() + FIRST_LEASE
        return ready[:most]

    def _end_leases(self) -> None:
        for job in self.jobs.values():
            if job.state == "running" and job.ends < time.monotonic():
                job.state = "cancelled" if job.cancel else "queued"
                if self.fault == "unconfirmed_costs" and not job.confirmed:
                    job.attempts += 1

    def _claimed(self, job: Job) -> dict[str, Any]:
        stem = job.name.rpartition(".")[0]
        slots = [
            {
                "name": stem + suffix,
                "url": f"{self.base_url}/files/{job.id}/{job.fence}/{stem}{suffix}",
                "method": "PUT",
                "headers": {},
                "contentType": "application/octet-stream",
                "maxBytes": 10_000_000,
            }
            for suffix in SUFFIXES
        ]
        return {
            "id": job.id,
            "taskType": job.type,
            "priority": 0,
            "attempt": job.attempts + (0 if job.confirmed else 1),
            "maxAttempts": 5,
            "leaseToken": job.secret,
            "leaseSeconds": FIRST_LEASE,
            "leaseExpiresAt": "2030-01-01T00:00:00Z",
            "heartbeatSeconds": HEARTBEAT,
            "timeoutSeconds": None,
            "inputPayload": job.payload,
            "input": {
                "kind": "upload",
                "fileName": job.name,
                "sizeBytes": len(job.content),
                "contentType": "image/tiff",
                "downloadUrl": f"{self.base_url}/files/{job.id}/input",
            },
            "uploads": slots,
            "previousErrors": [],
        }

    def call(self, verb: str, job_id: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.change:
            self._end_leases()
            job = self.jobs.get(job_id)
            if job is None:
                raise Refused(404, "job_not_found")
            content = json.dumps([verb, {**body, "outputs": _digests(body)}], sort_keys=True)
            if token in job.endings:
                before, answer = job.endings[token]
                if verb in ("complete", "fail") and (before == content or self.fault == "replays_anything"):
                    return answer if self.fault == "denies_replays" else answer | {"replayed": True}
                raise Refused(409, "job_cancelled" if job.state == "cancelled" else "already_finalized")
            held = job.state == "running" and (job.secret == token or self.fault == "no_fence")
            if not held:
                raise Refused(409, "job_cancelled" if job.state == "cancelled" else "lease_lost")
            if verb in ("heartbeat", "progress"):
                return self._renew(job)
            answer = self._complete(job, body) if verb == "complete" else self._fail(job, body["error"]["class"])
            job.endings[token] = (content, answer)
            self.change.notify_all()
            return answer

    def _renew(self, job: Job) -> dict[str, Any]:
        if not job.confirmed:
            job.confirmed, job.attempts = True, job.attempts + 1
        job.ends = time.monotonic() + LEASE
        notice = {"reason": job.cancel, "graceSeconds": 5} if job.cancel and self.fault != "hides_cancelling" else None
        return {
            "leaseExpiresAt": "2030-01-01T00:00:00Z",
            "leaseSeconds": LEASE,
            "timeoutSeconds": None,
            "cancel": notice,
            "uploads": None,
        }

    def _complete(self, job: Job, body: dict[str, Any]) -> dict[str, Any]:
        for output in body["outputs"]:
            content = job.results.get(f"{job.fence}/{output['name']}")
            good = content is not None and (len(content), hashlib.sha256(content).hexdigest()) == (
                output["sizeBytes"],
                output["sha256"],
            )
            if not good and self.fault != "believes_digests":
                raise Refused(422, "output_mismatch")
        job.state = "succeeded"
        return {"state": "succeeded", "replayed": False}

    def _fail(self, job: Job, kind: str) -> dict[str, Any]:
        state = {"invalid_input": "failed", "cancelled": "cancelled"}.get(kind, "queued")
        if self.fault == "retries_everything" and state == "failed":
            state = "queued"
        wait = 0.0 if kind == "interrupted" else RETRY
        if kind == "interrupted" and self.fault != "interruption_costs":
            job.attempts -= 1
        job.state, job.not_before = ("cancelled" if job.cancel else state), time.monotonic() + wait
        job.claim_id = ""
        next_at = "2030-01-01T00:00:00Z" if job.state == "queued" else None
        return {"state": job.state, "nextAttemptAt": next_at, "replayed": False}


def _digests(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "content"} for one in body.get("outputs", [])]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    app: FiveEndpoints

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        if not (found := re.fullmatch(r"/files/([^/]+)/input", urlsplit(self.path).path)):
            return self._answer(404)
        content = self.app.jobs[found[1]].content
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if part and self.headers.get("If-Range") == etag and self.app.fault != "no_ranges":
            return self._answer(206, content[int(part[1]) :], "image/tiff", ETag=etag)
        return self._answer(200, content, "image/tiff", ETag=etag)

    def do_PUT(self) -> None:
        if found := re.fullmatch(r"/files/([^/]+)/(\d+/[^/]+)", urlsplit(self.path).path):
            self.app.jobs[found[1]].results[found[2]] = self._body()
            return self._answer(201)
        return self._answer(404)

    def do_POST(self) -> None:
        url, body = urlsplit(self.path), self._body()
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/queue":
            return self._answer(200, self.app.queue(query["type"], query["name"], body).encode())
        if url.path == "/cancel":
            self.app.cancel(query["id"], "a check")
            return self._answer(200)
        if url.path != "/api/internal/geo-jobs/claim":
            return self._answer(404)
        if not self._may_enter():
            return self._refuse(Refused(401, "token_invalid"))
        jobs = self.app.claim(json.loads(body))
        if not jobs:
            return self._answer(204) if self.app.fault != "answers_empty_lists" else self._say({"jobs": []})
        return self._say({"serverTime": "2030-01-01T00:00:00Z", "jobs": jobs})

    def do_PATCH(self) -> None:
        body = json.loads(self._body() or b"{}")
        found = re.fullmatch(r"/api/internal/geo-jobs/([^/]+)/(heartbeat|progress|complete|fail)", self.path)
        if not found:
            return self._answer(404)
        if not self._may_enter():
            return self._refuse(Refused(401, "token_invalid"))
        try:
            return self._say(self.app.call(found[2], found[1], self.headers.get("Lease-Token", ""), body))
        except Refused as refusal:
            return self._refuse(refusal)

    def _may_enter(self) -> bool:
        return self.headers.get("Authorization") == f"Worker {TOKEN}" or self.app.fault == "believes_anyone"

    def _say(self, body: dict[str, Any]) -> None:
        self._answer(200, json.dumps(body).encode())

    def _refuse(self, refusal: Refused) -> None:
        body = {"status": refusal.status, "code": refusal.code, "title": refusal.code, "detail": refusal.code}
        kind = "application/problem+json" if self.app.fault != "plain_errors" else "application/json"
        self._answer(refusal.status, json.dumps(body).encode(), kind)


@contextlib.contextmanager
def five_endpoints(fault: str = "") -> Iterator[FiveEndpoints]:
    """Yield the server on a port of loopback."""
    app = FiveEndpoints(fault)
    handler = type("Handler", (_Handler,), {"app": app})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        app.base_url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield app
        server.shutdown()
        thread.join()
