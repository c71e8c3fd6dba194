"""What keeps the waiting room informed: one connection that listens, and one slow poll for all who wait.

The poll covers lost notifications, and the jobs whose time has come without anybody saying so. While nobody waits,
it asks nothing.
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

from geo_jobs_api.claims.waiting_room import COMPANY_SECONDS, WaitingRoom
from geo_jobs_api.database.sessions import check_writable, connect
from geo_jobs_api.log import OutageLog, get_logger
from geo_jobs_api.queue.records import Surroundings

_log = get_logger(__name__)

CHANNEL = "geo_jobs_queued"
_PING_SECONDS = 5.0
_RECONNECT_SECONDS = 5.0


class ReadySource(Protocol):
    """Who knows what could be claimed."""

    async def poll_queue(self, task_types: Sequence[str], limit: int, claim_ids: Sequence[UUID]) -> Surroundings:
        """What there is for those who wait."""


class Wakeup:
    """Keeps the waiting room informed, from the database's notifications and by a slow poll.

    Args:
        room: who is to be woken.
        ready: who knows what could be claimed.
        conninfo: where to listen.
        backstop_seconds: the longest time between two looks while somebody waits.
        listen_check_seconds: how long the listening connection may be silent before it is asked for a sign of life.
        bells: what to ring when something is said on other channels, by channel.
        jitter: source of the jitter between reconnections.
        clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913  # clock and jitter are handed in
        self,
        room: WaitingRoom,
        ready: ReadySource,
        conninfo: str,
        *,
        backstop_seconds: float,
        listen_check_seconds: float,
        bells: Mapping[str, asyncio.Event] | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._ready = ready
        self._conninfo = conninfo
        self._backstop_seconds = backstop_seconds
        self._listen_check_seconds = listen_check_seconds
        self._bells = dict(bells or {})
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
            for channel in (CHANNEL, *self._bells):
                await connection.execute(f"LISTEN {channel}".encode())
            await check_writable(connection)
            stack.callback(self._room.set_listening, False)
            self._room.set_listening(True)
            self._listen_outage.worked()
            # Whatever was said while nobody listened.
            self._room.look.set()
            for bell in self._bells.values():
                bell.set()
            while True:
                async for notification in connection.notifies(timeout=self._listen_check_seconds):
                    if notification.channel in self._bells:
                        self._bells[notification.channel].set()
                    else:
                        self._heard(notification.payload)
                # Silence may be a half-open connection, or a former primary that nobody writes to any more.
                async with asyncio.timeout(min(_PING_SECONDS, self._listen_check_seconds)):
                    await check_writable(connection)

    def _heard(self, payload: str) -> None:
        # `task type`, or `task type:number of jobs`; empty when a job waits for its time. With the number 0 the type
        # itself has changed, and only a look tells how many jobs there are for those who wait.
        task_type, _, number = payload.partition(":")
        count = int(number) if number.isdecimal() else 1
        if task_type:
            self._room.wake(task_type, count)
        if not task_type or count == 0:
            self._room.look.set()

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
            self._room.look.clear()
            self._room.unseen_came.clear()

    async def _rest(self, began: float, pause: float) -> None:
        """Until the pause is over or there is a reason to look; unseen claims wait for company."""
        look = asyncio.ensure_future(self._room.look.wait())
        unseen = asyncio.ensure_future(self._room.unseen_came.wait())
        try:
            await asyncio.wait({look, unseen}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if unseen.done() and not look.done():
                left = min(pause, began + COMPANY_SECONDS - self._clock())
                await asyncio.wait({look}, timeout=max(0.0, left))
        finally:
            look.cancel()
            unseen.cancel()

    async def _poll(self) -> float:
        """Wake as many as there are jobs; returns seconds until the next look is worth while."""
        unseen = self._room.list_unseen()
        found = await self._ready.poll_queue(
            self._room.wanted_types(), len(self._room), [ticket.claim_id for ticket in unseen]
        )
        self._room.note_seen(unseen)
        self._room.wake_claims(found.held_claims)
        for task_type, count in found.ready.items():
            if count:
                self._room.wake(task_type, count, is_news=False)
        if found.due_seconds is None:
            return self._backstop_seconds
        # A little later than due, since a look that comes a millisecond early finds nothing.
        return min(self._backstop_seconds, max(found.due_seconds, 0) + 0.005)
