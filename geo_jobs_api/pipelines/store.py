"""Pipelines in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import fetch_all, load_queries
from geo_jobs_api.jobs.creation_store import NewJob, insert_jobs
from geo_jobs_api.pipelines.schemas import PipelineJobView, PipelineSummary
from geo_jobs_api.queue.job_store import cancel_jobs, enforce_quota
from geo_jobs_api.queue.records import Pipeline

_pipelines = load_queries("pipelines.sql")


@dataclass(frozen=True, slots=True)
class NewPipeline:
    """A new pipeline. `stages`: stages with the names of their jobs."""

    id: UUID
    owner: str
    name: str
    stages: Sequence[Mapping[str, object]]


class IncompletePipelineError(Exception):
    """Some jobs were not created: a task type is unknown, or an idempotency key was used before."""


class PipelineStore:
    """Everything about pipelines."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_pipeline(self, new: NewPipeline, jobs: Sequence[NewJob], *, max_open: int = 0) -> None:
        """Create a pipeline with its jobs, parents before children. `max_open`: as in `CreationStore.create_jobs`.

        Raises:
            IncompletePipelineError, QuotaExceededError: nothing was created.
        """
        async with self._pool.connection() as connection, connection.transaction():
            await insert_pipeline(connection, new, jobs)
            if max_open:
                await enforce_quota(connection, new.owner, max_jobs=max_open)

    async def find_pipeline(self, pipeline_id: UUID, owner: str | None = None) -> Pipeline | None:
        """Return one pipeline. With an owner, only that owner's."""
        return await self._pool.fetch_one(_pipelines.get_pipeline, Pipeline, id=pipeline_id, owner=owner)

    async def list_pipelines(self, *, owner: str | None, before: UUID | None, limit: int) -> list[PipelineSummary]:
        """Return up to `limit` pipelines older than the pipeline `before`, newest first."""
        return await self._pool.fetch(
            _pipelines.list_pipelines, PipelineSummary, owner=owner, before=before, limit=limit
        )

    async def list_jobs(self, pipeline_id: UUID) -> list[PipelineJobView]:
        """Return the jobs of a pipeline, parents before children."""
        return await self._pool.fetch(_pipelines.list_jobs_of_pipeline, PipelineJobView, id=pipeline_id)

    async def cancel_pipeline(self, pipeline_id: UUID, reason: str | None) -> int:
        """Cancel all open jobs, or ask their workers to stop. Return their number."""
        async with self._pool.connection() as connection:
            jobs = [row["id"] for row in await fetch_all(_pipelines.list_open_jobs(connection, id=pipeline_id))]
            return len(await cancel_jobs(connection, jobs, reason))


async def insert_pipeline(connection: AsyncConnection[DictRow], new: NewPipeline, jobs: Sequence[NewJob]) -> None:
    """As `PipelineStore.create_pipeline`, in the caller's transaction."""
    await _pipelines.insert_pipeline(
        connection, id=new.id, owner=new.owner, name=new.name, stages=Jsonb(list(new.stages))
    )
    try:
        created = await insert_jobs(connection, jobs, parents_of=new.owner)
    except psycopg.errors.ForeignKeyViolation as error:
        # A job depends on one that was not created.
        raise IncompletePipelineError from error
    if len(created) < len(jobs):
        raise IncompletePipelineError
