"""Claims that wait: parked in the order they came, and woken one for each job that can be claimed.

One connection per process listens for notifications. A slow poll covers the lost ones, and the jobs whose time has
come without anybody saying so. While nobody waits, the database is not asked at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

import psycopg

from geo_jobs_api.database import connect
from geo_jobs_api.log import get_logger

_log = get_logger(__name__)

CHANNEL = "geo_jobs_queued"
# How long the listening connection may be silent before it is asked for a sign of life.
_LISTEN_SECONDS = 15.0
_PING_SECONDS = 5.0
_RECONNECT_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class Ticket:
    """The place of one waiting claim."""

    task_types: frozenset[str]
    claim_id: UUID
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    woken_for: str | None = None
    superseded: bool = False

    def wake(self, task_type: str) -> None:
        """Tell the claim to look; `task_type` is what there is to be had."""
        self.woken_for = task_type
        self._event.set()

    def look_again(self) -> None:
        """To be called before each look, so that what happens during it is not missed."""
        self.woken_for = None
        self._event.clear()

    def supersede(self) -> None:
        """A later request with the same claim id has taken over."""
        self.superseded = True
        self._event.set()

    @property
    def is_woken(self) -> bool:
        """Whether there is a reason to look."""
        return self._event.is_set()

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken; False when the time ran out."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class ReadySource(Protocol):
    """Who knows what could be claimed."""

    async def count_ready(self, task_types: list[str], most: int) -> dict[str, int]:
        """Claimable jobs by type."""

    async def seconds_until_next_due(self) -> float | None:
        """Seconds until the next waiting job's time comes."""


class WaitingRoom:
    """All claims that wait in this process. For one event loop."""

    def __init__(self) -> None:
        self._tickets: dict[Ticket, None] = {}
        self._by_claim: dict[UUID, Ticket] = {}
        self._parked = 0
        self.is_draining = False
        # Set when it is worth while to look what there is, and for when.
        self.look = asyncio.Event()

    def __len__(self) -> int:
        """How many claims wait."""
        return self._parked

    async def park(self, ticket: Ticket, seconds: float) -> bool:
        """Wait to be woken; False when the time ran out."""
        if self._parked == 0:
            # Nobody has looked for a while: a job may be due in a moment.
            self.look.set()
        self._parked += 1
        try:
            return await ticket.wait(seconds)
        finally:
            self._parked -= 1

    def wanted_types(self) -> list[str]:
        """The task types that somebody waits for."""
        return sorted({name for ticket in self._tickets for name in ticket.task_types})

    @contextlib.contextmanager
    def enter(self, claim_id: UUID, task_types: frozenset[str]) -> Iterator[Ticket]:
        """Take a place before the first look, so that no notification falls in between.

        A second request with the same claim id takes the place of the first: its client has given that one up.
        A wake-up that the leaving claim has not answered goes to the next in line.
        """
        earlier = self._by_claim.get(claim_id)
        if earlier is not None:
            earlier.supersede()
        ticket = Ticket(task_types, claim_id)
        self._tickets[ticket] = None
        self._by_claim[claim_id] = ticket
        try:
            yield ticket
        finally:
            del self._tickets[ticket]
            if self._by_claim.get(claim_id) is ticket:
                del self._by_claim[claim_id]
            if ticket.woken_for is not None:
                self.wake(ticket.woken_for)

    def wake(self, task_type: str, count: int = 1) -> None:
        """Wake the first `count` waiting claims that can do this type and have not been woken yet."""
        for ticket in self._tickets:
            if count <= 0:
                return
            if not ticket.is_woken and task_type in ticket.task_types:
                ticket.wake(task_type)
                count -= 1

    def drain(self) -> None:
        """Send everybody away, now and from now on."""
        self.is_draining = True
        for ticket in list(self._tickets):
            ticket.wake("")


class Wakeup:
    """Keeps the waiting room informed, from the database's notifications and by a slow poll.

    Args:
        room: who is to be woken.
        ready: who knows what could be claimed.
        conninfo: where to listen.
        backstop_seconds: the longest time between two looks while somebody waits.
        jitter: source of the jitter between reconnections.
    """

    def __init__(
        self,
        room: WaitingRoom,
        ready: ReadySource,
        conninfo: str,
        *,
        backstop_seconds: float,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._room = room
        self._ready = ready
        self._conninfo = conninfo
        self._backstop_seconds = backstop_seconds
        self._jitter = jitter

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
                _log.warning("listen_connection_lost", reason=type(error).__name__)
            await asyncio.sleep(self._jitter(0.1, _RECONNECT_SECONDS))

    async def _listen(self) -> None:
        connection = await connect(self._conninfo, "geo-jobs-listen")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            # Whatever was said while nobody listened.
            self._room.look.set()
            while True:
                async for notification in connection.notifies(timeout=_LISTEN_SECONDS):
                    self._heard(notification.payload)
                # Silence may be a half-open connection.
                async with asyncio.timeout(_PING_SECONDS):
                    await connection.execute("SELECT 1")

    def _heard(self, payload: str) -> None:
        # `task type`, or `task type:number`; empty when a job waits for its time.
        task_type = payload.partition(":")[0]
        if task_type:
            self._room.wake(task_type)
        else:
            self._room.look.set()

    async def _poll_for_ever(self) -> None:
        while True:
            pause = self._backstop_seconds
            try:
                if len(self._room):
                    pause = await self._poll()
            except (psycopg.Error, OSError) as error:
                _log.warning("backstop_poll_failed", reason=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._room.look.wait()
            self._room.look.clear()

    async def _poll(self) -> float:
        """Wake as many as there are jobs; returns seconds until the next look is worth while."""
        for task_type, count in (await self._ready.count_ready(self._room.wanted_types(), len(self._room))).items():
            self._room.wake(task_type, count)
        due = await self._ready.seconds_until_next_due()
        # A little later than due, since a look that comes a millisecond early finds nothing.
        return self._backstop_seconds if due is None else min(self._backstop_seconds, max(due, 0) + 0.005)
