"""Wakes waiting claims: one connection that listens for notifications, and one slow poll for all claims.

The poll covers lost notifications, and jobs that become due, which cause none. It stops while no claim waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol
from uuid import UUID

from geo_jobs_api.claims.waiting_room import WaitingRoom
from geo_jobs_api.database.sessions import check_writable, connect
from geo_jobs_api.periodic import Periodic
from geo_jobs_api.queue.records import QueueSnapshot

CHANNEL = "geo_jobs_queued"
_PING_SECONDS = 5.0
_RECONNECT_SECONDS = 2.5


class QueueSource(Protocol):
    """Source of the queue's state."""

    async def poll_queue(self, task_types: Sequence[str], limit: int, claim_ids: Sequence[UUID]) -> QueueSnapshot:
        """Return the state for waiting claims."""


class QueueListener:
    """Wakes waiting claims on the database's notifications, and by a slow poll.

    Args:
        room: the waiting claims.
        queue: polled for claimable jobs.
        conninfo: where to listen.
        backstop_seconds: longest time between two polls while a claim waits.
        listen_check_seconds: how long the connection may be silent before it is checked.
        wake_events: set on notifications of other channels, by channel.
    """

    def __init__(  # noqa: PLR0913  # its parts are handed in
        self,
        room: WaitingRoom,
        queue: QueueSource,
        conninfo: str,
        *,
        backstop_seconds: float,
        listen_check_seconds: float,
        wake_events: Mapping[str, asyncio.Event] | None = None,
    ) -> None:
        self._room = room
        self._queue = queue
        self._conninfo = conninfo
        self._backstop_seconds = backstop_seconds
        self._listen_check_seconds = listen_check_seconds
        self._wake_events = dict(wake_events or {})
        self._listen_loop = Periodic(self._listen, "listen_connection_lost", retry_seconds=_RECONNECT_SECONDS)
        self._poll_loop = Periodic(self._poll, "backstop_poll_failed", wake=room.poll_requested)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen_loop.run())
            tasks.create_task(self._poll_loop.run())

    async def _listen(self) -> NoReturn:
        connection = await connect(self._conninfo, "geo-jobs-listen")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            for channel in (CHANNEL, *self._wake_events):
                await connection.execute(f"LISTEN {channel}".encode())
            await check_writable(connection)
            stack.callback(self._room.set_listening, False)
            self._room.set_listening(True)
            self._listen_loop.worked()
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

    async def _poll(self) -> float:
        """Wake a claim for each claimable job. Return the seconds until the next poll."""
        if not len(self._room):
            return self._backstop_seconds
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
