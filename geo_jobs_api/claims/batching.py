"""Requests that wait at the same time share one statement: one-row claims do not scale with clients, batches do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar, cast

import psycopg

from geo_jobs_api.log import get_logger

_log = get_logger(__name__)

AskT = TypeVar("AskT")
AnswerT = TypeVar("AnswerT")

# More than two only fight for the same rows; with two, one is worked out by the database while one is on its way.
STATEMENTS_IN_FLIGHT = 2
# A deadlock's victim lost nothing; by the third time something else is wrong.
_DEADLOCK_TRIES = 3


def _one(_: object) -> int:
    return 1


class Coalescer(Generic[AskT, AnswerT]):
    """Gathers what is asked while statements are under way, and asks it together. For one event loop.

    Args:
        name: for the log.
        run: answers a batch, in its order; its effects are committed when it returns.
        limit: how much a batch may weigh; one that weighs more goes alone.
        weight: what one ask weighs.
        kind: only asks of one kind can share a statement.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[AskT]], Awaitable[Sequence[AnswerT]]],
        *,
        limit: int,
        weight: Callable[[AskT], int] = _one,
        kind: Callable[[AskT], Hashable] = _one,
    ) -> None:
        self._name = name
        self._run = run
        self._limit = limit
        self._weight = weight
        self._kind = kind
        self._waiting: list[tuple[AskT, asyncio.Future[AnswerT]]] = []
        self._workers: set[asyncio.Task[None]] = set()

    async def ask(self, one: AskT) -> AnswerT:
        """The answer to one, or the exception that its statement ended with."""
        answer: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, answer))
        if len(self._workers) < STATEMENTS_IN_FLIGHT:
            worker = asyncio.create_task(self._work(), name=self._name)
            self._workers.add(worker)
        return await answer

    async def _work(self) -> None:
        try:
            # Whoever was read in the same round of the loop comes along.
            await asyncio.sleep(0)
            while batch := self._take():
                await self._answer(batch)
        finally:
            # Here and not when the task is done: what is asked in between would wait for a worker that has left.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _take(self) -> list[tuple[AskT, asyncio.Future[AnswerT]]]:
        batch: list[tuple[AskT, asyncio.Future[AnswerT]]] = []
        left: list[tuple[AskT, asyncio.Future[AnswerT]]] = []
        weight = 0
        for item in self._waiting:
            if item[1].done():
                # Cancelled while it waited: nobody wants it any more.
                continue
            more = self._weight(item[0])
            fits = not batch or (weight + more <= self._limit and self._kind(item[0]) == self._kind(batch[0][0]))
            if fits:
                batch.append(item)
                weight += more
            else:
                left.append(item)
        self._waiting = left
        return batch

    async def _answer(self, batch: list[tuple[AskT, asyncio.Future[AnswerT]]]) -> None:
        try:
            answers = await self._run_through_deadlocks([one for one, _ in batch])
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if len(batch) > 1:
                # What cannot be stored of one must not be the others' fault.
                _log.warning("batch_split", name=self._name, size=len(batch), reason=type(error).__name__)
                for item in batch:
                    await self._answer([item])
                return
            _settle(batch[0][1], error)
        except Exception as error:  # noqa: BLE001  # it belongs to those who asked
            for _, answer in batch:
                _settle(answer, error)
        else:
            for (_, future), result in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _run_through_deadlocks(self, asks: list[AskT]) -> Sequence[AnswerT]:
        for _ in range(_DEADLOCK_TRIES - 1):
            try:
                return await self._run(asks)
            except psycopg.errors.DeadlockDetected:
                _log.warning("deadlock_retried", name=self._name, size=len(asks))
        return await self._run(asks)


def _settle(answer: asyncio.Future[AnswerT], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
