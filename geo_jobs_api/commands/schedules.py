"""schedules: jobs by time."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError
from uuid_utils.compat import uuid7

from geo_jobs_api.commands.frame import Action, Group
from geo_jobs_api.commands.output import print_object, print_result, print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.errors import Problem
from geo_jobs_api.fields import field_errors
from geo_jobs_api.jobs.creation_store import CreationStore
from geo_jobs_api.schedules.content import check_schedule
from geo_jobs_api.schedules.records import Schedule
from geo_jobs_api.schedules.scheduler import Scheduler
from geo_jobs_api.schedules.schemas import PutSchedule, ScheduleView, timing_of
from geo_jobs_api.schedules.store import ScheduleStore

Change = Callable[[ScheduleStore, Schedule], Awaitable[Schedule | None]]


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    schedules = commands.group("schedules", "Schedules, which create jobs by time.")
    command = schedules.add_action("list", "List schedules with their next fire times.", _list)
    command.add_argument("--owner", metavar="NAME", help="only this caller's")
    command = schedules.add_action("create", "Create a schedule from the JSON of POST /api/schedules.", _create)
    command.add_argument("file", metavar="FILE", help="- for standard input")
    command.add_argument("--owner", required=True, metavar="NAME", help="owner of the schedule and its jobs")
    for name, text, act in (
        ("show", "Show a schedule.", _show),
        ("fires", "Show the latest decisions.", _fires),
        ("run", "Fire now, without changing the plan.", _run),
        ("pause", "Pause a schedule until it is resumed.", _change(_pause)),
        ("resume", "Resume a schedule from now.", _change(_resume)),
        ("reset", "Drop due moments and errors, and continue from now.", _change(_reset)),
        ("delete", "Delete a schedule. Its jobs stay.", _delete),
    ):
        schedules.add_action(name, text, act).add_argument("id", type=UUID, metavar="ID")


async def _find(store: ScheduleStore, schedule_id: UUID) -> Schedule:
    schedule = await store.find_schedule(schedule_id)
    if schedule is None:
        raise Problem("schedule_not_found", f"There is no schedule {schedule_id}.")
    return schedule


async def _list(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    found = await ScheduleStore(pool).list_schedules(owner=arguments.owner, after=None, limit=1000)
    owners = {schedule.id: schedule.owner for schedule in found}
    columns = {
        "ID": lambda view: view.id,
        "OWNER": lambda view: owners[view.id],
        "NAME": lambda view: view.name,
        "WHEN": _when,
        "NEXT RUN": lambda view: "paused" if view.paused else view.next_run_at or "over",
        "LAST RUN": lambda view: view.last_run_at,
        "LAST ERROR": lambda view: view.last_error,
    }
    print_table([ScheduleView.of(schedule) for schedule in found], columns, as_json=arguments.json)
    return 0


def _when(view: ScheduleView) -> str:
    if view.at is not None:
        return f"once, {view.at:%Y-%m-%d %H:%M}"
    rules = "; ".join(f"{' '.join(rule.times)} {' '.join(map(str, rule.days_of_week))}" for rule in view.rules or ())
    return f"{view.cron or rules.strip()} ({view.time_zone})"


async def _create(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    body = await asyncio.to_thread(_read, arguments.file)
    upcoming = await check_schedule(
        CreationStore(pool), settings.sources_allowed, arguments.owner, body, datetime.now(UTC)
    )
    created = await ScheduleStore(pool).create_schedule(uuid7(), arguments.owner, body, upcoming)
    if created is None:
        raise Problem(
            "invalid_state", f"{arguments.owner} already has a schedule named {body.name!r}. Choose another name."
        )
    print_object(ScheduleView.of(created), as_json=arguments.json)
    return 0


def _read(file: str) -> PutSchedule:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return PutSchedule.model_validate(json.loads(text))
    except ValidationError as error:
        raise Problem("validation", "The schedule is invalid.", errors=field_errors(error.errors())) from error
    except (OSError, ValueError) as error:
        raise Problem("validation", f"{file} cannot be read: {error}.") from error


async def _show(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    print_object(ScheduleView.of(await _find(ScheduleStore(pool), arguments.id)), as_json=arguments.json)
    return 0


async def _fires(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    store = ScheduleStore(pool)
    await _find(store, arguments.id)
    fires = await store.list_fires(arguments.id, limit=100)
    columns = {
        "MOMENT": lambda fire: fire.fire_time,
        "OUTCOME": lambda fire: fire.outcome,
        "MANUAL": lambda fire: fire.manual,
        "MADE": lambda fire: fire.job_id or fire.pipeline_id,
        "ERROR": lambda fire: fire.error,
    }
    print_table(fires, columns, as_json=arguments.json)
    return 0


async def _run(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    store = ScheduleStore(pool)
    await _find(store, arguments.id)
    runner = Scheduler(store, settings.sources_allowed, asyncio.Event(), max_open=settings.max_open_jobs_per_caller)
    fire = await runner.run_now(arguments.id)
    if fire is None or fire.outcome != "created":
        why = fire and fire.error
        raise Problem("invalid_state", why or "An open job has the template's dedupKey.")
    done = f"Created {'job' if fire.job_id else 'pipeline'} {fire.job_id or fire.pipeline_id}."
    fires = await store.list_fires(arguments.id, limit=500)
    view = next(one for one in fires if one.fire_time == fire.fire_time)
    print_result(done, view, as_json=arguments.json)
    return 0


def _change(change: Change) -> Action:
    async def act(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
        store = ScheduleStore(pool)
        schedule = await _find(store, arguments.id)
        print_object(ScheduleView.of(await change(store, schedule) or schedule), as_json=arguments.json)
        return 0

    return act


async def _pause(store: ScheduleStore, schedule: Schedule) -> Schedule | None:
    return await store.pause_schedule(schedule.id)


async def _resume(store: ScheduleStore, schedule: Schedule) -> Schedule | None:
    return await store.resume_schedule(schedule.id, timing_of(schedule).upcoming(datetime.now(UTC)))


async def _reset(store: ScheduleStore, schedule: Schedule) -> Schedule | None:
    return await store.reset_schedule(schedule.id, timing_of(schedule).upcoming(datetime.now(UTC)))


async def _delete(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    if not await ScheduleStore(pool).delete_schedule(arguments.id):
        raise Problem("schedule_not_found", f"There is no schedule {arguments.id}.")
    print_result("Deleted.", {"deleted": str(arguments.id)}, as_json=arguments.json)
    return 0
