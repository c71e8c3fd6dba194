"""Wakes waiting claims: one connection that listens for notifications, and one slow poll for all claims.

The poll covers lost notifications, and jobs that become due, which cause none. It stops while no claim waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

import psycopg

from geo_jobs_api.claims.waiting_room import BATCH_SECONDS, WaitingRoom
from geo_jobs_api.database.sessions import check_writable, connect
from geo_jobs_api.log import OutageLog, get_logger
from geo_jobs_api.queue.records import QueueSnapshot

_log = get_logger(__name__)

CHANNEL = "geo_jobs_queued"
_PING_SECONDS = 5.0
_RECONNECT_SECONDS = 5.0


class QueueSource(Protocol):
    """Source of the queue's state."""

    async def poll_queue(self, task_types: Sequence[str], limit: int, claim_ids: Sequence[UUID]) -> QueueSnapshot:
        """Return what waiting claims need."""


class QueueListener:
    """Wakes waiting claims on the database's notifications, and by a slow poll.

    Args:
        room: the waiting claims.
        queue: polled for claimable jobs.
        conninfo: where to listen.
        backstop_seconds: longest time between two polls while a claim waits.
        listen_check_seconds: how long the connection may be silent before it is checked.
        wake_events: set on notifications of other channels, by channel.
        jitter: source of the jitter between reconnections.
        clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913  # clock and jitter are handed in
        self,
        room: WaitingRoom,
        queue: QueueSource,
        conninfo: str,
        *,
        backstop_seconds: float,
        listen_check_seconds: float,
        wake_events: Mapping[str, asyncio.Event] | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._queue = queue
        self._conninfo = conninfo
        self._backstop_seconds = backstop_seconds
        self._listen_check_seconds = listen_check_seconds
        self._wake_events = dict(wake_events or {})
        self._listen_outage = OutageLog(_log, "listen_connection_lost")
        self._poll_outage = OutageLog(_log, "backstop_poll_failed")
        self._jitter = jitter
        self._clock = clock

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen_for_ever())
            tasks.create_task(self._poll_for_ever())

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                await self._listen()
            except (psycopg.Error, TimeoutError, OSError) as error:
                self._listen_outage.failed(error)
            await asyncio.sleep(self._jitter(0.1, _RECONNECT_SECONDS))

    async def _listen(self) -> None:
        connection = await connect(self._conninfo, "geo-jobs-listen")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            for channel in (CHANNEL, *self._wake_events):
                await connection.execute(f"LISTEN {channel}".encode())
            await check_writable(connection)
            stack.callback(self._room.set_listening, False)
            self._room.set_listening(True)
            self._listen_outage.worked()
            # Notifications may have been missed.
            self._room.poll_requested.set()
            for event in self._wake_events.values():
                event.set()
            while True:
                async for notification in connection.notifies(timeout=self._listen_check_seconds):
                    if notification.channel in self._wake_events:
                        self._wake_events[notification.channel].set()
                    else:
                        self._handle(notification.payload)
                # Silence may be a half-open connection, or a former primary without writes.
                async with asyncio.timeout(min(_PING_SECONDS, self._listen_check_seconds)):
                    await check_writable(connection)

    def _handle(self, payload: str) -> None:
        # `TYPE` or `TYPE:NUMBER_OF_JOBS`. Empty: a job becomes due later. Number 0: the type's limits may have changed,
        # so only a poll shows the number of claimable jobs.
        task_type, _, number = payload.partition(":")
        count = int(number) if number.isdecimal() else 1
        if task_type:
            self._room.wake(task_type, count)
        if not task_type or count == 0:
            self._room.poll_requested.set()

    async def _poll_for_ever(self) -> None:
        while True:
            began, pause = self._clock(), self._backstop_seconds
            try:
                if len(self._room):
                    pause = await self._poll()
                    self._poll_outage.worked()
            except (psycopg.Error, OSError) as error:
                self._poll_outage.failed(error)
            await self._rest(began, pause)
            self._room.poll_requested.clear()
            self._room.unchecked_arrived.clear()

    async def _rest(self, began: float, pause: float) -> None:
        """Sleep until the pause is over or a poll is requested. Unchecked claims wait for BATCH_SECONDS."""
        requested = asyncio.ensure_future(self._room.poll_requested.wait())
        unchecked = asyncio.ensure_future(self._room.unchecked_arrived.wait())
        try:
            await asyncio.wait({requested, unchecked}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if unchecked.done() and not requested.done():
                left = min(pause, began + BATCH_SECONDS - self._clock())
                await asyncio.wait({requested}, timeout=max(0.0, left))
        finally:
            requested.cancel()
            unchecked.cancel()

    async def _poll(self) -> float:
        """Wake a claim for each claimable job. Return the seconds until the next poll."""
        unchecked = self._room.list_unchecked()
        found = await self._queue.poll_queue(
            self._room.requested_types(), len(self._room), [claim.claim_id for claim in unchecked]
        )
        self._room.mark_checked(unchecked)
        self._room.notify_claims(found.held_claims)
        for task_type, count in found.ready.items():
            if count:
                self._room.wake(task_type, count, is_notification=False)
        if found.due_seconds is None:
            return self._backstop_seconds
        # A poll a millisecond early finds nothing.
        return min(self._backstop_seconds, max(found.due_seconds, 0) + 0.005)
