"""Creates the jobs of schedules. Any number of processes may do this concurrently: each moment is decided once.

One transaction locks due schedules, creates their jobs, records the decisions (once per moment) and sets the next
moments. A killed process has done all of it or nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
from uuid_utils.compat import uuid7

from geo_jobs_api.errors import Problem
from geo_jobs_api.hosts import HostList
from geo_jobs_api.jobs.creation_store import NewJob
from geo_jobs_api.jobs.submission import source_of
from geo_jobs_api.log import get_logger
from geo_jobs_api.periodic import Periodic
from geo_jobs_api.pipelines.build import build_pipeline
from geo_jobs_api.queue.rules import InputKind
from geo_jobs_api.schedules.cron import Due, decide_due
from geo_jobs_api.schedules.fire import FirePlan, execute
from geo_jobs_api.schedules.records import LastSource, Schedule
from geo_jobs_api.schedules.schemas import ScheduledJob, parse_template, timing_of
from geo_jobs_api.schedules.store import (
    Fire,
    ScheduleStore,
    Step,
    list_last_sources,
    list_open_jobs,
    lock_due,
    lock_schedule,
    store_decisions,
)

_log = get_logger(__name__)
# Locked by one transaction. Other processes take the others meanwhile.
_SCHEDULES_PER_ROUND = 50
# Of one schedule with many missed moments.
_FIRES_PER_ROUND = 20
_MAX_SLEEP_SECONDS = 60.0


class Scheduler:
    """Fires due schedules, then sleeps until the next one.

    Args:
        schedules: the store.
        allowed: hosts of downloads.
        wake: set on changes of schedules.
        max_open: limit of an owner's open jobs, from any source. 0: no limit.
        clock: replaces the database's clock in simulations.
    """

    def __init__(
        self,
        schedules: ScheduleStore,
        allowed: HostList,
        wake: asyncio.Event,
        *,
        max_open: int = 0,
        clock: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._schedules = schedules
        self._allowed = allowed
        self.run = Periodic(self._run_round, "schedule_poll_failed", wake=wake).run
        self._max_open = max_open
        self._clock = clock

    async def _run_round(self) -> float:
        pause = await self._schedules.seconds_until_due(self._clock())
        if pause is None:
            return _MAX_SLEEP_SECONDS
        if pause <= 0:
            await self.run_once()
            return 0.0
        # A query a millisecond early finds nothing.
        return min(_MAX_SLEEP_SECONDS, pause + 0.005)

    async def run_once(self) -> int:
        """Run one round over the due schedules. Return the number of decided moments."""
        try:
            return await self._fire_due(None, _SCHEDULES_PER_ROUND)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            _log.warning("schedules_fired_alone", reason=type(error).__name__)
        # A schedule that cannot be stored must not block the others.
        decided = 0
        async with self._schedules.connection() as connection:
            due, _ = await lock_due(connection, now=self._clock(), only=None, limit=_SCHEDULES_PER_ROUND)
        for schedule in due:
            try:
                decided += await self._fire_due(schedule.id, 1)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                _log.exception("schedule_failed", schedule_id=str(schedule.id))
                decided += await self._skip_due(schedule, f"It could not be stored: {type(error).__name__}.")
        return decided

    async def _fire_due(self, only: UUID | None, limit: int) -> int:
        async with self._schedules.connection() as connection, connection.transaction():
            due, now = await lock_due(connection, now=self._clock(), only=only, limit=limit)
            if now is None:
                return 0
            open_jobs = await list_open_jobs(connection, [schedule.id for schedule in due])
            conditional = [schedule.id for schedule in due if schedule.skip_unchanged]
            sources = await list_last_sources(connection, conditional)
            # Templates and moments of 50 schedules may take a second, during which the event loop serves requests.
            plan, steps = await asyncio.to_thread(self._plan_round, due, now, open_jobs, sources)
            await execute(connection, plan, max_open=self._max_open)
            await store_decisions(connection, plan.fires, [_step(plan, *step) for step in steps])
            _log_fires(plan.fires)
            return len(due)

    def _plan_round(
        self,
        due: Sequence[Schedule],
        now: datetime,
        open_jobs: Mapping[UUID, list[UUID]],
        sources: dict[UUID, LastSource],
    ) -> tuple[FirePlan, list[tuple[Schedule, Sequence[datetime]]]]:
        """Return the fires, and the next moments of each schedule."""
        plan = FirePlan(now)
        steps: list[tuple[Schedule, Sequence[datetime]]] = []
        for schedule in due:
            try:
                decision, upcoming = _decide(schedule, now)
                self._plan_fires(plan, schedule, decision.fires, open_jobs.get(schedule.id, []), sources)
            except ValueError as error:
                # Stored by another version, or in an unknown time zone. It must not block the others.
                _log.exception("schedule_not_understood", schedule_id=str(schedule.id))
                decision, upcoming = Due((), None, None), ()
                plan.errors[schedule.id] = f"Its stored content is invalid: {error}"
            if decision.missed is not None:
                plan.fires.append(Fire(schedule.id, decision.missed, "missed"))
            steps.append((schedule, upcoming))
        return plan, steps

    def _plan_fires(
        self,
        plan: FirePlan,
        schedule: Schedule,
        fires: Iterable[datetime],
        open_jobs: list[UUID],
        sources: dict[UUID, LastSource],
    ) -> None:
        """Decide about each moment."""
        moments = list(fires)
        if schedule.overlap == "cancel_old" and moments:
            plan.to_cancel += open_jobs
            # The last one would cancel the jobs of the earlier ones.
            plan.fires += [Fire(schedule.id, moment, "overlap") for moment in moments[:-1]]
            moments = moments[-1:]
        is_busy = bool(open_jobs)
        for moment in moments:
            if schedule.overlap == "skip" and is_busy:
                plan.fires.append(Fire(schedule.id, moment, "overlap"))
                continue
            self._plan_one(plan, schedule, moment, sources.get(schedule.id))
            is_busy = True

    def _plan_one(
        self, plan: FirePlan, schedule: Schedule, moment: datetime, last: LastSource | None, *, manual: bool = False
    ) -> None:
        """Plan the jobs of one fire."""
        template = parse_template(schedule.template)
        try:
            if isinstance(template, ScheduledJob):
                job = self._job(schedule, template, moment, last, manual=manual)
                plan.jobs[job.id] = job
                plan.fires.append(Fire(schedule.id, moment, "created", manual, job_id=job.id))
            else:
                new, jobs = build_pipeline(self._allowed, schedule.owner, template, None)
                fire = Fire(schedule.id, moment, "created", manual, pipeline_id=new.id)
                plan.pipelines.append((fire, new, [replace(job, schedule_id=schedule.id) for job in jobs]))
        except Problem as problem:
            plan.fires.append(Fire(schedule.id, moment, "failed", manual, error=problem.detail))

    def _job(
        self, schedule: Schedule, template: ScheduledJob, moment: datetime, last: LastSource | None, *, manual: bool
    ) -> NewJob:
        source = source_of(self._allowed, template.input_payload, "/template/inputPayload/sourceUrl")
        if last is not None and source.kind is InputKind.URL:
            source = replace(source, condition=last.condition_for(template.task_type, template.input_payload))
        delivery = template.notify_after_seconds
        return NewJob(
            id=uuid7(),
            owner=schedule.owner,
            task_type=template.task_type,
            priority=template.priority,
            input_payload=template.input_payload,
            idempotency_key=None,
            request_digest=hashlib.sha256(schedule.template.encode()).digest(),
            source=source,
            dedup_key=template.dedup_key,
            run_at=None if manual else moment + jitter(schedule, moment),
            notify_at=None if delivery is None else moment + timedelta(seconds=delivery),
            schedule_id=schedule.id,
        )

    async def run_now(self, schedule_id: UUID) -> Fire | None:
        """Fire once, paused or not, without changing the plan. Return None when the schedule does not exist."""
        async with self._schedules.connection() as connection, connection.transaction():
            locked = await lock_schedule(connection, schedule_id)
            if locked is None:
                return None
            schedule, now = locked
            plan = FirePlan(now)
            await asyncio.to_thread(self._plan_one, plan, schedule, now, None, manual=True)
            await execute(connection, plan, max_open=self._max_open)
            await store_decisions(connection, plan.fires, ())
        return plan.fires[0]

    async def _skip_due(self, schedule: Schedule, why: str) -> int:
        """Skip the due moments of a schedule that cannot fire."""
        async with self._schedules.connection() as connection, connection.transaction():
            due, now = await lock_due(connection, now=self._clock(), only=schedule.id, limit=1)
            if now is None or due[0].next_run_at is None:
                return 0
            upcoming = await asyncio.to_thread(timing_of(due[0]).upcoming, now)
            step = Step(schedule.id, due[0].next_run_at, upcoming, last_error=why)
            await store_decisions(connection, (), [step])
        return 1


def _decide(schedule: Schedule, now: datetime) -> tuple[Due, Sequence[datetime]]:
    """Return the due moments and the next ones."""
    timing, first = timing_of(schedule), schedule.next_run_at or now
    due = decide_due(timing, first, now, catch_up=schedule.catch_up, max_fires=_FIRES_PER_ROUND)
    if due.next_run_at is None:
        return due, ()
    return due, (due.next_run_at, *timing.upcoming(due.next_run_at)[:-1])


def _step(plan: FirePlan, schedule: Schedule, upcoming: Sequence[datetime]) -> Step:
    fired = [fire.fire_time for fire in plan.fires if fire.schedule_id == schedule.id and fire.outcome == "created"]
    return Step(
        schedule.id,
        schedule.next_run_at or plan.now,
        upcoming,
        max(fired, default=None),
        plan.errors.get(schedule.id),
    )


def jitter(schedule: Schedule, moment: datetime) -> timedelta:
    """Return the delay of a moment's job within the allowed seconds, equal in all processes."""
    digest = hashlib.sha256(f"{schedule.id}/{moment.timestamp()}".encode()).digest()
    return timedelta(seconds=schedule.jitter_seconds * int.from_bytes(digest[:8]) / 2**64)


def _log_fires(fires: Iterable[Fire]) -> None:
    for fire in fires:
        _log.info(
            "schedule_fired",
            schedule_id=str(fire.schedule_id),
            fire_time=fire.fire_time.isoformat(),
            outcome=fire.outcome,
            error=fire.error,
        )
