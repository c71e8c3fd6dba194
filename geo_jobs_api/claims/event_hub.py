"""Live events for many listeners at the price of one query per interval, and of none while nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

import psycopg

from geo_jobs_api.log import OutageLog, get_logger
from geo_jobs_api.queue.records import JobEvent

_log = get_logger(__name__)
_EVENTS_PER_JOB = 200


class EventSource(Protocol):
    """Where events are read."""

    async def list_events_for_listeners(self, places: Mapping[UUID, int], *, limit: int) -> list[JobEvent]:
        """New events of many jobs, each after its own place."""


@dataclass(eq=False, slots=True)
class _Listener:
    job_id: UUID
    place: int
    events: asyncio.Queue[JobEvent] = field(default_factory=asyncio.Queue)


class EventHub:
    """Hands new events to all who listen in this process. For one event loop."""

    def __init__(self, source: EventSource, interval_seconds: float) -> None:
        self._source = source
        self._outage = OutageLog(_log, "event_poll_failed")
        self._interval_seconds = interval_seconds
        self._listeners: set[_Listener] = set()
        self._arrival = asyncio.Event()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End all streams; clients come back with `Last-Event-ID`."""
        self._draining.set()

    @contextlib.contextmanager
    def _subscribed(self, listener: _Listener) -> Iterator[None]:
        self._listeners.add(listener)
        self._arrival.set()
        try:
            yield
        finally:
            self._listeners.discard(listener)

    async def listen(self, job_id: UUID, after: int, silence_seconds: float) -> AsyncGenerator[JobEvent | None]:
        """Events of one job from `after` on, for as long as the service runs; None after each silence."""
        listener = _Listener(job_id, after)
        with self._subscribed(listener):
            stop = asyncio.ensure_future(self._draining.wait())
            try:
                while not stop.done():
                    getter = asyncio.ensure_future(listener.events.get())
                    try:
                        done, _ = await asyncio.wait(
                            {getter, stop}, timeout=silence_seconds, return_when=asyncio.FIRST_COMPLETED
                        )
                    finally:
                        if not getter.done():
                            getter.cancel()
                    if getter in done:
                        yield getter.result()
                    elif not done:
                        yield None
            finally:
                stop.cancel()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            if not self._listeners:
                self._arrival.clear()
                await self._arrival.wait()
            try:
                await self._deliver()
                self._outage.worked()
            except (psycopg.Error, OSError) as error:
                self._outage.failed(error)
            await asyncio.sleep(self._interval_seconds)

    async def _deliver(self) -> None:
        # By job, since there may be ten thousand of them.
        listeners: defaultdict[UUID, list[_Listener]] = defaultdict(list)
        for listener in self._listeners:
            listeners[listener.job_id].append(listener)
        if not listeners:
            return
        # Several listeners of one job share a place: the earliest.
        places = {job_id: min(listener.place for listener in several) for job_id, several in listeners.items()}
        for event in await self._source.list_events_for_listeners(places, limit=_EVENTS_PER_JOB):
            for listener in listeners[event.job_id]:
                if listener.place < event.id:
                    listener.place = event.id
                    listener.events.put_nowait(event)
