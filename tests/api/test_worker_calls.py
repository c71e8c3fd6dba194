"""The direct path of worker calls: the same meaning as the router's, and the router for the rest."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter, ValidationError

from geo_jobs_api.http import middleware
from geo_jobs_api.http.connections import _JoinedWrites
from geo_jobs_api.queue.worker_schemas import ClaimJobs, CompleteJob, FailJob, Heartbeat, ReportProgress
from tests.support.api import WORKER_TOKEN, RunningApi
from tests.support.clients import Person, Worker, code_of

ID = str(UUID(int=7))
CLAIM = f'"claimId":"{ID}","workerId":"w","workerName":"w","taskTypes":["t"]'
OUTPUT = f'"name":"a.png","sizeBytes":3,"sha256":"{"0" * 64}","contentType":"image/png"'
DEEP = '{"a":' * 150 + "1" + "}" * 150
# Values that readers of JSON and of Python objects may take differently.
ODD = [
    "1",
    "1.0",
    "-0",
    "1e400",
    "NaN",
    "-Infinity",
    "9" * 30,
    "9" * 5000,
    "1" + "0" * 400,
    "0.1e1",
    "01",
    "1.",
    "true",
]
ODD += ["null", '""', '"1"', '"\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"', "[]", "{}", "[1]", '{"a":1,"a":2}', DEEP]
ODD += ['"internal"', f'"{ID}"', f'"{ID.replace("-", "")}"', f'"urn:uuid:{ID}"', '"QQ=="', '"QQ"', '"Q\\n=="']
TEMPLATES = [
    (ClaimJobs, '{CLAIM,"maxJobs":VALUE}'),
    (ClaimJobs, '{CLAIM,"waitSeconds":VALUE,"waitSeconds":2}'),
    (ClaimJobs, '{CLAIM,"waitSeconds":2,"waitSeconds":VALUE}'),
    (ClaimJobs, '{CLAIM,"workerVersion":VALUE}'),
    (ClaimJobs, '{CLAIM,"claimId":VALUE}'),
    (ClaimJobs, '{CLAIM,"capabilities":{"maxFileSize":VALUE},"unknown":VALUE}'),
    (ClaimJobs, '{CLAIM,"capabilities":{"sourceHosts":VALUE}}'),
    (ClaimJobs, '{CLAIM,"trouble":[{"code":VALUE,"message":VALUE}]}'),
    (Heartbeat, '{"stats":VALUE,"waitSeconds":1}'),
    (Heartbeat, '{"stats":{"a":VALUE},"waitSeconds":1}'),
    (Heartbeat, '{"waitSeconds":VALUE}'),
    (Heartbeat, "VALUE"),
    (ReportProgress, '{"percent":VALUE}'),
    (ReportProgress, '{"percent":1,"stage":VALUE,"message":VALUE}'),
    (CompleteJob, '{"outputs":[],"metadata":VALUE}'),
    (CompleteJob, '{"outputs":[],"metadata":{"a":VALUE}}'),
    (CompleteJob, '{"timings":{"a":VALUE}}'),
    (CompleteJob, '{"source":{"etag":VALUE,"sizeBytes":VALUE}}'),
    (CompleteJob, '{"source":{"unchanged":VALUE,"sizeBytes":VALUE}}'),
    (CompleteJob, '{"outputs":[{OUTPUT,"content":VALUE}]}'),
    (CompleteJob, '{"outputs":[{OUTPUT,"sizeBytes":VALUE}]}'),
    (FailJob, '{"error":{"class":VALUE,"code":"c"}}'),
    (FailJob, '{"error":{"class":"internal","code":VALUE,"message":VALUE}}'),
    (FailJob, '{"error":{"class":"internal","code":"c","detail":VALUE}}'),
    (FailJob, '{"error":{"class":"internal","code":"c","detail":{"a":VALUE}},"retryAfterSeconds":VALUE}'),
]


@pytest.mark.parametrize(("model", "template"), TEMPLATES)
def test_the_direct_path_accepts_only_what_the_router_accepts_with_the_same_meaning(model: Any, template: str) -> None:
    """It reads bytes, the router reads Python objects. Bodies that it does not accept go on to the router."""
    adapter, accepted = TypeAdapter(model), 0
    for value in ODD:
        body = template.replace("CLAIM", CLAIM).replace("OUTPUT", OUTPUT).replace("VALUE", value).encode()
        try:
            direct = adapter.validator.validate_json(body)
        except ValidationError:
            continue
        accepted += 1
        routed = adapter.validator.validate_python(json.loads(body))
        assert repr(direct) == repr(routed), body
        assert direct.model_fields_set == routed.model_fields_set
    assert accepted


def test_valid_calls_never_reach_the_router_and_invalid_ones_do(
    api: RunningApi, person: Person, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without routes, the five calls work, and a conflict is answered. What needs an explanation is not found."""
    for _ in range(2):
        person.submit()
    monkeypatch.setattr(api.app.router, "routes", [])
    first, second = worker.claim_all(maxJobs=2)
    assert worker.heartbeat(first)["cancel"] is None
    assert worker.call("progress", first, {"percent": 5}).status_code == 200
    assert worker.complete(first, []).json() == {"state": "succeeded", "replayed": False}
    assert worker.fail(second, "internal").json()["state"] == "queued"
    assert code_of(worker.call("heartbeat", first)) == (409, "already_finalized")
    assert worker.http.post("/claim", json=worker.claim_request(taskTypes=["none"])).status_code == 204
    for answer in (
        worker.call("progress", second, {"percent": "5"}),
        worker.call("progress", {**second, "leaseToken": "1." + "x" * 200}, {"percent": 5}),
        worker.call("progress", {**second, "leaseToken": "x"}, {"percent": 5}),
        worker.call("progress", {**second, "id": "x"}, {"percent": 5}),
        worker.http.patch(f"/{ID}/heartbeat", content=b"{}"),
    ):
        assert code_of(answer) == (404, "not_found")


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (["Content-Length: 100"], b"{", b" 408 "),
        (["Transfer-Encoding: chunked"], b"%x\r\n" % (middleware.MAX_JSON_BYTES + 1), b" 413 "),
        ([f"Content-Length: {middleware.MAX_JSON_BYTES + 1}"], b"", b" 413 "),
        (["Authorization: Worker twice", "Content-Length: 2"], b"{}", b" 400 "),
    ],
    ids=["slow", "long", "declared long", "ambiguous"],
)
def test_the_direct_path_keeps_the_limits_of_requests(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch, headers: list[str], body: bytes, expected: bytes
) -> None:
    """Slow, long and ambiguous requests are refused as elsewhere."""
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.3)
    host, port = api.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        lines = [
            f"PATCH /api/internal/geo-jobs/{ID}/complete HTTP/1.1",
            "Host: a",
            f"Authorization: Worker {WORKER_TOKEN}",
        ]
        client.sendall("\r\n".join([*lines, "Lease-Token: 1.x", *headers]).encode() + b"\r\n\r\n" + body)
        if expected == b" 413 " and body:
            client.sendall(b" " * (middleware.MAX_JSON_BYTES + 1))
        assert expected in client.recv(1000).split(b"\r\n")[0]


def test_direct_calls_are_counted_by_their_routes(api: RunningApi, person: Person, worker: Worker) -> None:
    """Ids create no series, as in requests through the router."""
    person.submit()
    worker.heartbeat(worker.claim())
    text = api.client().get("/metrics").text
    assert 'route="/api/internal/geo-jobs/{job_id}/heartbeat",status="200"' in text
    assert 'route="/api/internal/geo-jobs/claim",status="200"' in text
    assert ID not in text


class Sent(asyncio.Transport):
    """Records writes and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.writes.append(b"closed")


async def test_a_head_goes_out_with_its_body_and_never_waits_for_one() -> None:
    """One write for both. Without a body, in the next round of the loop, or before the end of the connection."""
    sent = Sent()
    joined = _JoinedWrites(sent)
    joined.write(b"head ")
    joined.write(b"body")
    joined.write(b"a stream")
    await asyncio.sleep(0)
    joined.write(b"last")
    joined.close()
    await asyncio.sleep(0)
    assert sent.writes == [b"head body", b"a stream", b"last", b"closed"]
