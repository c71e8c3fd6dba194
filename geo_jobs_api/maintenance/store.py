"""Maintenance of the queue in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import load_queries
from geo_jobs_api.database.sessions import check_writable
from geo_jobs_api.maintenance.rescuer import RescuePolicy
from geo_jobs_api.queue.lease_records import RescuedJob
from geo_jobs_api.queue.operator_records import OpenJobs
from geo_jobs_api.queue.records import QueueSnapshot, VacuumBlocker
from geo_jobs_api.queue.rules import MAX_TIMEOUTS

_maintenance = load_queries("maintenance.sql")
_BATCH = 100


class MaintenanceStore:
    """Reads and writes of the background loops and of the health check."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def last_outage(self) -> float:
        """When a statement last failed for an outage of the database, in monotonic seconds."""
        return self._pool.last_outage

    async def rescue_lost_jobs(self, policy: RescuePolicy) -> list[RescuedJob]:
        """End up to 100 leases that are expired, ignored a cancellation, or exceeded the timeout."""
        return await self._pool.fetch(
            _maintenance.rescue_lost_jobs,
            RescuedJob,
            max_worker_losses=policy.max_worker_losses,
            max_timeouts=MAX_TIMEOUTS,
            cancel_overdue_seconds=policy.cancel_overdue_seconds,
            timeout_grace_seconds=policy.timeout_grace_seconds,
            limit=_BATCH,
        )

    async def release_pending(self) -> int:
        """Release one batch of dependents left over from ended jobs. Return the number of ended jobs processed."""
        async with self._pool.connection() as connection:
            row = await _maintenance.release_pending(connection, limit=_BATCH)
        jobs: int = row["jobs"]
        return jobs

    async def poll_queue(self, task_types: Sequence[str], limit: int, claim_ids: Sequence[UUID]) -> QueueSnapshot:
        """Return the claimable jobs of these types, counted up to `limit`, and the claims that hold leases already."""
        async with self._pool.connection() as connection:
            row = await _maintenance.poll_queue(
                connection, task_types=list(task_types), limit=limit, claim_ids=list(claim_ids)
            )
        return QueueSnapshot.from_row(row)

    async def seconds_until_next_loss(self, policy: RescuePolicy) -> float | None:
        """Return the seconds until a lease, a cancellation or a job may be overdue.

        None: no job runs, and no task type has its own lease duration.
        """
        async with self._pool.connection() as connection:
            row = await _maintenance.seconds_until_next_loss(
                connection,
                cancel_overdue_seconds=policy.cancel_overdue_seconds,
                timeout_grace_seconds=policy.timeout_grace_seconds,
            )
        seconds: float | None = row["seconds"]
        return seconds

    async def count_open_jobs(self) -> list[OpenJobs]:
        """Count open jobs by type and state."""
        return await self._pool.fetch(_maintenance.count_open_jobs, OpenJobs)

    async def list_vacuum_blockers(self, older_than_seconds: float) -> list[VacuumBlocker]:
        """Return sessions that have held back vacuum from the queue for longer than this, longest first."""
        return await self._pool.fetch(
            _maintenance.list_vacuum_blockers, VacuumBlocker, older_than_seconds=older_than_seconds
        )

    async def check_writable(self) -> None:
        """Raise ReadOnlyError when the database accepts no writes, another psycopg error when it does not answer."""
        async with self._pool.connection() as connection:
            await check_writable(connection)
