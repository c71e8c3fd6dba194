"""Jobs in PostgreSQL as their owners see them, events, worker tokens.

This module, the other stores and `retention` are the only callers of SQL. Each method runs one statement, unless its
docstring names more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import Row, fetch_all, load_queries, transaction_if
from geo_jobs_api.queue.operator_schemas import EndedLease
from geo_jobs_api.queue.records import Job, JobEvent, Parent, Usage, WorkerToken
from geo_jobs_api.queue.rules import JobState

_jobs = load_queries("jobs.sql")


def _job_or_none(row: Row | None) -> Job | None:
    return None if row is None else Job.from_row(row)


class QuotaExceededError(Exception):
    """A caller would exceed its quota. Nothing was changed."""

    def __init__(self, has: Usage) -> None:
        super().__init__(str(has))
        self.has = has


class LimitExceededError(Exception):
    """A caller would exceed a limit per caller. Nothing was changed."""


async def lock_owner(connection: AsyncConnection[DictRow], owner: str) -> None:
    """Serialize changes that count against an owner's quota, until the transaction ends."""
    await _jobs.lock_owner(connection, owner=owner)


async def enforce_quota(
    connection: AsyncConnection[DictRow], owner: str, *, max_jobs: int = 0, max_bytes: int = 0
) -> None:
    """Check a quota in the transaction that has used some of it. 0: no limit.

    A concurrent transaction of the same owner waits for this one, and then counts its rows too.

    Raises:
        QuotaExceededError: the quota is exceeded. Leaving the transaction with this error rolls the addition back.
    """
    await lock_owner(connection, owner)
    # Each count reads many rows, so only the required ones run.
    open_jobs = (await _jobs.count_open_of_owner(connection, owner=owner))["open_jobs"] if max_jobs else 0
    stored_bytes = (await _jobs.sum_stored_of_owner(connection, owner=owner))["stored_bytes"] if max_bytes else 0
    has = Usage(open_jobs, stored_bytes)
    if (max_jobs and has.open_jobs > max_jobs) or (max_bytes and has.stored_bytes > max_bytes):
        raise QuotaExceededError(has)


