"""Leases in PostgreSQL: claim, renew, complete, fail. Each write is guarded by the caller's fencing token."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic_core import to_json

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import Row, fetch_all, load_queries
from geo_jobs_api.queue.lease_records import (
    NOTHING_WITHHELD,
    FailureOutcome,
    Lease,
    LeaseOutcome,
    PreviousError,
    Renewal,
    WithheldJobs,
)
from geo_jobs_api.queue.lease_requests import ClaimRequest, ClaimResult, Completion, LeaseRenewal
from geo_jobs_api.queue.rules import (
    FAILURE_POLICIES,
    MAX_FREE_TROUBLES,
    WORKER_TROUBLE,
    AttemptBudget,
    ErrorClass,
    FailureDecision,
    InputKind,
    JobState,
    LeaseToken,
    ReportedFailure,
    decide_failure,
    find_source_bytes,
)

_leases = load_queries("leases.sql")
_PREVIOUS_ERRORS = 5
# Counting and claiming take a millisecond or two.
_LOCK_WAIT_MILLISECONDS = 200
# A failed job avoids its worker for this long, if another worker has recently asked for such jobs. Workers are stored
# once a minute and ask every half minute.
_AVOID_SECONDS = 10.0
_LIVE_SECONDS = 100.0


def _admission(requests: Sequence[ClaimRequest]) -> dict[str, object]:
    takes = requests[0].capabilities
    return {
        "task_types": list(requests[0].task_types),
        "worker_ids": [request.worker_id for request in requests],
        "max_file_size": takes.max_file_size,
        "source_hosts": takes.host_patterns,
        "memory_mb": takes.memory_mb,
    }


def _parameters(requests: Sequence[ClaimRequest], *, limits_locked: bool) -> dict[str, object]:
    return _admission(requests) | {
        "limits_locked": limits_locked,
        "limit": sum(request.max_jobs for request in requests),
        "claim_ids": [request.claim_id for request in requests],
        "lease_secrets": [request.lease_secret for request in requests],
        "worker_names": [request.worker_name for request in requests],
        "shares": [request.max_jobs for request in requests],
        "first_lease_seconds": requests[0].first_lease_seconds,
    }


def _held(job_id: UUID, token: LeaseToken) -> dict[str, UUID | int | str]:
    return {"id": job_id, "lease_seq": token.lease_seq, "lease_secret": token.lease_secret}


class LeaseStore:
    """All statements of workers on the queue.

    Args:
        pool: connections to the database.
        batched: connections for batches of claims, renewals and completions. They keep plans. Defaults to `pool`.
    """

    def __init__(self, pool: Pool, batched: Pool | None = None) -> None:
        self._pool = pool
        self._batched = batched or pool
        # Last known limits, and whether each is a rate. With outdated limits, a claim takes too few jobs at worst.
        self._limited: dict[str, bool] = {}

    async def claim_jobs(self, requests: Sequence[ClaimRequest]) -> list[ClaimResult]:
        """Lease waiting jobs to claims of one kind, in queue order, first come first served.

        A claim id with held leases gets those again. At most 200 jobs are leased.
        """
        async with self._batched.connection() as connection:
            rows, is_held_back, withheld = await self._take(connection, requests)
            avoided = withheld.avoided_workers
            served = {row["claim_id"] for row in rows}
            unaffected = [one for one in requests if one.claim_id not in served and one.worker_id not in avoided]
            if avoided and unaffected and len(unaffected) < len(requests):
                # Jobs that one of these workers has just failed were withheld from the whole statement.
                more, held_back_too, withheld_again = await self._take(connection, unaffected)
                rows, is_held_back = [*rows, *more], is_held_back or held_back_too
                withheld = replace(withheld, is_unfit=withheld_again.is_unfit)
        by_claim: dict[UUID, list[Row]] = {}
        for row in rows:
            by_claim.setdefault(row["claim_id"], []).append(row)
        has_more = len(rows) >= sum(request.max_jobs for request in requests)
        return [
            ClaimResult(
                [Lease.from_row(row) for row in own],
                is_replay=any(not row["is_new"] for row in own),
                has_more=has_more,
                is_held_back=is_held_back and not has_more,
                is_unfit=withheld.is_unfit,
                avoided_seconds=withheld.avoided_seconds if request.worker_id in avoided else None,
            )
            for request, own in ((request, by_claim.get(request.claim_id, [])) for request in requests)
        ]

    async def _take(
        self, connection: AsyncConnection[DictRow], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Row], bool, WithheldJobs]:
        """Return the leased jobs, whether time alone may bring more, and the withheld jobs.

        One statement for task types without a limit. Types with a limit on concurrent runs or on claims per period are
        counted and claimed while their rows are locked, which makes the limits exact.
        """
        task_types = set(requests[0].task_types)
        total = sum(request.max_jobs for request in requests)
        rows: list[Row] = []
        is_held_back = False
        withheld: WithheldJobs | None = None
        if not self._limited.keys() & task_types:
            rows = await fetch_all(_leases.claim_jobs(connection, **_parameters(requests, limits_locked=False)))
            if len(rows) < total:
                # The missing jobs may belong to a type with a new limit.
                withheld = await self._find_withheld_jobs(connection, requests)
        if not rows and (limited := self._limited.keys() & task_types):
            rows, is_held_back = await self._claim_limited(connection, requests)
            is_held_back |= any(self._limited[name] for name in limited)
            withheld = None
        if withheld is None and len(rows) < total:
            withheld = await self._find_withheld_jobs(connection, requests)
        return rows, is_held_back, withheld or NOTHING_WITHHELD

    async def _find_withheld_jobs(
        self, connection: AsyncConnection[DictRow], requests: Sequence[ClaimRequest]
    ) -> WithheldJobs:
        withheld = WithheldJobs.from_row(await _leases.find_withheld_jobs(connection, **_admission(requests)))
        self._limited = withheld.limited
        return withheld

    async def _claim_limited(
        self, connection: AsyncConnection[DictRow], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Row], bool]:
        """Lock, count, claim and commit in one trip. If the lock stays busy, claim types without limits only."""
        try:
            # The claim is a separate statement, since READ COMMITTED then gives it a snapshot taken after the lock.
            async with connection.pipeline(), connection.transaction():
                await connection.execute(_leases.set_lock_timeout.sql, {"milliseconds": str(_LOCK_WAIT_MILLISECONDS)})
                await connection.execute(_leases.lock_limits.sql, {"task_types": list(requests[0].task_types)})
                cursor = await connection.execute(_leases.claim_jobs.sql, _parameters(requests, limits_locked=True))
            return list(await cursor.fetchall()), False
        except psycopg.errors.LockNotAvailable:
            # A hung process holds the lock. Types without limits must not wait for it.
            return await fetch_all(_leases.claim_jobs(connection, **_parameters(requests, limits_locked=False))), True

    async def release_claim(self, job_id: UUID, token: LeaseToken) -> None:
        """Return a job after its claimer has disconnected. A no-op if the worker has sent a heartbeat."""
        async with self._pool.connection() as connection:
            await _leases.release_claim(connection, **_held(job_id, token))

    async def list_previous_errors(self, job_ids: Sequence[UUID]) -> dict[UUID, list[PreviousError]]:
        """Return the latest errors of each job, newest first."""
        rows = await self._pool.fetch_rows(_leases.list_previous_errors, job_ids=list(job_ids), limit=_PREVIOUS_ERRORS)
        errors: dict[UUID, list[PreviousError]] = {}
        for row in rows:
            errors.setdefault(row["job_id"], []).append(PreviousError.from_row(row))
        return errors

    async def find_lease(self, job_id: UUID, token: LeaseToken) -> Lease | None:
        """Return the job under this lease. None: the lease has ended."""
        return await self._pool.fetch_one(_leases.get_lease, Lease, **_held(job_id, token))

    async def find_outcome(self, job_id: UUID, token: LeaseToken) -> LeaseOutcome | None:
        """Return the end of this lease. None: no such job."""
        return await self._pool.fetch_one(_leases.get_lease_outcome, LeaseOutcome, **_held(job_id, token))

    async def renew_leases(self, renewals: Sequence[LeaseRenewal]) -> list[Renewal | None]:
        """Renew the leases of several jobs. None: the lease has ended."""
        renewed: dict[int, Renewal] = {}
        waiting = list(enumerate(renewals))
        async with self._batched.connection() as connection:
            while waiting:
                # A statement renews each lease once. A heartbeat and progress of one job may arrive together.
                batch = {one.job_id: (place, one) for place, one in reversed(waiting)}
                chosen = [one for _, one in batch.values()]
                rows = await fetch_all(
                    _leases.renew_leases(
                        connection,
                        ids=[one.job_id for one in chosen],
                        lease_seqs=[one.token.lease_seq for one in chosen],
                        lease_secrets=[one.token.lease_secret for one in chosen],
                        lease_seconds=chosen[0].lease_seconds,
                        updates=Jsonb([one.update for one in chosen], to_json),
                    )
                )
                places = [place for place, _ in batch.values()]
                renewed |= {places[row["place"] - 1]: Renewal.from_row(row) for row in rows}
                waiting = [item for item in waiting if item[0] not in places]
        return [renewed.get(place) for place in range(len(renewals))]

    async def complete_jobs(self, completions: Sequence[Completion]) -> list[JobState | None]:
        """Publish the outputs of several jobs.

        Returns:
            The new state of each, or None when its lease has ended.
        """
        rows = await self._batched.fetch_rows(
            _leases.complete_jobs,
            ids=[one.job_id for one in completions],
            lease_seqs=[one.token.lease_seq for one in completions],
            lease_secrets=[one.token.lease_secret for one in completions],
            request_digests=[one.request_digest for one in completions],
            results=Jsonb([one.results for one in completions], to_json),
        )
        # Ordinals start at 1, as in SQL.
        states = {row["place"]: JobState(row["state"]) for row in rows}
        return [states.get(place) for place in range(1, len(completions) + 1)]

    async def decide_failure(
        self, job_id: UUID, token: LeaseToken, failure: ReportedFailure, *, max_file_size: int
    ) -> FailureDecision | None:
        """Return the consequence of a failure. None: the lease has ended."""
        error_class = failure.error_class
        async with self._pool.connection() as connection:
            row = await _leases.get_lease(connection, **_held(job_id, token))
            same_class_failures = 0
            if FAILURE_POLICIES[error_class].max_attempts is not None:
                failures = await _leases.count_failures(connection, id=job_id, key="class", value=error_class.value)
                same_class_failures = failures["failures"]
            if error_class is ErrorClass.INTERRUPTED and failure.code == WORKER_TROUBLE:
                before = await _leases.count_failures(connection, id=job_id, key="code", value=failure.code)
                if before["failures"] >= MAX_FREE_TROUBLES:
                    # After trouble on so many workers, the cause may be the job.
                    error_class = ErrorClass.TRANSIENT
        if row is None:
            return None
        lease = Lease.from_row(row)
        if lease.job.input_kind is InputKind.URL:
            found = find_source_bytes(failure, lease.job.input_size_bytes, max_file_size)
            if found is not None:
                return FailureDecision(JobState.QUEUED, 0.0, uses_attempt=False, source_bytes=found)
        return decide_failure(
            error_class,
            AttemptBudget(lease.attempt, lease.job.max_attempts, row["backoff_seconds"], same_class_failures),
            failure.retry_after_seconds,
            random.SystemRandom(),
        )

    async def fail_job(
        self,
        job_id: UUID,
        token: LeaseToken,
        *,
        request_digest: bytes,
        decision: FailureDecision,
        error: Mapping[str, object],
    ) -> FailureOutcome | None:
        """End the lease with a failure. Return None when it has ended already."""
        return await self._pool.fetch_one(
            _leases.fail_job,
            FailureOutcome,
            **_held(job_id, token),
            request_digest=request_digest,
            next_state=decision.next_state.value,
            delay_seconds=decision.delay_seconds,
            uses_attempt=decision.uses_attempt,
            source_bytes=decision.source_bytes,
            error=Jsonb(dict(error)),
            avoid_seconds=_AVOID_SECONDS,
            live_seconds=_LIVE_SECONDS,
        )
