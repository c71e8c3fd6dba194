"""Concurrent requests share one statement: one-row claims do not scale with clients, batches do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar, cast

import psycopg

from geo_jobs_api.log import get_logger

_log = get_logger(__name__)

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

# More than two contend for the same rows. With two, one runs while the other is on its way.
STATEMENTS_IN_FLIGHT = 2
# A deadlock rolls its victim back. A third one in a row has another cause.
_DEADLOCK_TRIES = 3


def _one(_: object) -> int:
    return 1


class Batcher(Generic[RequestT, ResultT]):
    """Collects requests while statements are in flight, and sends them as one batch. For one event loop.

    Args:
        name: for the log.
        execute: returns the results of a batch in its order, with its effects committed.
        max_weight: of a batch. A heavier request goes alone.
        weight: of a request.
        key: only requests with equal keys share a statement.
    """

    def __init__(
        self,
        name: str,
        execute: Callable[[Sequence[RequestT]], Awaitable[Sequence[ResultT]]],
        *,
        max_weight: int,
        weight: Callable[[RequestT], int] = _one,
        key: Callable[[RequestT], Hashable] = _one,
    ) -> None:
        self._name = name
        self._execute = execute
        self._max_weight = max_weight
        self._weight = weight
        self._key = key
        self._waiting: list[tuple[RequestT, asyncio.Future[ResultT]]] = []
        self._workers: set[asyncio.Task[None]] = set()

    async def run(self, request: RequestT) -> ResultT:
        """Return the result of one request, or raise the exception of its statement."""
        answer: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if len(self._workers) < STATEMENTS_IN_FLIGHT:
            worker = asyncio.create_task(self._work(), name=self._name)
            self._workers.add(worker)
        return await answer

    async def _work(self) -> None:
        try:
            # Requests read in the same round of the loop join the batch.
            await asyncio.sleep(0)
            while batch := self._take():
                await self._answer(batch)
        finally:
            # Not in a done callback, since a request in between would wait for a worker that has ended.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _take(self) -> list[tuple[RequestT, asyncio.Future[ResultT]]]:
        batch: list[tuple[RequestT, asyncio.Future[ResultT]]] = []
        rest: list[tuple[RequestT, asyncio.Future[ResultT]]] = []
        weight = 0
        for item in self._waiting:
            if item[1].done():
                # Cancelled while waiting.
                continue
            more = self._weight(item[0])
            fits = not batch or (weight + more <= self._max_weight and self._key(item[0]) == self._key(batch[0][0]))
            if fits:
                batch.append(item)
                weight += more
            else:
                rest.append(item)
        self._waiting = rest
        return batch

    async def _answer(self, batch: list[tuple[RequestT, asyncio.Future[ResultT]]]) -> None:
        try:
            answers = await self._run_through_deadlocks([request for request, _ in batch])
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if len(batch) > 1:
                # A request that cannot be stored must not fail the others.
                _log.warning("batch_split", name=self._name, size=len(batch), reason=type(error).__name__)
                for item in batch:
                    await self._answer([item])
                return
            _settle(batch[0][1], error)
        except Exception as error:  # noqa: BLE001  # it belongs to the callers
            for _, answer in batch:
                _settle(answer, error)
        else:
            for (_, future), result in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _run_through_deadlocks(self, requests: list[RequestT]) -> Sequence[ResultT]:
        for _ in range(_DEADLOCK_TRIES - 1):
            try:
                return await self._execute(requests)
            except psycopg.errors.DeadlockDetected:
                _log.warning("deadlock_retried", name=self._name, size=len(requests))
        return await self._execute(requests)


def _settle(answer: asyncio.Future[ResultT], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
