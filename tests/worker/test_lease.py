"""The trust in a lease, and the end of the work with it."""

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from geoprocessing_worker.errors import CancelRequested, LeaseLost
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import ClaimedJob, LeaseAnswer, Progress
from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.support.wire import claimed_job, renewed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def keeper(server: ScriptedApi, http: httpx.AsyncClient, clock: Any = None, **kwargs: Any) -> LeaseKeeper:
    http.base_url = httpx.URL(server.base_url)
    lease = Lease(ClaimedJob.model_validate(claimed_job()), clock or Clock())
    return LeaseKeeper(JobApi(http, SecretStr("t")), lease, interval=0.05, clock=clock or Clock(), **kwargs)


def test_a_lease_is_trusted_from_when_its_renewal_was_sent_not_from_when_it_was_answered() -> None:
    clock = Clock()
    lease = Lease(ClaimedJob.model_validate(claimed_job()), clock)
    sent, clock.now = clock.now, clock.now + 25
    lease.renew(sent, LeaseAnswer.model_validate(renewed(seconds=60)))
    assert lease.remaining() == 35


def test_fresh_upload_addresses_replace_the_old_ones() -> None:
    lease = Lease(ClaimedJob.model_validate(claimed_job(uploads=["a.png", "a.json"])))
    fresh = {"name": "a.png", "url": "https://new", "maxBytes": 9}
    lease.renew(0, LeaseAnswer.model_validate(renewed() | {"uploads": [fresh]}))
    assert lease.uploads["a.png"].url == "https://new"
    assert "a.json" in lease.uploads


async def test_heartbeats_go_on_while_nothing_is_reported(server: ScriptedApi, http: httpx.AsyncClient) -> None:
    server.on("heartbeat", answer(renewed()))
    keeping = asyncio.create_task(keeper(server, http).keep())
    await server.until_asked("heartbeat", 2)
    keeping.cancel()


async def test_a_heartbeat_asks_to_be_held_open_until_the_next_is_due_but_not_while_a_report_is_sent(
    server: ScriptedApi, http: httpx.AsyncClient
) -> None:
    server.on("heartbeat", answer(renewed()))
    kept = keeper(server, http)
    keeping = asyncio.create_task(kept.keep())
    await server.until_asked("heartbeat", 2)
    kept.finish()
    seen = len(server.calls("heartbeat"))
    await server.until_asked("heartbeat", seen + 3)
    keeping.cancel()
    bodies = [asked.json for asked in server.calls("heartbeat")]
    assert bodies[0] == {"waitSeconds": 0.05}
    assert bodies[-1] == {}


def test_of_two_answers_that_overtake_each_other_the_later_sent_one_counts() -> None:
    clock = Clock()
    lease = Lease(ClaimedJob.model_validate(claimed_job()), clock)
    lease.renew(clock.now + 5, LeaseAnswer.model_validate(renewed(seconds=60)))
    lease.renew(clock.now, LeaseAnswer.model_validate(renewed(seconds=60)))
    assert lease.remaining() == 65


async def test_many_reports_at_once_become_one_call_with_the_latest(
    server: ScriptedApi, http: httpx.AsyncClient
) -> None:
    server.on("progress", answer(renewed()))
    server.on("heartbeat", answer(renewed()))
    kept = keeper(server, http)
    for percent in range(50):
        kept.report(Progress(percent=percent, stage="render", message=""))
    keeping = asyncio.create_task(kept.keep())
    await server.until_asked("progress", 1)
    await server.until_asked("heartbeat", 1)
    keeping.cancel()
    assert [asked.json["percent"] for asked in server.calls("progress")] == [49]


@pytest.mark.parametrize("turns", range(5))
async def test_keeping_ends_when_it_is_cancelled_together_with_news(
    server: ScriptedApi, http: httpx.AsyncClient, turns: int
) -> None:
    server.on("progress", answer(renewed()))
    server.on("heartbeat", answer(renewed()))
    kept = keeper(server, http)
    keeping = asyncio.create_task(kept.keep())
    for _ in range(3):
        await asyncio.sleep(0)  # let it begin to wait
    kept.report(Progress(percent=1, stage="download", message=""))
    # The cancellation comes at each of the event loop's turns between the news and their being noticed.
    for _ in range(turns):
        await asyncio.sleep(0)
    keeping.cancel()
    done, _ = await asyncio.wait([keeping], timeout=3)
    keeping.cancel()
    assert done


async def test_a_cancel_order_in_an_answer_stops_the_work(server: ScriptedApi, http: httpx.AsyncClient) -> None:
    server.on("heartbeat", answer(renewed() | {"cancel": {"reason": "not wanted", "graceSeconds": 5}}))
    with pytest.raises(CancelRequested, match="not wanted"):
        await keeper(server, http).keep()


async def test_a_conflict_stops_the_work(server: ScriptedApi, http: httpx.AsyncClient) -> None:
    server.on("heartbeat", problem(409, "lease_lost"))
    with pytest.raises(LeaseLost):
        await keeper(server, http).keep()


async def test_a_conflict_while_the_result_is_handed_in_is_left_to_that_call(
    server: ScriptedApi, http: httpx.AsyncClient
) -> None:
    server.on("heartbeat", problem(409, "already_finalized"))
    kept = keeper(server, http)
    kept.finish()
    keeping = asyncio.create_task(kept.keep())
    await server.until_asked("heartbeat", 1)
    done, _ = await asyncio.wait([keeping], timeout=0.2)
    assert not done
    keeping.cancel()


async def test_an_api_that_hangs_past_the_lease_stops_the_work_at_the_leases_end(
    server: ScriptedApi, http: httpx.AsyncClient
) -> None:
    async def hang(request: Request) -> Response:
        await asyncio.sleep(30)
        return answer(renewed())

    server.on("heartbeat", hang)
    http.base_url = httpx.URL(server.base_url)
    lease = Lease(ClaimedJob.model_validate(claimed_job(lease_seconds=0.4)))
    async with asyncio.timeout(3):
        with pytest.raises(LeaseLost, match="lease_expired"):
            await LeaseKeeper(JobApi(http, SecretStr("t")), lease, interval=0.01).keep()


async def test_a_worker_that_slept_past_its_lease_sends_nothing_more(
    server: ScriptedApi, http: httpx.AsyncClient
) -> None:
    clock = Clock()
    kept = keeper(server, http, clock)
    clock.now += 3600
    with pytest.raises(LeaseLost, match="lease_expired"):
        await kept.keep()
    assert server.asked == []
