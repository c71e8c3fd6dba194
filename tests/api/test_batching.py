"""Batches of concurrent requests, and the isolation of requests in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg
import pytest

from geo_jobs_api.claims.batching import Batcher


class Database:
    """Returns 10·n for n once its gate is open. Records batches and concurrency."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.batches: list[list[int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.deadlocks = 0

    async def run(self, asks: Sequence[int]) -> list[int]:
        self.batches.append(list(asks))
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            await self.gate.wait()
            if self.deadlocks:
                self.deadlocks -= 1
                raise psycopg.errors.DeadlockDetected
            if 13 in asks:
                raise psycopg.errors.CheckViolation
            if 99 in asks:
                raise psycopg.OperationalError("away")
            return [10 * ask for ask in asks]
        finally:
            self.under_way -= 1


async def settle() -> None:
    """Let all ready tasks run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_during_two_statements_share_the_next_ones() -> None:
    """At most two statements run concurrently, and each request gets its own result."""
    database = Database()
    batcher = Batcher("test", database.run, max_weight=100)
    asks = [asyncio.ensure_future(batcher.run(1))]
    await settle()
    asks.append(asyncio.ensure_future(batcher.run(2)))
    await settle()
    asks += [asyncio.ensure_future(batcher.run(number)) for number in range(3, 9)]
    await settle()
    assert database.batches == [[1], [2]]
    database.gate.set()
    assert await asyncio.gather(*asks) == [10 * number for number in range(1, 9)]
    assert database.batches == [[1], [2], [3, 4, 5, 6, 7, 8]]
    assert database.most_under_way == 2


async def test_a_batch_is_of_one_kind_and_no_heavier_than_allowed() -> None:
    """Odd and even requests do not mix. An excess request waits for the next batch, and a too heavy one goes alone."""
    database = Database()
    database.gate.set()
    batcher = Batcher("test", database.run, max_weight=10, weight=lambda ask: ask, key=lambda ask: ask % 2)
    await asyncio.gather(*(batcher.run(ask) for ask in (2, 1, 4, 6, 3, 40)))
    assert sorted(database.batches) == [[1, 3], [2, 4], [6], [40]]


async def test_a_request_that_cannot_be_stored_does_not_fail_the_others() -> None:
    """The batch is split, and only the faulty request gets the error."""
    database = Database()
    database.gate.set()
    batcher = Batcher("test", database.run, max_weight=100)
    answers = await asyncio.gather(*(batcher.run(ask) for ask in (1, 13, 2)), return_exceptions=True)
    assert answers[0] == 10
    assert isinstance(answers[1], psycopg.errors.CheckViolation)
    assert answers[2] == 20


async def test_an_outage_fails_all_its_requests_and_the_next_are_served() -> None:
    """No request hangs, and none is repeated automatically."""
    database = Database()
    database.gate.set()
    batcher = Batcher("test", database.run, max_weight=100)
    answers = await asyncio.gather(*(batcher.run(ask) for ask in (1, 99)), return_exceptions=True)
    assert all(isinstance(answer, psycopg.OperationalError) for answer in answers)
    assert await batcher.run(5) == 50
    assert database.batches == [[1, 99], [5]]


@pytest.mark.parametrize(("deadlocks", "is_answered"), [(2, True), (3, False)])
async def test_the_victim_of_a_deadlock_is_retried_but_not_forever(deadlocks: int, is_answered: bool) -> None:
    """Two deadlocks are retried, the third one is reported."""
    database = Database()
    database.gate.set()
    database.deadlocks = deadlocks
    batcher = Batcher("test", database.run, max_weight=100)
    (answer,) = await asyncio.gather(batcher.run(1), return_exceptions=True)
    assert (answer == 10) is is_answered
    assert isinstance(answer, psycopg.errors.DeadlockDetected) is not is_answered


async def test_a_request_cancelled_while_waiting_is_not_queried() -> None:
    """A request that is cancelled before its statement costs no query."""
    database = Database()
    batcher = Batcher("test", database.run, max_weight=1)
    asks = [asyncio.ensure_future(batcher.run(number)) for number in range(4)]
    await settle()
    asks[3].cancel()
    database.gate.set()
    assert await asyncio.gather(*asks[:3]) == [0, 10, 20]
    assert [3] not in database.batches
