"""Takes jobs from workers that are lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import psycopg

from geo_jobs_api.log import OutageLog, get_logger
from geo_jobs_api.queue.lease_records import RescuedJob
from geo_jobs_api.queue.metrics import JOBS_RESCUED

_log = get_logger(__name__)


class RescueSource(Protocol):
    """Who ends the leases that ran out."""

    async def rescue_lost_jobs(
        self,
        *,
        max_worker_losses: int,
        cancel_overdue_seconds: float,
        timeout_grace_seconds: float | None = None,
        limit: int = 100,
    ) -> list[RescuedJob]:
        """Decide and act in one statement."""

    async def seconds_until_next_loss(
        self, cancel_overdue_seconds: float, timeout_grace_seconds: float | None = None
    ) -> float | None:
        """How long until there may be something to end; None when nothing runs."""


@dataclass(frozen=True, slots=True)
class RescuePolicy:
    """When leases are ended.

    Attributes:
        interval_seconds: least time between two rounds.
        rest_seconds: longest time between two rounds. No lease that is given after a round runs out sooner.
        grace_seconds: no lease is ended so soon after a start or an outage, since a living worker was not heard.
        max_worker_losses: a job that lost this many workers has failed.
        cancel_overdue_seconds: after so long, a worker that was asked to stop is not waited for.
        timeout_grace_seconds: how long beyond its timeout a job may be held; None: timeouts are off.
    """

    interval_seconds: float
    rest_seconds: float
    grace_seconds: float
    max_worker_losses: int
    cancel_overdue_seconds: float
    timeout_grace_seconds: float | None = None


class Rescuer:
    """Ends leases that ran out. Any number of processes may do this at once.

    Args:
        source: the database.
        policy: when, and what is lost.
        clock: monotonic seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        source: RescueSource,
        policy: RescuePolicy,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._outage = OutageLog(_log, "rescue_failed")
        self._not_before = clock() + policy.grace_seconds

    async def run(self) -> None:
        """Work until cancelled."""
        pause = self._policy.interval_seconds
        while True:
            # Jitter, so that several processes do not ask in step.
            await self._sleep(pause + self._policy.interval_seconds * random.uniform(0, 0.2))  # noqa: S311  # no secret
            await self.run_once()
            pause = await self._find_pause()

    async def _find_pause(self) -> float:
        """Until the next lease may run out: while nothing runs, the database is left alone."""
        # What ran out during the grace is not asked for again and again.
        shortest = max(self._policy.interval_seconds, self._not_before - self._clock())
        longest = self._policy.rest_seconds
        try:
            loss = await self._source.seconds_until_next_loss(
                self._policy.cancel_overdue_seconds, self._policy.timeout_grace_seconds
            )
        except (psycopg.Error, OSError):
            return shortest
        return min(max(shortest, longest if loss is None else loss), max(shortest, longest))

    async def run_once(self) -> int:
        """One round; how many jobs were taken. An outage of the database starts the grace anew."""
        try:
            if self._clock() < self._not_before:
                return 0
            rescued = await self._source.rescue_lost_jobs(
                max_worker_losses=self._policy.max_worker_losses,
                cancel_overdue_seconds=self._policy.cancel_overdue_seconds,
                timeout_grace_seconds=self._policy.timeout_grace_seconds,
            )
        except (psycopg.Error, OSError) as error:
            self._not_before = self._clock() + self._policy.grace_seconds
            self._outage.failed(error)
            return 0
        self._outage.worked()
        for job in rescued:
            JOBS_RESCUED.labels(job.event_type).inc()
            _log.warning(
                "job_rescued",
                job_id=str(job.id),
                kind=job.event_type,
                state=job.state,
                attempt=job.attempt,
                worker_name=job.worker_name,
            )
        return len(rescued)
