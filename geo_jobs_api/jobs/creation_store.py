"""Creates jobs with their dependencies, one statement per request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow
from pydantic_core import to_json

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import Row, fetch_all, load_queries
from geo_jobs_api.hosts import parse_web_address
from geo_jobs_api.queue.job_store import enforce_quota
from geo_jobs_api.queue.records import Job
from geo_jobs_api.queue.rules import InputKind

# The parameters of so few jobs take less time than a thread.
_FEW = 10
_jobs = load_queries("jobs.sql")


@dataclass(frozen=True, slots=True)
class Dependency:
    """A parent job, and the effect of its failure: `cancel`, `run` or `hold`."""

    parent_id: UUID
    on_parent_failure: str = "cancel"


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a job's input.

    Attributes:
        kind: `upload` waits for a file, `none` needs nothing. None: the task type decides.
        url: for kind `url`.
        file_name: name of the download, for kind `url`.
        condition: conditional request (`etag`, `lastModified`), so that an unchanged file is not downloaded again.
        parent_id: the job with the output, for kind `output`.
        output: a suffix or a name, for kind `output`.
    """

    kind: InputKind | None = None
    url: str | None = None
    file_name: str | None = None
    condition: Mapping[str, object] | None = None
    parent_id: UUID | None = None
    output: str | None = None

    @property
    def host(self) -> str | None:
        """Return the URL's host, for kind `url`."""
        return None if self.url is None else parse_web_address(self.url).host


@dataclass(frozen=True, slots=True)
class PipelinePosition:
    """The position of a job in its pipeline."""

    pipeline_id: UUID
    stage: str
    job: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """A new job. The priority defaults to that of its task type."""

    id: UUID
    owner: str
    task_type: str
    priority: int | None
    input_payload: Mapping[str, object]
    idempotency_key: str | None
    request_digest: bytes
    source: Source = field(default_factory=Source)
    dependencies: tuple[Dependency, ...] = ()
    dedup_key: str | None = None
    run_at: datetime | None = None
    notify_at: datetime | None = None
    place: PipelinePosition | None = None
    schedule_id: UUID | None = None

    def as_row(self, number: int) -> dict[str, object]:
        """Return the columns."""
        place = self.place
        return {
            "place": number,
            "id": self.id,
            "owner": self.owner,
            "task_type": self.task_type,
            "priority": self.priority,
            "input_payload": self.input_payload,
            "idempotency_key": self.idempotency_key,
            "request_digest": self.request_digest.hex(),
            "dedup_key": self.dedup_key,
            "input_kind": self.source.kind,
            "input_file_name": self.source.file_name,
            "source_url": self.source.url,
            "source_host": self.source.host,
            "source_condition": self.source.condition,
            "input_parent_id": self.source.parent_id,
            "input_output": self.source.output,
            "pending_parents": len(self.dependencies),
            "run_at": self.run_at,
            "notify_at": self.notify_at,
            "schedule_id": self.schedule_id,
            "pipeline_id": None if place is None else place.pipeline_id,
            "pipeline_stage": None if place is None else place.stage,
            "pipeline_job": None if place is None else place.job,
        }


class ParentNotFoundError(Exception):
    """A parent job does not exist, or belongs to another owner."""

    def __init__(self, parent_id: UUID) -> None:
        super().__init__(str(parent_id))
        self.parent_id = parent_id


