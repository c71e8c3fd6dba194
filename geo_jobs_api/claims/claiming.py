"""One claim from its question to its answer: look, wait to be woken, look again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import psycopg

from geo_jobs_api.claims.batching import Coalescer
from geo_jobs_api.claims.waiting_room import COMPANY_SECONDS, Asker, Ticket, WaitingRoom
from geo_jobs_api.errors import Problem
from geo_jobs_api.queue.lease_records import Lease
from geo_jobs_api.queue.lease_requests import Claimed, ClaimRequest
from geo_jobs_api.queue.lease_store import LeaseStore

_OUTAGE_PAUSE_SECONDS = 1.0
_NOTHING = Claimed([], is_replay=False, has_more=True)
# A statement that claims more than this keeps the rest waiting for longer than it saves.
_JOBS_PER_STATEMENT = 200


def draining() -> Problem:
    """What a process that stops tells those who wait: another one is ready for them at once."""
    return Problem("unavailable", "This process is stopping; ask again.", headers={"Retry-After": "0"})


class ClaimDesk:
    """Hands out leases to those who wait, in this process.

    Args:
        leases: where they come from.
        room: where claims wait.
        monotonic: seconds.
    """

    def __init__(self, leases: LeaseStore, room: WaitingRoom, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._leases = leases
        self._room = room
        self._monotonic = monotonic
        self._claims: Coalescer[ClaimRequest, Claimed] = Coalescer(
            "claims",
            leases.claim_jobs,
            limit=_JOBS_PER_STATEMENT,
            weight=lambda request: request.limit,
            kind=lambda request: request.kind,
        )

    async def claim(self, ask: ClaimRequest, wait_seconds: float, gone: asyncio.Future[None]) -> list[Lease]:
        """Leases for one claim; none when its time ran out, or nobody wants them any more.

        Args:
            ask: who wants how much of what.
            wait_seconds: how long to wait for the first job.
            gone: done when the client has hung up.

        Raises:
            Problem: `unavailable` when the process stops.
            psycopg.OperationalError: the database is away, and the claim does not wait for it.
        """
        if self._room.is_draining:
            raise draining()
        deadline = self._monotonic() + wait_seconds
        asker = Asker(ask.worker_id, ask.capabilities.admission)
        with self._room.enter(ask.claim_id, frozenset(ask.task_types), asker) as ticket:
            is_known_empty = wait_seconds > COMPANY_SECONDS and self._room.is_known_empty(ask.task_types)
            if is_known_empty and not await self._wait(ticket, gone, wait_seconds, unseen=True):
                return []
            while not (gone.done() or ticket.superseded):
                leases = await self._look(ask, ticket, gone, deadline)
                remaining = deadline - self._monotonic()
                if leases or remaining <= 0:
                    return leases
                if self._room.is_draining:
                    raise draining()
                # A wait that ran out unwoken needs no last look: those of a whole fleet would be a burst.
                if not await self._wait(ticket, gone, remaining):
                    return []
            return []

    async def _look(
        self, ask: ClaimRequest, ticket: Ticket, gone: asyncio.Future[None], deadline: float
    ) -> list[Lease]:
        woken_for = ticket.look_again()
        news = self._room.count_news(ask.task_types)
        claimed = await self._claim(ask, gone, deadline)
        if claimed.is_withheld:
            self._room.note_vain(ticket, claimed.avoided_seconds)
        elif not claimed.has_more:
            self._room.note_empty(ask.task_types, news)
        if claimed.is_held_back:
            # Nobody will say when there is more; the poll finds out when to look.
            self._room.look.set()
        if claimed.leases and not claimed.is_replay and (gone.done() or ticket.superseded):
            for lease in claimed.leases:
                await self._leases.release_claim(lease.job.id, lease.token)
            return []
        got = {lease.job.task_type for lease in claimed.leases}
        if not got and claimed.is_withheld and woken_for is not None:
            self._room.pass_on(ticket, woken_for, is_unfit=claimed.avoided_seconds is None)
        if got and woken_for is not None and woken_for not in got:
            # What it was woken for is still there, and whoever comes now waits behind those who were there before.
            self._room.wake(woken_for)
        return claimed.leases

    async def _claim(self, ask: ClaimRequest, gone: asyncio.Future[None], deadline: float) -> Claimed:
        """Ask the database; while it restarts, those who are parked stay so, and those who are not get a 503."""
        while not self._room.is_draining and not gone.done():
            try:
                return await self._claims.ask(ask)
            except psycopg.OperationalError:
                if self._monotonic() + _OUTAGE_PAUSE_SECONDS >= deadline:
                    raise
                await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
        return _NOTHING

    async def _wait(self, ticket: Ticket, gone: asyncio.Future[None], seconds: float, *, unseen: bool = False) -> bool:
        """Whether there is a reason to look; False when the time ran out or the client has gone."""
        waiting: asyncio.Future[bool] = asyncio.ensure_future(self._room.park(ticket, seconds, unseen=unseen))
        either: set[asyncio.Future[Any]] = {waiting, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        return ticket.is_woken and not gone.done()
