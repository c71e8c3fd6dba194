"""Schedules in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic_core import to_json

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import fetch_all, load_queries, transaction_if
from geo_jobs_api.queue.job_store import LimitExceededError, lock_owner
from geo_jobs_api.schedules.records import FireOutcome, LastSource, Schedule
from geo_jobs_api.schedules.schemas import PutSchedule, ScheduleFire, stored_template, stored_timing

_schedules = load_queries("schedules.sql")
_PLAIN_COLUMNS = ("name", "catch_up", "overlap", "jitter_seconds", "start_at", "end_at", "skip_unchanged", "paused")


def _columns(body: PutSchedule, upcoming: Sequence[datetime]) -> dict[str, object]:
    """Return the columns that the owner sets."""
    plain = {name: getattr(body, name) for name in _PLAIN_COLUMNS}
    template, timing = stored_template(body), Jsonb(stored_timing(body))
    return plain | {"template": template, "timing": timing} | _moments(() if body.paused else upcoming)


def _moments(upcoming: Sequence[datetime]) -> dict[str, object]:
    """Return the columns of the next moments."""
    return {"next_run_at": next(iter(upcoming), None), "upcoming": list(upcoming)}


@dataclass(frozen=True, slots=True)
class Fire:
    """The decision for a moment. `created` comes with the id of the job or pipeline."""

    schedule_id: UUID
    fire_time: datetime
    outcome: FireOutcome
    manual: bool = False
    job_id: UUID | None = None
    pipeline_id: UUID | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The step of a schedule from one moment to the next ones."""

    id: UUID
    expected: datetime
    upcoming: Sequence[datetime]
    last_run_at: datetime | None = None
    last_error: str | None = None


class ScheduleStore:
    """Everything about schedules."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[DictRow]]:
        """Return a connection for the transaction in which schedules fire."""
        return self._pool.connection()

    async def create_schedule(
        self, schedule_id: UUID, owner: str, body: PutSchedule, upcoming: Sequence[datetime], *, limit: int = 0
    ) -> Schedule | None:
        """Create a schedule. Return None when the owner has one with this name.

        Raises:
            LimitExceededError: the owner's schedules would exceed `limit` (0: no limit).
        """
        # Templates may have up to a mebibyte.
        columns = await asyncio.to_thread(_columns, body, upcoming)
        async with self._pool.connection() as connection, transaction_if(connection, limit):
            row = await _schedules.insert_schedule(connection, id=schedule_id, owner=owner, **columns)
            if row is not None and limit:
                await lock_owner(connection, owner)
                if (await _schedules.count_schedules(connection, owner=owner))["count"] > limit:
                    raise LimitExceededError
        return None if row is None else Schedule.from_row(row)

    async def replace_schedule(
        self, schedule_id: UUID, body: PutSchedule, upcoming: Sequence[datetime]
    ) -> Schedule | None:
        """Replace the content of a schedule. Return None when it does not exist.

        Raises:
            psycopg.errors.UniqueViolation: the owner has another one with this name.
        """
        columns = await asyncio.to_thread(_columns, body, upcoming)
        return await self._pool.fetch_one(_schedules.replace_schedule, Schedule, id=schedule_id, **columns)

    async def pause_schedule(self, schedule_id: UUID) -> Schedule | None:
        """Pause. Return None when it is paused already."""
        return await self._pool.fetch_one(_schedules.set_paused, Schedule, id=schedule_id, paused=True, **_moments(()))

    async def resume_schedule(self, schedule_id: UUID, upcoming: Sequence[datetime]) -> Schedule | None:
        """Resume. Return None when it is not paused."""
        return await self._pool.fetch_one(
            _schedules.set_paused, Schedule, id=schedule_id, paused=False, **_moments(upcoming)
        )

    async def reset_schedule(self, schedule_id: UUID, upcoming: Sequence[datetime]) -> Schedule | None:
        """Drop due moments and errors. Return None when the schedule does not exist."""
        return await self._pool.fetch_one(_schedules.reset_schedule, Schedule, id=schedule_id, **_moments(upcoming))

    async def find_schedule(self, schedule_id: UUID, owner: str | None = None) -> Schedule | None:
        """Return one schedule. With an owner, only that owner's."""
        return await self._pool.fetch_one(_schedules.get_schedule, Schedule, id=schedule_id, owner=owner)

    async def list_schedules(self, *, owner: str | None, after: UUID | None, limit: int) -> list[Schedule]:
        """Return up to `limit` schedules after the schedule `after`, oldest first."""
        return await self._pool.fetch(_schedules.list_schedules, Schedule, owner=owner, after=after, limit=limit)

    async def delete_schedule(self, schedule_id: UUID) -> bool:
        """Delete a schedule, but not its jobs. Return False when there is none."""
        return await self._pool.execute(_schedules.delete_schedule, id=schedule_id) == 1

    async def list_fires(self, schedule_id: UUID, *, limit: int) -> list[ScheduleFire]:
        """Return the latest decisions, newest first."""
        return await self._pool.fetch(_schedules.list_fires, ScheduleFire, schedule_id=schedule_id, limit=limit)

    async def seconds_until_due(self, now: datetime | None = None) -> float | None:
        """Return the seconds until the next moment. None: there is none."""
        async with self._pool.connection() as connection:
            seconds: float | None = (await _schedules.seconds_until_due(connection, now=now))["seconds"]
        return seconds


async def lock_due(
    connection: AsyncConnection[DictRow], *, now: datetime | None, only: UUID | None, limit: int
) -> tuple[list[Schedule], datetime | None]:
    """Lock up to `limit` due schedules for this transaction. Return them with the time of the decision."""
    rows = await fetch_all(_schedules.lock_due(connection, now=now, only=only, limit=limit))
    return [Schedule.from_row(row) for row in rows], rows[0]["server_time"] if rows else None


async def lock_schedule(connection: AsyncConnection[DictRow], schedule_id: UUID) -> tuple[Schedule, datetime] | None:
    """Lock one schedule for this transaction. Return it with the database's time, or None."""
    row = await _schedules.lock_schedule(connection, id=schedule_id)
    return None if row is None else (Schedule.from_row(row), row["server_time"])


async def list_open_jobs(connection: AsyncConnection[DictRow], ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """Return the open jobs of earlier fires of these schedules."""
    found: dict[UUID, list[UUID]] = {}
    for row in await fetch_all(_schedules.list_open_jobs(connection, ids=list(ids))):
        found.setdefault(row["schedule_id"], []).append(row["id"])
    return found


async def list_last_sources(connection: AsyncConnection[DictRow], ids: Sequence[UUID]) -> dict[UUID, LastSource]:
    """Return the source validators of the latest success of each schedule."""
    rows = await fetch_all(_schedules.list_last_sources(connection, ids=list(ids))) if ids else []
    return {row["schedule_id"]: LastSource.from_row(row) for row in rows}


async def store_decisions(connection: AsyncConnection[DictRow], fires: Sequence[Fire], steps: Sequence[Step]) -> None:
    """Record decisions and set the next moments. `psycopg.errors.UniqueViolation` when one was decided before."""
    if fires:
        await _schedules.insert_fires(connection, fires=Jsonb(fires, to_json))
    if steps:
        await _schedules.advance_schedules(connection, steps=Jsonb(steps, to_json))
