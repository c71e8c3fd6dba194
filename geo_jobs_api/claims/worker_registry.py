"""Registry of claiming workers, stored in batches, so that an idle fleet costs next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from geo_jobs_api.periodic import Periodic
from geo_jobs_api.queue.operator_records import WorkerRegistration

_STORE_EVERY_SECONDS = 60.0
# New workers within this time are stored in one statement.
_BATCH_SECONDS = 2.0


class RegistryStore(Protocol):
    """Store of workers."""

    async def upsert_workers(self, workers: Sequence[WorkerRegistration]) -> None:
        """Store workers that have just claimed."""


class WorkerRegistry:
    """Stores each claiming worker once a minute. For one event loop.

    Args:
        store: the store.
        clock: monotonic seconds.
    """

    def __init__(self, store: RegistryStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._stored: dict[str, tuple[WorkerRegistration, float]] = {}
        self._new: dict[str, WorkerRegistration] = {}
        self._arrival = asyncio.Event()
        self.run = Periodic(self._run_round, "worker_registry_failed").run

    def register(self, worker: WorkerRegistration) -> None:
        """Note that a worker has claimed."""
        known = self._stored.get(worker.id)
        if known is None or known[0] != worker or known[1] + _STORE_EVERY_SECONDS <= self._clock():
            self._new[worker.id] = worker
            self._arrival.set()

    async def _run_round(self) -> float:
        await self._arrival.wait()
        await asyncio.sleep(_BATCH_SECONDS)
        await self.flush()
        return 0.0

    async def flush(self) -> None:
        """Store new workers. In an outage they are dropped until their next claim."""
        self._arrival.clear()
        new, self._new = self._new, {}
        await self._store.upsert_workers(list(new.values()))
        now = self._clock()
        self._stored = {name: seen for name, seen in self._stored.items() if seen[1] + _STORE_EVERY_SECONDS > now}
        self._stored |= {name: (worker, now) for name, worker in new.items()}
