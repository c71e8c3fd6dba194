"""Ends leases of lost workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psycopg

from geo_jobs_api.log import get_logger
from geo_jobs_api.periodic import Periodic
from geo_jobs_api.queue.lease_records import RescuedJob
from geo_jobs_api.queue.metrics import JOBS_RESCUED

_log = get_logger(__name__)

# A round that begins so late shows that this process stood still (SIGSTOP, a suspended host).
_STALL_SECONDS = 5.0


class RescueSource(Protocol):
    """Store that ends leases."""

    @property
    def last_outage(self) -> float:
        """When a statement last failed for an outage of the database, in monotonic seconds."""

    async def rescue_lost_jobs(self, policy: RescuePolicy) -> list[RescuedJob]:
        """End lost leases in one statement."""

    async def seconds_until_next_loss(self, policy: RescuePolicy) -> float | None:
        """Return the seconds until a lease may be lost; None if no job runs."""


@dataclass(frozen=True, slots=True)
class RescuePolicy:
    """The rules for ending leases.

    Attributes:
        interval_seconds: shortest time between two rounds.
        rest_seconds: longest time between two rounds. No lease granted after a round expires sooner.
        grace_seconds: time after a start, an outage or a stall without rescues, since live workers could not report.
        max_worker_losses: a job fails after this many lost workers.
        cancel_overdue_seconds: time that a worker has to obey a cancellation.
        timeout_grace_seconds: time beyond a job's timeout. None: timeouts are off.
    """

    interval_seconds: float
    rest_seconds: float
    grace_seconds: float
    max_worker_losses: int
    cancel_overdue_seconds: float
    timeout_grace_seconds: float | None = None


class Rescuer:
    """Ends expired leases. Any number of processes may do this concurrently.

    Args:
        source: the store.
        policy: the rules.
        clock: monotonic seconds.
    """

    def __init__(self, source: RescueSource, policy: RescuePolicy, *, clock: Callable[[], float]) -> None:
        self._source = source
        self._policy = policy
        self._clock = clock
        self._not_before = clock() + policy.grace_seconds
        self._due = float("inf")
        interval = policy.interval_seconds
        self.run = Periodic(self.run_once, "rescue_failed", first_seconds=interval, jitter_seconds=interval / 5).run

    async def run_once(self) -> float:
        """Rescue one batch. Return the seconds until the next lease may expire, within the policy's bounds.

        An outage of the database or a stall of this process restarts the grace, since no heartbeat arrived meanwhile. A
        read-only database refuses heartbeats and answers queries, so the outage of any statement counts.
        """
        policy = self._policy
        now = self._clock()
        if now > self._due + _STALL_SECONDS:
            self._not_before = now + policy.grace_seconds
        self._not_before = max(self._not_before, self._source.last_outage + policy.grace_seconds)
        try:
            if now >= self._not_before:
                await self._rescue()
            loss = await self._source.seconds_until_next_loss(policy)
        except (psycopg.Error, OSError):
            self._due = float("inf")
            self._not_before = self._clock() + policy.grace_seconds
            raise
        # Leases that expired during the grace are not queried repeatedly.
        shortest = max(policy.interval_seconds, self._not_before - self._clock())
        pause = min(max(shortest, policy.rest_seconds if loss is None else loss), max(shortest, policy.rest_seconds))
        self._due = self._clock() + pause
        return pause

    async def _rescue(self) -> None:
        for job in await self._source.rescue_lost_jobs(self._policy):
            JOBS_RESCUED.labels(job.event_type).inc()
            _log.warning(
                "job_rescued",
                job_id=str(job.id),
                kind=job.event_type,
                state=job.state,
                attempt=job.attempt,
                worker_name=job.worker_name,
            )
