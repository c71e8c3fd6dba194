"""Endpoints for operators: task types, priorities, cancellation, redrive, workers, statistics.

Owners change their own jobs. The rest is for administrators.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import RootModel

from geo_jobs_api.errors import Problem, or_404
from geo_jobs_api.http.auth import ADMIN_SCOPE
from geo_jobs_api.http.paging import answer
from geo_jobs_api.http.routes import Route
from geo_jobs_api.http.services import CallerOf, ServicesOf, admin_of, caller_of
from geo_jobs_api.jobs.schemas import JobView
from geo_jobs_api.maintenance.retention import RetentionReport
from geo_jobs_api.queue.operator_schemas import (
    CancelFilter,
    CancelledJobs,
    ChangePriority,
    Cleanup,
    RedriveFilter,
    Redriven,
    StatsPeriod,
    TaskTypeStats,
    Worker,
)
from geo_jobs_api.task_types.schemas import TaskType, parse_task_type

router = APIRouter(prefix="/api", dependencies=[Depends(caller_of)], route_class=Route)
_ADMIN = [Depends(admin_of)]
admin_router = APIRouter(tags=["operations"], dependencies=_ADMIN, route_class=Route)
_TYPES: list[str | Enum] = ["task types"]
_DAY_SECONDS = 86_400.0
TaskTypes = RootModel[list[TaskType]]
Workers = RootModel[list[Worker]]


@router.get("/task-types", response_model=list[TaskType], summary="List the task types", tags=_TYPES)
async def list_task_types(services: ServicesOf) -> Response:
    """Return all task types with their limits."""
    found = await services.task_types.list_task_types()
    return await answer(lambda: TaskTypes(found))


@router.get("/task-types/{name}", response_model=TaskType, summary="Get a task type", tags=_TYPES)
async def get_task_type(name: str, services: ServicesOf) -> TaskType:
    """Return one task type."""
    return _or_not_found(await services.task_types.find_task_type(name), name)


@router.put(
    "/task-types/{name}", response_model=TaskType, summary="Replace a task type", tags=_TYPES, dependencies=_ADMIN
)
async def put_task_type(name: str, body: dict[str, object], services: ServicesOf) -> TaskType:
    """Replace a task type. Missing fields get their defaults. Running workers see the change at their next call."""
    task_type = parse_task_type({**body, "name": name})
    await services.task_types.put_task_type(task_type)
    return task_type


@router.patch(
    "/task-types/{name}",
    response_model=TaskType,
    summary="Change a task type",
    tags=_TYPES,
    dependencies=_ADMIN,
)
async def change_task_type(name: str, body: dict[str, object], services: ServicesOf) -> TaskType:
    """Change the given fields only: `{"paused": true}` pauses the task type."""
    return _or_not_found(await services.task_types.change_task_type(name, body), name)


def _or_not_found(task_type: TaskType | None, name: str) -> TaskType:
    if task_type is None:
        raise Problem("task_type_not_found", f"There is no task type {name!r}.")
    return task_type


@router.post("/geo-jobs/{job_id}/priority", response_model=JobView, summary="Change a job's priority", tags=["jobs"])
async def change_priority(job_id: UUID, body: ChangePriority, caller: CallerOf, services: ServicesOf) -> JobView:
    """Change the priority of an open job. One point less means a minute more of waiting."""
    job = await services.operator_store.change_priority(job_id, caller.owner_filter, body.priority)
    if job is None:
        job = or_404(await services.jobs.find_job(job_id, caller.owner_filter), "job")
        raise Problem("invalid_state", f"The job has already ended: it is {job.state}.")
    return JobView.of(job)


@router.post("/geo-jobs/redrive", response_model=Redriven, summary="Requeue failed jobs", tags=["jobs"])
async def redrive(body: RedriveFilter, caller: CallerOf, services: ServicesOf) -> Redriven:
    """Requeue your failed jobs that match the filter, oldest failures first. Administrators requeue everyone's."""
    return Redriven(jobs=await services.operator_store.redrive_failed(caller.owner_filter, body))


@router.post("/geo-jobs/cancel", response_model=CancelledJobs, summary="Cancel many jobs", tags=["jobs"])
async def cancel_jobs(body: CancelFilter, caller: CallerOf, services: ServicesOf) -> CancelledJobs:
    """Cancel your open jobs that match the filter. Administrators cancel all owners' jobs, or those of one `owner`."""
    if not caller.is_admin and body.owner not in {None, caller.subject}:
        raise Problem("not_allowed", f"Jobs of other owners require a token with the scope {ADMIN_SCOPE}.")
    return await services.operator_store.cancel_matching(body.owner if caller.is_admin else caller.subject, body)


@admin_router.post("/geo-jobs/{job_id}/unlock", response_model=JobView, summary="End the lease on a job")
async def unlock(job_id: UUID, services: ServicesOf) -> JobView:
    """Return the job to its place in the queue, without spending the attempt. Its worker stops at its next call."""
    job = await services.operator_store.unlock_job(job_id)
    if job is None:
        job = or_404(await services.jobs.find_job(job_id), "job")
        raise Problem("invalid_state", f"The job is not leased: it is {job.state}.")
    return JobView.of(job)


@admin_router.get("/admin/workers", response_model=list[Worker], summary="List workers")
async def list_workers(services: ServicesOf) -> Response:
    """Return the workers that called in the last minutes or hold a job, busy ones first."""
    found = await services.operator_store.list_workers()
    return await answer(lambda: Workers(found))


@admin_router.get("/admin/stats", response_model=list[TaskTypeStats], summary="Get statistics")
async def list_stats(services: ServicesOf, period: Annotated[StatsPeriod, Query()]) -> list[TaskTypeStats]:
    """Return the current queue and the recent outcomes for each task type."""
    return await services.operator_store.list_stats(period.hours * 3600)


@admin_router.post("/admin/cleanup", response_model=RetentionReport, summary="Remove ended jobs")
async def clean_up(body: Cleanup, services: ServicesOf) -> RetentionReport:
    """Delete all jobs that ended this many days ago, with events and files, regardless of the settings."""
    return await services.retention.run_once(body.days * _DAY_SECONDS)


router.include_router(admin_router)
