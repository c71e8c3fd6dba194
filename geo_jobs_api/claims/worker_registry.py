"""Who asks for work: noted for all in one statement, now and then, so that an idle fleet costs next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import psycopg
from psycopg_pool import PoolTimeout

from geo_jobs_api.log import OutageLog, get_logger
from geo_jobs_api.queue.operator_records import SeenWorker

_log = get_logger(__name__)
_NOTED_EVERY_SECONDS = 60.0
# Those that come soon after one another are noted together.
_COMPANY_SECONDS = 2.0


class WorkerNotes(Protocol):
    """Where workers are noted."""

    async def upsert_workers(self, workers: Sequence[SeenWorker]) -> None:
        """Note who has asked for work."""


class RollCall:
    """Remembers who has asked for work, and notes each once a minute. For one event loop.

    Args:
        notes: where to.
        clock: monotonic seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        notes: WorkerNotes,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._notes = notes
        self._outage = OutageLog(_log, "roll_call_failed")
        self._clock = clock
        self._sleep = sleep
        self._noted: dict[str, tuple[SeenWorker, float]] = {}
        self._new: dict[str, SeenWorker] = {}
        self._arrival = asyncio.Event()

    def see(self, worker: SeenWorker) -> None:
        """A worker has asked for work."""
        known = self._noted.get(worker.id)
        if known is None or known[0] != worker or known[1] + _NOTED_EVERY_SECONDS <= self._clock():
            self._new[worker.id] = worker
            self._arrival.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._arrival.wait()
            await self._sleep(_COMPANY_SECONDS)
            await self.note()

    async def note(self) -> None:
        """Note who is new; in an outage, whoever asks again is."""
        self._arrival.clear()
        new, self._new = self._new, {}
        try:
            await self._notes.upsert_workers(list(new.values()))
        except (psycopg.Error, PoolTimeout, OSError) as error:
            self._outage.failed(error)
            return
        self._outage.worked()
        now = self._clock()
        self._noted = {name: seen for name, seen in self._noted.items() if seen[1] + _NOTED_EVERY_SECONDS > now}
        self._noted |= {name: (worker, now) for name, worker in new.items()}
