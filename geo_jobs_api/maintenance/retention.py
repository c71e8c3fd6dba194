"""Retention of ended jobs with their events and objects, and of unfinished uploads.

Objects are deleted before rows. A crash in between leaves a row for the next round, never an unknown object. Small
batches keep locks short.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import fetch_all, load_queries
from geo_jobs_api.fields import Model
from geo_jobs_api.log import get_logger
from geo_jobs_api.periodic import Periodic
from geo_jobs_api.queue.rules import FINAL_STATES, JobState, job_prefix
from geo_jobs_api.storage.storage import Storage

_log = get_logger(__name__)
_retention = load_queries("retention.sql")
_maintenance = load_queries("maintenance.sql")
_operators = load_queries("operators.sql")
_JOBS_PER_BATCH = 50
_OBJECTS_PER_BATCH = 500
# Pause between two batches, so that removing a year of jobs leaves the disk to others.
_BATCH_PAUSE_SECONDS = 0.2
# A job's row exists before its first object.
_ABANDONED_SECONDS = 86_400.0
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Retention periods, in seconds.

    Attributes:
        ended_seconds: by the state in which a job ended. A missing state is kept forever.
        unused_seconds: jobs without their upload. None: forever.
        interval_seconds: between two rounds.
        renewal_seconds: age at which webhooks of all owners pause. None: never.
    """

    ended_seconds: Mapping[JobState, float]
    unused_seconds: float | None
    interval_seconds: float
    renewal_seconds: float | None = None


class RetentionReport(Model):
    """The removals of one round."""

    jobs_removed: int
    unused_cancelled: int
    broken_uploads_removed: int

    @property
    def is_empty(self) -> bool:
        """Return whether nothing was removed."""
        return not (self.unused_cancelled or self.jobs_removed or self.broken_uploads_removed)

    def sentence(self) -> str:
        """Return the report as a sentence."""
        return (
            f"Removed {self.jobs_removed} ended jobs with their events and objects, and {self.broken_uploads_removed}"
            f" unfinished uploads, cancelled {self.unused_cancelled} jobs without upload."
        )


class Retention:
    """Removes expired data. Any number of processes may do this concurrently.

    Args:
        pool: connections to the database.
        storage: the object store.
        policy: the periods.
    """

    def __init__(self, pool: Pool, storage: Storage, policy: RetentionPolicy) -> None:
        self._pool = pool
        self._storage = storage
        self._policy = policy

    async def run(self) -> None:
        """Work until cancelled."""
        # Uploads of a killed process, which has probably been restarted.
        with contextlib.suppress(OSError):
            await self._storage.remove_broken_uploads()
        interval = self._policy.interval_seconds
        await Periodic(
            self._run_round,
            "retention_failed",
            retry_seconds=interval,
            first_seconds=interval / 2,
            jitter_seconds=interval,
        ).run()

    async def _run_round(self) -> float:
        report = await self.run_once()
        if not report.is_empty:
            _log.info("retention_done", summary=report.sentence())
        return self._policy.interval_seconds / 2

    async def run_once(self, ended_seconds: float | None = None) -> RetentionReport:
        """Run one round, until nothing is left to remove.

        Args:
            ended_seconds: age of the ended jobs to remove. None: the policy's.
        """
        async with self._pool.connection() as connection:
            await _maintenance.delete_expired_rate_claims(connection)
            await _operators.delete_stale_workers(connection, seconds=_DAY_SECONDS)
        kept = self._policy.ended_seconds
        if ended_seconds is not None:
            kept = dict.fromkeys(FINAL_STATES, ended_seconds)
        report = RetentionReport(
            unused_cancelled=await self._repeat(self._cancel_unused),
            jobs_removed=await self._repeat(partial(self._delete_jobs, kept)),
            broken_uploads_removed=await self._storage.remove_broken_uploads(),
        )
        await self._repeat(self._remove_history)
        await self._pause_unrenewed_webhooks()
        return report

    async def _repeat(self, batch: Callable[[], Awaitable[int]]) -> int:
        total = 0
        while (count := await batch()) > 0:
            total += count
            await asyncio.sleep(_BATCH_PAUSE_SECONDS)
        return total

    async def _remove_history(self) -> int:
        """Remove unreferenced history: empty pipelines, old deliveries, old decisions of schedules."""
        async with self._pool.connection() as connection:
            pipelines: int = await _retention.delete_empty_pipelines(connection, limit=_OBJECTS_PER_BATCH)
            fires: int = await _retention.delete_old_fires(connection, limit=_OBJECTS_PER_BATCH)
            deliveries: int = await _retention.delete_old_deliveries(connection, limit=_OBJECTS_PER_BATCH)
        return pipelines + fires + deliveries

    async def _pause_unrenewed_webhooks(self) -> None:
        if self._policy.renewal_seconds is None:
            return
        rows = await self._pool.fetch_rows(_retention.pause_unrenewed_webhooks, seconds=self._policy.renewal_seconds)
        for row in rows:
            _log.warning("webhook_lapsed", webhook_id=str(row["id"]), owner=row["owner"])

    async def _cancel_unused(self) -> int:
        if self._policy.unused_seconds is None:
            return 0
        async with self._pool.connection() as connection:
            rows = _retention.cancel_unused(
                connection, unused_seconds=self._policy.unused_seconds, limit=_JOBS_PER_BATCH
            )
            return len(await fetch_all(rows))

    async def _delete_jobs(self, kept: Mapping[JobState, float]) -> int:
        async with self._pool.connection() as connection, connection.transaction():
            marked = await fetch_all(
                _retention.begin_purge(
                    connection,
                    states=[state.value for state in kept],
                    seconds=list(kept.values()),
                    limit=_JOBS_PER_BATCH,
                )
            )
            parents = await fetch_all(_retention.keep_parents(connection, ids=[row["id"] for row in marked]))
        ids = list({row["id"] for row in marked} - {row["id"] for row in parents})
        if not ids:
            return 0
        await self.remove_objects(ids)
        async with self._pool.connection() as connection:
            removed: int = await _retention.delete_jobs(connection, ids=ids)
        return removed

    async def find_lost_objects(self) -> list[UUID]:
        """Return unknown jobs with objects. An upload may be published while its job is being removed.

        They are removed on request only, since every object is unknown to a service with the wrong database.
        """
        lost: list[UUID] = []
        after = ""
        while names := await self._storage.list_jobs(after, _OBJECTS_PER_BATCH, _ABANDONED_SECONDS):
            after = names[-1]
            ids = [job_id for name in names if (job_id := _as_id(name)) is not None]
            rows = await self._pool.fetch_rows(_retention.list_existing_jobs, ids=ids)
            known = {row["id"] for row in rows}
            lost += [job_id for job_id in ids if job_id not in known]
        return lost

    async def remove_objects(self, job_ids: Iterable[UUID]) -> None:
        """Remove all objects of these jobs."""
        for job_id in job_ids:
            await self._storage.delete_prefix(job_prefix(job_id))


def _as_id(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None