class CreationStore:
    """Creates jobs."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_jobs(
        self, new_jobs: Sequence[NewJob], *, parents_of: str | None = None, max_open: int = 0
    ) -> dict[UUID, Job]:
        """Create jobs in one transaction.

        Args:
            new_jobs: the jobs. A parent may be an earlier one of these.
            parents_of: required owner of other parents. None: any.
            max_open: limit of their owner's open jobs. 0: no limit.

        Returns:
            The new jobs. Jobs are missing if their task type is unknown, their idempotency key was used before, or an
            open job has their dedup key.

        Raises:
            ParentNotFoundError, QuotaExceededError: nothing was created.
        """
        async with self._pool.connection() as connection:
            if not max_open and not any(new.dependencies for new in new_jobs):
                return await insert_jobs(connection, new_jobs, parents_of=parents_of)
            async with connection.transaction():
                created = await insert_jobs(connection, new_jobs, parents_of=parents_of)
                if max_open and created:
                    await enforce_quota(connection, new_jobs[0].owner, max_jobs=max_open)
                return created

    async def find_by_idempotency_keys(self, owner: str, keys: Sequence[str]) -> dict[str, Job]:
        """Return the jobs of earlier requests with these keys."""
        rows = await self._pool.fetch_rows(_jobs.list_jobs_by_idempotency_key, owner=owner, idempotency_keys=list(keys))
        return {row["idempotency_key"]: Job.from_row(row) for row in rows}

    async def find_jobs(self, ids: Sequence[UUID], owner: str | None) -> list[Job]:
        """Return those of the jobs that exist. With an owner, only that owner's."""
        jobs = await self._pool.fetch(_jobs.list_jobs_by_id, Job, ids=list(ids))
        return [job for job in jobs if owner is None or job.owner == owner]

    async def find_deduplicated(self, new_jobs: Sequence[NewJob]) -> dict[tuple[str, str | None], Job]:
        """Return the open jobs with the task types and dedup keys of these jobs."""
        jobs = await self._pool.fetch(
            _jobs.list_deduplicated,
            Job,
            owners=[new.owner for new in new_jobs],
            task_types=[new.task_type for new in new_jobs],
            dedup_keys=[new.dedup_key for new in new_jobs],
        )
        return {(job.task_type, job.dedup_key): job for job in jobs}

    async def find_task_types(self, names: Iterable[str]) -> dict[str, Row]:
        """Return the rules of the existing task types. `payload_schema` and `output_rules` are JSON text."""
        rows = await self._pool.fetch_rows(_jobs.list_task_types_by_name, names=list(set(names)))
        return {row["name"]: row for row in rows}

    async def list_task_type_names(self) -> list[str]:
        """Return the names of all task types."""
        async with self._pool.connection() as connection:
            return [row["name"] for row in await fetch_all(_jobs.list_task_type_names(connection))]


def _insert_parameters(new_jobs: Sequence[NewJob]) -> dict[str, str]:
    """Return the parameters of `insert_jobs`. For 1,000 jobs they take 4 ms."""
    edges = [
        {"child_id": new.id, "parent_id": edge.parent_id, "on_parent_failure": edge.on_parent_failure}
        for new in new_jobs
        for edge in new.dependencies
    ]
    rows = [new.as_row(number) for number, new in enumerate(new_jobs)]
    return {"jobs": to_json(rows).decode(), "dependencies": to_json(edges).decode()}


async def insert_jobs(
    connection: AsyncConnection[DictRow], new_jobs: Sequence[NewJob], *, parents_of: str | None
) -> dict[UUID, Job]:
    """As `CreationStore.create_jobs`, in the caller's transaction. Dependencies require one."""
    own = {new.id for new in new_jobs}
    parents = sorted({edge.parent_id for new in new_jobs for edge in new.dependencies} - own)
    ended: list[UUID] = []
    if parents:
        locked = await fetch_all(_jobs.lock_parents(connection, ids=parents, owner=parents_of))
        missing = set(parents) - {row["id"] for row in locked}
        if missing:
            raise ParentNotFoundError(min(missing))
        ended = [row["id"] for row in locked if row["has_ended"]]
    values = (
        _insert_parameters(new_jobs) if len(new_jobs) <= _FEW else await asyncio.to_thread(_insert_parameters, new_jobs)
    )
    rows = await fetch_all(_jobs.insert_jobs(connection, **values))
    if ended:
        # These parents ended before their children existed.
        await _jobs.release_dependents(connection, ids=ended)
        rows = await fetch_all(_jobs.list_jobs_by_id(connection, ids=[row["id"] for row in rows]))
    return {row["id"]: Job.from_row(row) for row in rows}
