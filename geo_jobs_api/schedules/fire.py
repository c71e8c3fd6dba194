"""Carries out the fires of one round: creates jobs and pipelines within their owners' quotas, or records errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from geo_jobs_api.jobs.creation_store import NewJob, insert_jobs
from geo_jobs_api.pipelines.store import IncompletePipelineError, NewPipeline, insert_pipeline
from geo_jobs_api.queue.job_store import QuotaExceededError, cancel_jobs, enforce_quota
from geo_jobs_api.schedules.store import Fire


@dataclass(slots=True)
class FirePlan:
    """The work of one transaction."""

    now: datetime
    jobs: dict[UUID, NewJob] = field(default_factory=dict)
    pipelines: list[tuple[Fire, NewPipeline, list[NewJob]]] = field(default_factory=list)
    fires: list[Fire] = field(default_factory=list)
    to_cancel: list[UUID] = field(default_factory=list)
    # Last errors by schedule.
    errors: dict[UUID, str] = field(default_factory=dict)


async def execute(connection: AsyncConnection[DictRow], plan: FirePlan, *, max_open: int = 0) -> None:
    """Create the planned jobs. A failed creation turns its fire into a failed one.

    Args:
        connection: in the transaction that holds the schedules.
        plan: its `fires` and `errors` get the results.
        max_open: limit of an owner's open jobs. 0: no limit.
    """
    await cancel_jobs(connection, plan.to_cancel, "The next run of its schedule is due.")
    if max_open:
        plan.fires = [await _make(connection, one, max_open) for one in _by_owner(plan)] + _without_jobs(plan)
    else:
        created = set(await insert_jobs(connection, list(plan.jobs.values()), parents_of=None)) if plan.jobs else set()
        fires = [_outcome(fire, plan.jobs[fire.job_id], created) for fire in plan.fires if fire.job_id is not None]
        pipelines = [await _make_pipeline(connection, *one, max_open) for one in plan.pipelines]
        plan.fires = fires + pipelines + _without_jobs(plan)
    plan.errors |= {fire.schedule_id: fire.error for fire in plan.fires if fire.error is not None}


def _without_jobs(plan: FirePlan) -> list[Fire]:
    return [fire for fire in plan.fires if fire.job_id is None]


PlannedFire = tuple[Fire, NewPipeline | None, list[NewJob]]


def _by_owner(plan: FirePlan) -> Iterator[PlannedFire]:
    """Yield the fires in one order for all processes, since each owner is locked until the transaction ends."""
    jobs: list[PlannedFire] = [(fire, None, [plan.jobs[fire.job_id]]) for fire in plan.fires if fire.job_id is not None]
    yield from sorted([*jobs, *plan.pipelines], key=lambda one: one[2][0].owner)


async def _make(connection: AsyncConnection[DictRow], making: PlannedFire, max_open: int) -> Fire:
    fire, pipeline, jobs = making
    if pipeline is not None:
        return await _make_pipeline(connection, fire, pipeline, jobs, max_open)
    try:
        async with connection.transaction():
            created = set(await insert_jobs(connection, jobs, parents_of=None))
            if created:
                await enforce_quota(connection, jobs[0].owner, max_jobs=max_open)
    except QuotaExceededError as error:
        return _beyond_share(fire, error, max_open)
    return _outcome(fire, jobs[0], created)


async def _make_pipeline(
    connection: AsyncConnection[DictRow], fire: Fire, pipeline: NewPipeline, jobs: list[NewJob], max_open: int
) -> Fire:
    try:
        async with connection.transaction():
            await insert_pipeline(connection, pipeline, jobs)
            if max_open:
                await enforce_quota(connection, pipeline.owner, max_jobs=max_open)
    except IncompletePipelineError:
        return _failed(fire, "One of its task types is unknown.")
    except QuotaExceededError as error:
        return _beyond_share(fire, error, max_open)
    return fire


def _outcome(fire: Fire, job: NewJob, created: set[UUID]) -> Fire:
    if job.id in created:
        return fire
    if job.dedup_key is not None:
        return Fire(fire.schedule_id, fire.fire_time, "overlap", fire.manual)
    return _failed(fire, f"There is no task type {job.task_type!r}.")


def _beyond_share(fire: Fire, error: QuotaExceededError, max_open: int) -> Fire:
    why = f"Its owner would have {error.has.open_jobs} open jobs, more than the limit of {max_open}."
    return _failed(fire, why)


def _failed(fire: Fire, why: str) -> Fire:
    return Fire(fire.schedule_id, fire.fire_time, "failed", fire.manual, error=why)