async def cancel_jobs(connection: AsyncConnection[DictRow], job_ids: Sequence[UUID], reason: str | None) -> list[Row]:
    """Cancel open jobs, or ask their workers to stop. Return id, task type and new state of each changed job."""
    return await fetch_all(_jobs.cancel_jobs(connection, ids=list(job_ids), reason=reason)) if job_ids else []


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Filter of a list of jobs. None: any."""

    state: JobState | None = None
    task_type: str | None = None
    error_code: str | None = None


class JobStore:
    """Everything about jobs that needs no lease."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find_job(self, job_id: UUID, owner: str | None = None) -> Job | None:
        """Return one job. With an owner, only that owner's."""
        return await self._pool.fetch_one(_jobs.get_job, Job, id=job_id, owner=owner)

    async def accepts_outputs(self, job_id: UUID) -> bool:
        """Return whether a job exists and is open. Published outputs never change."""
        async with self._pool.connection() as connection:
            return await _jobs.accepts_outputs(connection, id=job_id) is not None

    async def list_jobs(self, query: JobQuery, *, owner: str | None, before: UUID | None, limit: int) -> list[Job]:
        """List up to `limit` jobs older than the job `before`, newest first. With an owner, only that owner's."""
        return await self._pool.fetch(_jobs.list_jobs, Job, **asdict(query), owner=owner, before=before, limit=limit)

    async def set_upload(
        self, job_id: UUID, *, file_name: str, size_bytes: int, content_type: str, max_bytes: int = 0
    ) -> Job | None:
        """Store the announced upload. Return None when the job awaits none.

        Raises:
            QuotaExceededError: the owner's files would exceed `max_bytes` (0: no limit).
        """
        async with self._pool.connection() as connection, transaction_if(connection, max_bytes):
            row = await _jobs.set_upload(
                connection, id=job_id, file_name=file_name, size_bytes=size_bytes, content_type=content_type
            )
            if row is not None and max_bytes:
                await enforce_quota(connection, row["owner"], max_bytes=max_bytes)
        return _job_or_none(row)

    async def enqueue_uploaded(self, job_id: UUID, *, file_name: str, size_bytes: int, sha256: str) -> bool:
        """Queue a job after its upload was published. Return False when the job does not await this file."""
        async with self._pool.connection() as connection:
            row = await _jobs.enqueue_uploaded(
                connection, id=job_id, file_name=file_name, size_bytes=size_bytes, sha256=sha256
            )
        return row is not None

    async def request_cancel(self, job_id: UUID, reason: str | None) -> Job | None:
        """Cancel a job, or ask its worker to stop. Return None when it has ended, or was asked before.

        Two statements.
        """
        async with self._pool.connection() as connection:
            if not await cancel_jobs(connection, [job_id], reason):
                return None
            return _job_or_none(await _jobs.get_job(connection, id=job_id, owner=None))

    async def retry_failed(self, job_id: UUID, *, max_open: int = 0) -> Job | None:
        """Requeue a failed job. Return None when it has not failed, or an open job has its dedup key.

        Raises:
            QuotaExceededError: the owner's open jobs would exceed `max_open` (0: no limit).
        """
        try:
            async with self._pool.connection() as connection, transaction_if(connection, max_open):
                job = _job_or_none(await _jobs.retry_failed(connection, id=job_id))
                if job is not None and max_open:
                    await enforce_quota(connection, job.owner, max_jobs=max_open)
                return job
        except psycopg.errors.UniqueViolation:
            # A job with the same key was created concurrently.
            return None

    async def list_parents(self, job_id: UUID) -> list[Parent]:
        """Return the parents of a job, settled ones too."""
        return await self._pool.fetch(_jobs.list_parents, Parent, id=job_id)

    async def list_ended_leases(self, job_id: UUID, *, limit: int) -> list[EndedLease]:
        """Return the latest ended leases of a job, newest first."""
        return await self._pool.fetch(_jobs.list_ended_leases, EndedLease, job_id=job_id, limit=limit)

    async def list_events(self, job_id: UUID, *, after: int, limit: int) -> list[JobEvent]:
        """Return up to `limit` events of a job with an id above `after`, in order."""
        return await self._pool.fetch(_jobs.list_events, JobEvent, job_id=job_id, after=after, limit=limit)

    async def list_events_for_listeners(self, places: Mapping[UUID, int], *, limit: int) -> list[JobEvent]:
        """Return new events of many jobs, each after its own position, up to `limit` per job."""
        return await self._pool.fetch(
            _jobs.list_events_for_listeners,
            JobEvent,
            job_ids=list(places.keys()),
            afters=list(places.values()),
            limit=limit,
        )

    async def list_valid_tokens(self) -> dict[bytes, WorkerToken]:
        """Return every worker token that is not revoked, by the SHA-256 of its secret."""
        rows = await self._pool.fetch_rows(_jobs.list_valid_worker_tokens)
        return {bytes(row["token_sha256"]): WorkerToken.from_row(row) for row in rows}

    async def add_worker_token(self, token_id: UUID, name: str, token_sha256: bytes) -> bool:
        """Register a token. Return False when it exists already."""
        added = await self._pool.execute(_jobs.insert_worker_token, id=token_id, name=name, token_sha256=token_sha256)
        return added == 1

    async def list_worker_tokens(self) -> list[WorkerToken]:
        """Return all tokens, newest first."""
        return await self._pool.fetch(_jobs.list_worker_tokens, WorkerToken)

    async def revoke_worker_token(self, token_id: UUID) -> bool:
        """Revoke a token. Return False when there is no such valid token."""
        return await self._pool.execute(_jobs.revoke_worker_token, id=token_id) == 1
