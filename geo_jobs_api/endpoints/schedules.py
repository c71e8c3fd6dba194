"""The endpoints for schedules: create, read, change, pause, resume, run now, reset, delete."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import psycopg
from fastapi import APIRouter, Query, Response
from uuid_utils.compat import uuid7

from geo_jobs_api.errors import Problem, or_404
from geo_jobs_api.http.paging import answer, read_page
from geo_jobs_api.http.routes import Route
from geo_jobs_api.http.services import CallerOf, Services, ServicesOf
from geo_jobs_api.jobs.submission import limit_exceeded
from geo_jobs_api.queue.job_store import LimitExceededError
from geo_jobs_api.queue.records import Caller
from geo_jobs_api.schedules.content import check_schedule
from geo_jobs_api.schedules.records import Schedule
from geo_jobs_api.schedules.schemas import (
    FireFilter,
    FirePage,
    PutSchedule,
    ScheduleFilter,
    ScheduleFire,
    SchedulePage,
    ScheduleView,
    schedule_json,
    timing_of,
)

router = APIRouter(prefix="/api/schedules", tags=["schedules"], route_class=Route)

# A schedule that fires each minute costs a few milliseconds of it.
MAX_PER_OWNER = 1000


async def _find(services: Services, caller: Caller, schedule_id: UUID) -> Schedule:
    return or_404(await services.schedules.find_schedule(schedule_id, caller.owner_filter), "schedule")


async def _view(schedule: Schedule) -> Response:
    # Templates may have up to a mebibyte.
    return await answer(lambda: schedule_json(schedule))


def _name_is_used(name: str) -> Problem:
    return Problem("invalid_state", f"You already have a schedule named {name!r}. Choose another name.")


@router.post("", status_code=201, response_model=ScheduleView, summary="Create a schedule")
async def create_schedule(body: PutSchedule, caller: CallerOf, services: ServicesOf) -> Response:
    """Create jobs (or pipelines) from a template: by cron, once, or by times on days of the week."""
    upcoming = await check_schedule(
        services.creation, services.settings.sources_allowed, caller.subject, body, datetime.now(UTC)
    )
    try:
        created = await services.schedules.create_schedule(uuid7(), caller.subject, body, upcoming, limit=MAX_PER_OWNER)
    except LimitExceededError as error:
        raise limit_exceeded("schedules", MAX_PER_OWNER) from error
    if created is None:
        raise _name_is_used(body.name)
    return await answer(lambda: schedule_json(created), 201, {"Location": f"/api/schedules/{created.id}"})


@router.get("", response_model=SchedulePage, summary="List schedules")
async def list_schedules(caller: CallerOf, services: ServicesOf, query: Annotated[ScheduleFilter, Query()]) -> Response:
    """Return your schedules. Administrators get all schedules. A page has up to 1 MiB, so it may be short."""

    async def fetch(after: UUID | None, limit: int) -> list[Schedule]:
        return await services.schedules.list_schedules(owner=caller.owner_filter, after=after, limit=limit)

    return await read_page("schedules", fetch, schedule_json, after=query.cursor, limit=query.limit)


@router.get("/{schedule_id}", response_model=ScheduleView, summary="Get a schedule")
async def get_schedule(schedule_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Return one schedule with its next moments."""
    return await _view(await _find(services, caller, schedule_id))


@router.get("/{schedule_id}/fires", response_model=FirePage, summary="List a schedule's decisions")
async def list_fires(
    schedule_id: UUID, caller: CallerOf, services: ServicesOf, query: Annotated[FireFilter, Query()]
) -> FirePage:
    """Return the decision for each moment, latest first."""
    await _find(services, caller, schedule_id)
    fires = await services.schedules.list_fires(schedule_id, limit=query.limit)
    return FirePage(fires=fires)


@router.put("/{schedule_id}", response_model=ScheduleView, summary="Replace a schedule")
async def replace_schedule(schedule_id: UUID, body: PutSchedule, caller: CallerOf, services: ServicesOf) -> Response:
    """Replace the content of a schedule. It continues from now. Jobs that it has created stay."""
    schedule = await _find(services, caller, schedule_id)
    upcoming = await check_schedule(
        services.creation, services.settings.sources_allowed, schedule.owner, body, datetime.now(UTC)
    )
    try:
        return await _view(or_404(await services.schedules.replace_schedule(schedule_id, body, upcoming), "schedule"))
    except psycopg.errors.UniqueViolation as error:
        raise _name_is_used(body.name) from error


@router.delete("/{schedule_id}", status_code=204, summary="Delete a schedule")
async def delete_schedule(schedule_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Delete a schedule. Jobs that it has created stay."""
    await _find(services, caller, schedule_id)
    await services.schedules.delete_schedule(schedule_id)
    return Response(status_code=204)


@router.post("/{schedule_id}/pause", response_model=ScheduleView, summary="Pause a schedule")
async def pause_schedule(schedule_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Pause a schedule until it is resumed. A repetition changes nothing."""
    schedule = await _find(services, caller, schedule_id)
    return await _view(await services.schedules.pause_schedule(schedule_id) or schedule)


@router.post("/{schedule_id}/resume", response_model=ScheduleView, summary="Resume a schedule")
async def resume_schedule(schedule_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Resume from now. Moments during the pause do not fire."""
    schedule = await _find(services, caller, schedule_id)
    upcoming = await asyncio.to_thread(timing_of(schedule).upcoming, datetime.now(UTC))
    return await _view(await services.schedules.resume_schedule(schedule_id, upcoming) or schedule)


@router.post("/{schedule_id}/reset", response_model=ScheduleView, summary="Reset a schedule")
async def reset_schedule(schedule_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Drop due moments and errors, and continue from now. A paused schedule stays paused."""
    schedule = await _find(services, caller, schedule_id)
    upcoming = await asyncio.to_thread(timing_of(schedule).upcoming, datetime.now(UTC))
    return await _view(or_404(await services.schedules.reset_schedule(schedule_id, upcoming), "schedule"))


@router.post("/{schedule_id}/run", status_code=201, response_model=ScheduleFire, summary="Fire now")
async def run_schedule(schedule_id: UUID, caller: CallerOf, services: ServicesOf) -> ScheduleFire:
    """Fire now, regardless of open jobs. The plan does not change."""
    await _find(services, caller, schedule_id)
    fire = or_404(await services.scheduler.run_now(schedule_id), "schedule")
    if fire.outcome != "created":
        raise Problem("invalid_state", fire.error or "An open job has the template's dedupKey.")
    fires = await services.schedules.list_fires(schedule_id, limit=500)
    return next(one for one in fires if one.fire_time == fire.fire_time)
