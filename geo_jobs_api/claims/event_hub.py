"""Event streams: one query per interval for all listeners, and none without listeners."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from geo_jobs_api.periodic import Periodic
from geo_jobs_api.queue.records import JobEvent

_EVENTS_PER_JOB = 200


class EventSource(Protocol):
    """Store of events."""

    async def list_events_for_listeners(self, places: Mapping[UUID, int], *, limit: int) -> list[JobEvent]:
        """Return new events of many jobs, each after its own position."""


@dataclass(eq=False, slots=True)
class _Listener:
    job_id: UUID
    position: int
    events: asyncio.Queue[JobEvent | None] = field(default_factory=asyncio.Queue)


class EventHub:
    """Hands new events to all listeners of this process. For one event loop."""

    def __init__(self, source: EventSource, interval_seconds: float) -> None:
        self._source = source
        self._interval_seconds = interval_seconds
        self._listeners: set[_Listener] = set()
        self._arrival = asyncio.Event()
        self._is_draining = False
        self.run = Periodic(self._run_round, "event_poll_failed", retry_seconds=interval_seconds).run

    def drain(self) -> None:
        """End all streams. Clients resume with `Last-Event-ID`."""
        self._is_draining = True
        for listener in self._listeners:
            listener.events.put_nowait(None)

    @contextlib.contextmanager
    def _subscribed(self, listener: _Listener) -> Iterator[None]:
        self._listeners.add(listener)
        self._arrival.set()
        try:
            yield
        finally:
            self._listeners.discard(listener)

    async def listen(self, job_id: UUID, after: int, silence_seconds: float) -> AsyncGenerator[JobEvent | None]:
        """Yield events of one job from `after` on, until the service drains; None after each silence."""
        listener = _Listener(job_id, after)
        with self._subscribed(listener):
            while not self._is_draining:
                event = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(silence_seconds):
                        event = await listener.events.get()
                        if event is None:
                            return
                yield event

    async def _run_round(self) -> float:
        if not self._listeners:
            self._arrival.clear()
            await self._arrival.wait()
        await self._deliver()
        return self._interval_seconds

    async def _deliver(self) -> None:
        # Grouped by job, since there may be ten thousand listeners.
        listeners: defaultdict[UUID, list[_Listener]] = defaultdict(list)
        for listener in self._listeners:
            listeners[listener.job_id].append(listener)
        if not listeners:
            return
        # Several listeners of one job share a position: the earliest.
        positions = {job_id: min(listener.position for listener in several) for job_id, several in listeners.items()}
        for event in await self._source.list_events_for_listeners(positions, limit=_EVENTS_PER_JOB):
            for listener in listeners[event.job_id]:
                if listener.position < event.id:
                    listener.position = event.id
                    listener.events.put_nowait(event)
