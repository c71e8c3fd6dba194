"""Leases in PostgreSQL: claim, renew, complete, fail. Every write is guarded by the lease that the caller shows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from geo_jobs_api.database import Pool
from geo_jobs_api.jobs import AttemptBudget, ErrorClass, FailureDecision, JobState, LeaseToken, decide_failure
from geo_jobs_api.records import FailureOutcome, Lease, LeaseOutcome, PreviousError, Renewal
from geo_jobs_api.store import fetch_all, load_queries

_leases = load_queries("leases.sql")
_PREVIOUS_ERRORS = 5


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """Who wants how much of what.

    Attributes:
        claim_id: fresh for each claim; the same one gets the same leases again.
        task_types: what the worker can do.
        most: how many jobs at most.
        lease_key: the unguessable part of the leases that this claim gets.
        first_lease_seconds: how long the leases last without a sign of life.
    """

    claim_id: UUID
    worker_id: str
    worker_name: str
    task_types: tuple[str, ...]
    most: int
    lease_key: str
    first_lease_seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker has come: percent from 0 to 100."""

    percent: float
    stage: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Results:
    """What a completed job leaves: outputs as JSON objects, metadata, and seconds by stage."""

    outputs: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, Any]
    timings: Mapping[str, float]


class LeaseStore:
    """Everything that workers do with the queue."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_claimed(self, claim_id: UUID) -> list[Lease]:
        """The leases that this claim got before, as far as they are still held."""
        async with self._pool.connection() as connection:
            return [Lease.from_row(row) for row in await fetch_all(_leases.list_claimed(connection, claim_id=claim_id))]

    async def claim_jobs(self, request: ClaimRequest) -> list[Lease]:
        """Lease up to `request.most` waiting jobs, in queue order.

        One statement for task types without a limit. Types with `max_concurrent_runs` are counted and claimed while
        their rows are locked, which is what makes the limit exact.
        """
        async with self._pool.connection() as connection:
            limited = await fetch_all(_leases.list_limited_task_types(connection))
            if not {row["name"] for row in limited}.intersection(request.task_types):
                rooms = dict.fromkeys(request.task_types, request.most)
                return await self._claim(connection, request, rooms, limits_locked=False)
            async with connection.transaction():
                return await self._claim(
                    connection, request, await self._lock_rooms(connection, request), limits_locked=True
                )

    @staticmethod
    async def _lock_rooms(connection: AsyncConnection[DictRow], request: ClaimRequest) -> dict[str, int]:
        task_types = list(request.task_types)
        limits = {
            row["name"]: row["max_concurrent_runs"]
            for row in await fetch_all(_leases.lock_limits(connection, task_types=task_types))
        }
        # A statement of its own: READ COMMITTED gives it a snapshot taken after the locks were had.
        running = {
            row["task_type"]: row["running"]
            for row in await fetch_all(_leases.count_running(connection, task_types=list(limits)))
        }
        rooms = dict.fromkeys(task_types, request.most)
        for name, limit in limits.items():
            rooms[name] = max(0, min(request.most, limit - running.get(name, 0)))
        return rooms

    @staticmethod
    async def _claim(
        connection: AsyncConnection[DictRow], request: ClaimRequest, rooms: Mapping[str, int], *, limits_locked: bool
    ) -> list[Lease]:
        rows = await fetch_all(
            _leases.claim_jobs(
                connection,
                task_types=list(rooms),
                rooms=list(rooms.values()),
                limits_locked=limits_locked,
                most=request.most,
                claim_id=request.claim_id,
                lease_key=request.lease_key,
                first_lease_seconds=request.first_lease_seconds,
                worker_id=request.worker_id,
                worker_name=request.worker_name,
            )
        )
        return [Lease.from_row(row) for row in rows]

    async def release_claim(self, job_id: UUID, token: LeaseToken) -> None:
        """Give back a job that its claimer never heard of; nothing happens if it was heard of."""
        async with self._pool.connection() as connection:
            await _leases.release_claim(connection, id=job_id, lease_seq=token.lease_seq, lease_key=token.lease_key)

    async def list_previous_errors(self, job_ids: Sequence[UUID]) -> dict[UUID, list[PreviousError]]:
        """The latest errors of each job, the newest first."""
        async with self._pool.connection() as connection:
            rows = await fetch_all(
                _leases.list_previous_errors(connection, job_ids=list(job_ids), most=_PREVIOUS_ERRORS)
            )
        errors: dict[UUID, list[PreviousError]] = {}
        for row in rows:
            errors.setdefault(row["job_id"], []).append(PreviousError.from_row(row))
        return errors

    async def find_lease(self, job_id: UUID, token: LeaseToken) -> Lease | None:
        """The job under this lease; None when it is not held any more."""
        async with self._pool.connection() as connection:
            row = await _leases.get_lease(connection, id=job_id, lease_seq=token.lease_seq, lease_key=token.lease_key)
        return None if row is None else Lease.from_row(row)

    async def find_outcome(self, job_id: UUID, token: LeaseToken) -> LeaseOutcome | None:
        """How this lease ended; None when there is no such job."""
        async with self._pool.connection() as connection:
            row = await _leases.get_lease_outcome(
                connection, id=job_id, lease_seq=token.lease_seq, lease_key=token.lease_key
            )
        return None if row is None else LeaseOutcome.from_row(row)

    async def renew_lease(
        self, job_id: UUID, token: LeaseToken, *, lease_seconds: float, progress: Progress | None = None
    ) -> Renewal | None:
        """Note a sign of life; None when the lease is not held any more."""
        async with self._pool.connection() as connection:
            row = await _leases.renew_lease(
                connection,
                id=job_id,
                lease_seq=token.lease_seq,
                lease_key=token.lease_key,
                lease_seconds=lease_seconds,
                percent=None if progress is None else progress.percent,
                stage=None if progress is None else progress.stage,
                message=None if progress is None else progress.message,
            )
        return None if row is None else Renewal.from_row(row)

    async def complete_job(
        self, job_id: UUID, token: LeaseToken, results: Results, *, request_digest: bytes
    ) -> JobState | None:
        """Publish the outputs; the state that follows, or None when the lease is not held any more."""
        async with self._pool.connection() as connection:
            row = await _leases.complete_job(
                connection,
                id=job_id,
                lease_seq=token.lease_seq,
                lease_key=token.lease_key,
                request_digest=request_digest,
                outputs=Jsonb([dict(output) for output in results.outputs]),
                metadata=Jsonb(dict(results.metadata)),
                timings=Jsonb(dict(results.timings)),
            )
        return None if row is None else JobState(row["state"])

    async def decide_failure(
        self, job_id: UUID, token: LeaseToken, error_class: ErrorClass, retry_after_seconds: float | None
    ) -> FailureDecision | None:
        """What a failure of this class would lead to; None when the lease is not held any more."""
        async with self._pool.connection() as connection:
            row = await _leases.get_lease(connection, id=job_id, lease_seq=token.lease_seq, lease_key=token.lease_key)
        if row is None:
            return None
        lease = Lease.from_row(row)
        return decide_failure(
            error_class,
            AttemptBudget(lease.attempt, lease.job.max_attempts, row["backoff_seconds"]),
            retry_after_seconds,
            random.SystemRandom(),
        )

    async def fail_job(
        self,
        job_id: UUID,
        token: LeaseToken,
        *,
        request_digest: bytes,
        decision: FailureDecision,
        error: Mapping[str, Any],
    ) -> FailureOutcome | None:
        """End the lease with a failure; None when it is not held any more."""
        async with self._pool.connection() as connection:
            row = await _leases.fail_job(
                connection,
                id=job_id,
                lease_seq=token.lease_seq,
                lease_key=token.lease_key,
                request_digest=request_digest,
                next_state=decision.next_state.value,
                delay_seconds=decision.delay_seconds,
                spends_attempt=decision.spends_attempt,
                error=Jsonb(dict(error)),
            )
        return None if row is None else FailureOutcome.from_row(row)
