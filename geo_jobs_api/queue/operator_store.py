"""Operators' queries and actions in PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import psycopg

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import Row, fetch_all, load_queries
from geo_jobs_api.queue.job_store import cancel_jobs
from geo_jobs_api.queue.operator_records import (
    MAX_COUNTED,
    PossibleWorker,
    WaitingReasons,
    WorkerRegistration,
)
from geo_jobs_api.queue.operator_schemas import CancelFilter, CancelledJobs, RedriveFilter, TaskTypeStats, Worker
from geo_jobs_api.queue.records import Job
from geo_jobs_api.queue.rules import JobState

_operators = load_queries("operators.sql")
# Workers are parked for up to 50 s at a time and stored once a minute.
LIVE_SECONDS = 180.0
# Workers that an explanation reads.
_MAX_WORKERS = 1000
# Takes a tenth of a second. Other statements run between batches.
_CANCELLED_PER_BATCH = 1000
_DEADLOCK_TRIES = 3


class OperatorStore:
    """Queries and actions of operators.

    Args:
        pool: connections to the database.
        lease_seconds: default lease duration of task types.
    """

    def __init__(self, pool: Pool, lease_seconds: float) -> None:
        self._pool = pool
        self._lease_seconds = lease_seconds

    async def find_waiting_reasons(self, job_id: UUID) -> WaitingReasons | None:
        """Return why a job may be waiting."""
        return await self._pool.fetch_one(_operators.find_waiting_reasons, WaitingReasons, id=job_id, limit=MAX_COUNTED)

    async def list_possible_workers(self, task_type: str) -> list[PossibleWorker]:
        """Return workers seen recently or with jobs, those of this type first."""
        return await self._pool.fetch(
            _operators.list_possible_workers,
            PossibleWorker,
            task_type=task_type,
            live_seconds=LIVE_SECONDS,
            limit=_MAX_WORKERS,
        )

    async def change_priority(self, job_id: UUID, owner: str | None, priority: int) -> Job | None:
        """Set a job's priority. Return None when it does not exist (for that owner), or has ended."""
        return await self._pool.fetch_one(_operators.change_priority, Job, id=job_id, owner=owner, priority=priority)

    async def unlock_job(self, job_id: UUID) -> Job | None:
        """End the lease on a job without spending the attempt. Return None when it is not leased."""
        return await self._pool.fetch_one(_operators.unlock_job, Job, id=job_id)

    async def redrive_failed(self, owner: str | None, query: RedriveFilter) -> dict[str, int]:
        """Requeue failed jobs (of one owner, or all). Return their number by task type."""
        rows = await self._pool.fetch_rows(
            _operators.redrive_failed,
            owner=owner,
            task_type=query.task_type,
            error_class=query.error_class,
            error_code=query.error_code,
            ended_after=query.ended_after,
            ended_before=query.ended_before,
            limit=query.limit,
        )
        return {row["task_type"]: row["jobs"] for row in rows}

    async def cancel_matching(self, owner: str | None, query: CancelFilter) -> CancelledJobs:
        """Cancel open jobs (of one owner, or all) in batches, one transaction each."""
        cancelled: Counter[str] = Counter()
        stopping: Counter[str] = Counter()
        after: UUID | None = None
        while (left := query.limit - cancelled.total() - stopping.total()) > 0:
            ids, changed = await self._cancel_batch(owner, query, after, min(left, _CANCELLED_PER_BATCH))
            if not ids:
                break
            after = ids[-1]
            for row in changed:
                (stopping if row["state"] == JobState.RUNNING else cancelled)[row["task_type"]] += 1
        return CancelledJobs(cancelled=dict(cancelled), stopping=dict(stopping), more=left <= 0)

    async def _cancel_batch(
        self, owner: str | None, query: CancelFilter, after: UUID | None, limit: int
    ) -> tuple[list[UUID], list[Row]]:
        """Return the ids of the batch, and the rows of its changed jobs."""
        tries = _DEADLOCK_TRIES
        while True:
            tries -= 1
            try:
                async with self._pool.connection() as connection, connection.transaction():
                    locked = _operators.lock_cancellable(
                        connection,
                        owner=owner,
                        states=list(query.states),
                        task_type=query.task_type,
                        created_after=query.created_after,
                        created_before=query.created_before,
                        after_id=after,
                        limit=limit,
                    )
                    ids = [row["id"] for row in await fetch_all(locked)]
                    return ids, await cancel_jobs(connection, ids, query.reason)
            except psycopg.errors.DeadlockDetected:
                # A parent of jobs in the batch ended concurrently. The batch was rolled back.
                if not tries:
                    raise

    async def upsert_workers(self, workers: Sequence[WorkerRegistration]) -> None:
        """Store workers that have just claimed."""
        async with self._pool.connection() as connection:
            await _operators.upsert_workers(
                connection,
                ids=[worker.id for worker in workers],
                names=[worker.name for worker in workers],
                versions=[worker.version for worker in workers],
                # Nested arrays must have equal lengths.
                task_types=[",".join(sorted(worker.task_types)) for worker in workers],
                capabilities=[worker.capabilities for worker in workers],
                troubles=[worker.trouble for worker in workers],
            )

    async def list_workers(self) -> list[Worker]:
        """Return workers seen in the last minutes or with jobs, busy ones first."""
        return await self._pool.fetch(
            _operators.list_workers, Worker, live_seconds=LIVE_SECONDS, lease_seconds=self._lease_seconds
        )

    async def list_stats(self, seconds: float) -> list[TaskTypeStats]:
        """Return the statistics of all task types over this period."""
        return await self._pool.fetch(_operators.list_stats, TaskTypeStats, seconds=seconds)
