"""One claim from request to response: query, wait until woken, query again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psycopg

from geo_jobs_api.claims.batching import Batcher
from geo_jobs_api.claims.waiting_room import BATCH_SECONDS, Claimant, WaitingClaim, WaitingRoom
from geo_jobs_api.errors import Problem
from geo_jobs_api.queue.lease_records import Lease
from geo_jobs_api.queue.lease_requests import ClaimRequest, ClaimResult
from geo_jobs_api.queue.lease_store import LeaseStore

_OUTAGE_PAUSE_SECONDS = 1.0
_NOTHING = ClaimResult([], is_replay=False, has_more=True)
# Larger statements delay other claims for longer than they save.
_JOBS_PER_STATEMENT = 200


def draining() -> Problem:
    """Return the response to claims of a stopping process."""
    return Problem("unavailable", "This process is stopping. Repeat the request.", headers={"Retry-After": "0"})


class ClaimDispatcher:
    """Hands out leases to the claims of this process.

    Args:
        leases: the store.
        room: the waiting claims.
        monotonic: clock in seconds.
    """

    def __init__(self, leases: LeaseStore, room: WaitingRoom, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._leases = leases
        self._room = room
        self._monotonic = monotonic
        self._claims: Batcher[ClaimRequest, ClaimResult] = Batcher(
            "claims",
            leases.claim_jobs,
            max_weight=_JOBS_PER_STATEMENT,
            weight=lambda request: request.max_jobs,
            key=lambda request: request.kind,
        )

    async def claim(
        self, request: ClaimRequest, wait_seconds: float, disconnected: asyncio.Future[None]
    ) -> list[Lease]:
        """Return leases for one claim; none on timeout, or when the client has disconnected.

        Args:
            request: the claim.
            wait_seconds: how long to wait for the first job.
            disconnected: done when the client has disconnected.

        Raises:
            Problem: `unavailable` when the process stops.
            psycopg.OperationalError: the database is away, and the claim has no time to wait for it.
        """
        if self._room.is_draining:
            raise draining()
        deadline = self._monotonic() + wait_seconds
        claimant = Claimant(request.worker_id, request.capabilities.admission)
        with self._room.enter(request.claim_id, frozenset(request.task_types), claimant) as claim:
            disconnected.add_done_callback(lambda _: claim.notify())
            is_known_empty = wait_seconds > BATCH_SECONDS and self._room.is_known_empty(request.task_types)
            if is_known_empty and not await self._room.park(claim, wait_seconds, unchecked=True):
                return []
            while not (disconnected.done() or claim.superseded):
                leases = await self._query(request, claim, disconnected, deadline)
                remaining = deadline - self._monotonic()
                if leases or remaining <= 0:
                    return leases
                if self._room.is_draining:
                    raise draining()
                # No last query on timeout: those of a whole fleet would be a burst.
                if not await self._room.park(claim, remaining):
                    return []
            return []

    async def _query(
        self, request: ClaimRequest, claim: WaitingClaim, disconnected: asyncio.Future[None], deadline: float
    ) -> list[Lease]:
        woken_for = claim.reset()
        notifications = self._room.count_notifications(request.task_types)
        claimed = await self._claim(request, disconnected, deadline)
        if claimed.is_withheld:
            self._room.skip_polls(claim, claimed.avoided_seconds)
        elif not claimed.has_more:
            self._room.mark_empty(request.task_types, notifications)
        if claimed.is_held_back:
            # No notification will announce the next job. The poll finds its time.
            self._room.poll_requested.set()
        if claimed.leases and not claimed.is_replay and (disconnected.done() or claim.superseded):
            for lease in claimed.leases:
                await self._leases.release_claim(lease.job.id, lease.token)
            return []
        got = {lease.job.task_type for lease in claimed.leases}
        if not got and claimed.is_withheld and woken_for is not None:
            self._room.pass_on(claim, woken_for, is_unfit=claimed.avoided_seconds is None)
        if got and woken_for is not None and woken_for not in got:
            # The job that it was woken for is still there. Waiting claims come before new ones.
            self._room.wake(woken_for)
        return claimed.leases

    async def _claim(self, request: ClaimRequest, disconnected: asyncio.Future[None], deadline: float) -> ClaimResult:
        """Query the database. In an outage, claims with time left wait and the others get a 503."""
        while not self._room.is_draining and not disconnected.done():
            try:
                return await self._claims.run(request)
            except psycopg.OperationalError:
                if self._monotonic() + _OUTAGE_PAUSE_SECONDS >= deadline:
                    raise
                await asyncio.sleep(_OUTAGE_PAUSE_SECONDS)
        return _NOTHING
