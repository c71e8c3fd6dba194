"""The worker's reaction to each answer of the API, over a real socket."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from geoprocessing_worker.errors import (
    ErrorClass,
    JobError,
    LeaseLost,
    Rejected,
    TokenRefused,
    Unavailable,
    WorkerError,
)
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import ClaimRequest, Completion, Failure, Progress
from geoprocessing_worker.wire.retry import Policy
from tests.support.scripted_api import ScriptedApi, answer, problem

RENEWED = {"leaseExpiresAt": "2030-01-01T00:00:00Z", "leaseSeconds": 60, "cancel": None, "fromTheFuture": 1}


@dataclass
class Held:
    seconds: float = 60
    job_id: str = "0190"
    token: SecretStr = field(default_factory=lambda: SecretStr("lease-secret"))

    def remaining(self) -> float:
        return self.seconds


@pytest.fixture
async def client(server: ScriptedApi) -> AsyncIterator[JobApi]:
    async with httpx.AsyncClient(base_url=server.base_url) as http:
        yield JobApi(http, SecretStr("worker-secret"))


def claim(wait_seconds: float = 0) -> ClaimRequest:
    return ClaimRequest(
        claim_id=str(uuid.uuid4()),
        worker_id="w",
        worker_name="n",
        task_types=("geotiff_to_png",),
        max_jobs=1,
        wait_seconds=wait_seconds,
    )


async def test_a_call_on_a_job_carries_both_secrets_in_headers_and_camel_case_in_the_body(
    server: ScriptedApi, client: JobApi
) -> None:
    server.on("progress", answer(RENEWED))
    got = await client.progress(Held(), Progress(percent=5, stage="download", message="x"))
    assert got.lease_seconds == 60
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("PATCH", "/api/internal/geo-jobs/0190/progress")
    assert asked.headers["authorization"] == "Worker worker-secret"
    assert asked.headers["lease-token"] == "lease-secret"
    assert asked.json == {"percent": 5.0, "stage": "download", "message": "x"}


async def test_a_long_report_is_given_the_time_that_a_bad_link_takes(server: ScriptedApi, client: JobApi) -> None:
    """Ten kilobytes a second beside the try's own time, or one that is cut off would be cut off again for ever."""

    async def slow(request: Request) -> Response:
        await asyncio.sleep(0.3)
        return answer({"state": "succeeded"})

    server.on("complete", slow)
    hasty = Policy(try_timeout=0.05, wait_initial=0, wait_max=0, patience=1e-6)
    short = Completion(outputs=(), metadata={}, timings={})
    with pytest.raises(Unavailable):
        await client.complete(Held(), short, policy=hasty)
    long = short.model_copy(update={"metadata": {"a": "b" * 50_000}})
    assert (await client.complete(Held(), long, policy=hasty)).state == "succeeded"


async def test_a_claim_that_found_nothing_is_none(server: ScriptedApi, client: JobApi) -> None:
    server.on("claim", answer(status=204))
    assert await client.claim(claim()) is None


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "token_invalid", TokenRefused),
        (403, "forbidden", TokenRefused),
        (404, "job_not_found", LeaseLost),
        (409, "lease_lost", LeaseLost),
        (409, "job_cancelled", LeaseLost),
        (409, "already_finalized", LeaseLost),
        (413, "too_large", Rejected),
        (422, "output_mismatch", Rejected),
        (400, "bad_request", Rejected),
    ],
)
async def test_an_answer_that_is_final_is_raised_at_once_with_the_servers_words(
    server: ScriptedApi, client: JobApi, status: int, code: str, error: type[WorkerError]
) -> None:
    server.on("heartbeat", problem(status, code))
    with pytest.raises(error, match=f"{code}: in the server's words"):
        await client.heartbeat(Held())
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "first",
    [
        problem(503, "unavailable", Retry_After="0"),
        problem(429, "rate_limited", Retry_After="0"),
        problem(500, "internal"),
        answer("a captive portal's greeting"),
        Response("<html>not here</html>", 404, media_type="text/html"),
    ],
    ids=["503", "429", "500", "unreadable 200", "a proxy's 404"],
)
async def test_a_result_is_sent_again_until_the_api_itself_has_answered(
    server: ScriptedApi, client: JobApi, first: Response
) -> None:
    server.on("complete", first, answer({"state": "succeeded", "replayed": True}))
    got = await client.complete(Held(), Completion(outputs=(), metadata={}, timings={}))
    assert got.replayed
    assert [asked.body for asked in server.asked[:1]] == [asked.body for asked in server.asked[1:]]


async def test_a_lost_claim_reply_is_asked_for_again_with_the_same_claim_id(
    server: ScriptedApi, client: JobApi
) -> None:
    server.on("claim", answer("garbage"), answer({"serverTime": "2030-01-01T00:00:00Z", "jobs": []}))
    assert await client.claim(claim()) is not None
    first, second = server.asked
    assert first.json["claimId"] == second.json["claimId"]


async def test_nothing_is_sent_for_a_job_whose_lease_has_run_out(server: ScriptedApi, client: JobApi) -> None:
    server.on("fail", answer({"state": "failed"}))
    with pytest.raises(LeaseLost, match="lease_expired"):
        await client.fail(Held(seconds=0), Failure.of(JobError("x", "y", ErrorClass.INTERNAL)))
    assert server.asked == []


async def test_retries_end_with_the_lease(server: ScriptedApi, client: JobApi) -> None:
    held = Held()

    async def last_gasp(request: Request) -> Response:
        held.seconds = 0
        return problem(500, "internal")

    server.on("complete", last_gasp)
    with pytest.raises(Unavailable):
        await client.complete(held, Completion(outputs=(), metadata={}, timings={}))
    assert len(server.asked) == 1


async def test_an_api_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    held = Held()

    def remaining() -> float:
        held.seconds -= 30
        return held.seconds

    held.remaining = remaining  # type: ignore[method-assign]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_tcp_port}") as http:
        with pytest.raises((Unavailable, LeaseLost)):
            await asyncio.wait_for(JobApi(http, SecretStr("t")).heartbeat(held), 10)


async def test_a_refusal_does_not_throw_a_finished_result_away(server: ScriptedApi, client: JobApi) -> None:
    firewall = Response("<html>blocked</html>", 403, media_type="text/html")
    server.on("complete", firewall, problem(401, "token_invalid"), answer({"state": "succeeded"}))
    assert (await client.complete(Held(), Completion(outputs=(), metadata={}, timings={}))).state == "succeeded"


@pytest.mark.parametrize(
    "strange",
    [
        Response("[" * 200_000, 500, media_type="application/json"),
        problem(503, "unavailable", Retry_After="Mon, 01 Jan 99999999999999999999 00:00:00 GMT"),
    ],
    ids=["deep", "a year that is none"],
)
async def test_no_answer_is_so_strange_that_it_is_more_than_unavailable(
    server: ScriptedApi, client: JobApi, strange: Response
) -> None:
    server.on("heartbeat", strange, answer(RENEWED))
    assert (await client.heartbeat(Held())).lease_seconds == 60


def test_a_failure_is_cut_to_the_limits_of_the_api() -> None:
    detail = {"quote": "\ud800", "long": "x" * 10**6}
    told = Failure.of(JobError("c" * 300, "NUL \0 and \ud800" * 500, ErrorClass.INTERNAL, detail))
    assert len(told.model_dump_json()) < 20_000
    assert "\0" not in told.error.message
    assert len(told.error.code) == 100
