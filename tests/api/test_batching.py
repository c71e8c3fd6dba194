"""What waits together shares a statement: how batches are made, and what one ask can do to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg
import pytest

from geo_jobs_api.claims.batching import Batcher


class Database:
    """Answers n with 10·n, once its gate is open; notes the batches, and how many were under way at once."""

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
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_while_two_statements_are_under_way_shares_the_next_ones() -> None:
    """Never more than two at once; nobody's answer is another's."""
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
    """Odd and even do not mix; what does not fit waits for the next; what is too heavy for any goes alone."""
    database = Database()
    database.gate.set()
    batcher = Batcher("test", database.run, max_weight=10, weight=lambda ask: ask, key=lambda ask: ask % 2)
    await asyncio.gather(*(batcher.run(ask) for ask in (2, 1, 4, 6, 3, 40)))
    assert sorted(database.batches) == [[1, 3], [2, 4], [6], [40]]


async def test_what_cannot_be_stored_of_one_is_not_the_others_fault() -> None:
    """The batch is split; only the culprit gets the error."""
    database = Database()
    database.gate.set()
    batcher = Batcher("test", database.run, max_weight=100)
    answers = await asyncio.gather(*(batcher.run(ask) for ask in (1, 13, 2)), return_exceptions=True)
    assert answers[0] == 10
    assert isinstance(answers[1], psycopg.errors.CheckViolation)
    assert answers[2] == 20


async def test_an_outage_is_told_to_all_who_asked_and_the_next_are_served() -> None:
    """Nobody waits for ever, and nothing is asked twice by itself."""
    database = Database()
    database.gate.set()
    batcher = Batcher("test", database.run, max_weight=100)
    answers = await asyncio.gather(*(batcher.run(ask) for ask in (1, 99)), return_exceptions=True)
    assert all(isinstance(answer, psycopg.OperationalError) for answer in answers)
    assert await batcher.run(5) == 50
    assert database.batches == [[1, 99], [5]]


@pytest.mark.parametrize(("deadlocks", "is_answered"), [(2, True), (3, False)])
async def test_the_victim_of_a_deadlock_is_tried_again_but_not_for_ever(deadlocks: int, is_answered: bool) -> None:
    """Twice is bad luck; three times is told."""
    database = Database()
    database.gate.set()
    database.deadlocks = deadlocks
    batcher = Batcher("test", database.run, max_weight=100)
    (answer,) = await asyncio.gather(batcher.run(1), return_exceptions=True)
    assert (answer == 10) is is_answered
    assert isinstance(answer, psycopg.errors.DeadlockDetected) is not is_answered


async def test_who_gives_up_while_waiting_is_not_asked_for() -> None:
    """A cancelled ask that has not begun costs the database nothing."""
    database = Database()
    batcher = Batcher("test", database.run, max_weight=1)
    asks = [asyncio.ensure_future(batcher.run(number)) for number in range(4)]
    await settle()
    asks[3].cancel()
    database.gate.set()
    assert await asyncio.gather(*asks[:3]) == [0, 10, 20]
    assert [3] not in database.batches
