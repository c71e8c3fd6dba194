"""Schedulers are killed at random during simulated time. Each fire must happen exactly once.

A program of its own, since its schedulers are forks: `python -m tests.support.schedule_storm --database URL`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg.rows import dict_row

from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.hosts import parse_hosts
from geo_jobs_api.schedules.scheduler import Scheduler
from geo_jobs_api.schedules.schemas import PutSchedule
from geo_jobs_api.schedules.store import ScheduleStore

# The period includes a night with a repeated hour.
_BEGIN = datetime(2026, 10, 24, 22, 0, tzinfo=UTC)
_SCHEDULES = 4
_SCHEDULERS = 2


class PlayedClock:
    """A faster clock with a fixed start and end, the same in all forks."""

    def __init__(self, speed: float, end: datetime) -> None:
        self._begin, self._speed, self._end = time.monotonic(), speed, end

    def __call__(self) -> datetime:
        played = _BEGIN + timedelta(seconds=(time.monotonic() - self._begin) * self._speed)
        return min(played, self._end)


async def _create(database: str) -> list[UUID]:
    body = PutSchedule.model_validate(
        {
            "name": "storm",
            "cron": "* * * * *",
            "timeZone": "Europe/Berlin",
            "catchUp": 10_000,
            "overlap": "allow",
            "jitterSeconds": 30,
            "template": {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": "https://maps.example.org/a.tif"}},
        }
    )
    ids = [uuid4() for _ in range(_SCHEDULES)]
    async with open_pool(database, size=2, wait_seconds=10) as pool:
        for number, schedule_id in enumerate(ids):
            named = body.model_copy(update={"name": f"storm {number}"})
            upcoming = [_BEGIN + timedelta(minutes=1)]
            await ScheduleStore(pool).create_schedule(schedule_id, "ada", named, upcoming)
    return ids


async def _fire(database: str, clock: PlayedClock) -> None:
    async with open_pool(database, size=2, wait_seconds=10) as pool:
        runner = Scheduler(ScheduleStore(pool), parse_hosts("*"), asyncio.Event(), clock=clock)
        while True:
            await runner.run_once()
            await asyncio.sleep(0.002)


def _fork(database: str, clock: PlayedClock) -> int:
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_fire(database, clock))
        finally:
            os._exit(1)
    return child


def _decided(database: str) -> int:
    with psycopg.connect(database, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM schedule_fires").fetchone()
    return 0 if row is None else int(row[0])


def run(database: str, fires: int, speed: float, seed: int) -> dict[str, object]:
    """Run until all fires are decided, or a minute beyond the end. Return the outcome."""
    source = random.Random(seed)
    ids = asyncio.run(_create(database))
    minutes = fires // _SCHEDULES
    end = _BEGIN + timedelta(minutes=minutes)
    clock = PlayedClock(speed, end)
    deadline = time.monotonic() + minutes * 60 / speed + 60
    children = [_fork(database, clock) for _ in range(_SCHEDULERS)]
    kills = 0
    while _decided(database) < minutes * _SCHEDULES and time.monotonic() < deadline:
        time.sleep(source.uniform(0.0, 0.1))
        place = source.randrange(_SCHEDULERS)
        os.kill(children[place], signal.SIGKILL)
        os.waitpid(children[place], 0)
        kills += 1
        children[place] = _fork(database, clock)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return _verdict(database, ids, minutes) | {"kills": kills}


def _verdict(database: str, ids: list[UUID], minutes: int) -> dict[str, object]:
    wanted = {(name, _BEGIN + timedelta(minutes=number)) for name in ids for number in range(1, minutes + 1)}
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        fires = connection.execute("SELECT schedule_id, fire_time, outcome, job_id FROM schedule_fires").fetchall()
        jobs = connection.execute("SELECT id, schedule_id, run_at FROM jobs").fetchall()
    decided = [(fire["schedule_id"], fire["fire_time"]) for fire in fires if fire["outcome"] == "created"]
    made = {job["id"]: job for job in jobs}
    # The moment of each job, from its start. The jitter is less than a minute.
    starts = [(job["schedule_id"], job["run_at"].replace(second=0, microsecond=0)) for job in jobs]
    return {
        "fires": len(wanted),
        "missing": len(wanted - set(decided)),
        "doubled": len(starts) - len(set(starts)),
        "unexpected": len(set(starts) - wanted) + len(set(decided) - wanted),
        "without a job": sum(1 for fire in fires if fire["job_id"] not in made),
        "jobs": len(jobs),
    }


def main() -> int:
    """Run one storm. Print its verdict as JSON. Return 1 if a fire happened twice or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True)
    parser.add_argument("--fires", type=int, default=2000)
    parser.add_argument("--speed", type=float, default=3000, help="played seconds in a second")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    verdict = run(arguments.database, arguments.fires, arguments.speed, arguments.seed)
    sys.stdout.write(json.dumps(verdict) + "\n")
    is_right = verdict["jobs"] == verdict["fires"] and not any(
        verdict[name] for name in ("missing", "doubled", "unexpected", "without a job")
    )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
