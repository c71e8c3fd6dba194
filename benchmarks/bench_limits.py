"""Limits, hung jobs, fair share, long queues, schedules, each figure beside its bar. Exit code 1 for a missed one.

Embedded servers with their default durability, API processes as in operation. Bare HTTP clients replace workers where
the queue is measured. The hanging task type is installed in real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from benchmarks import bench_schedules
from benchmarks.limits_hanging import hanging_rows
from benchmarks.limits_load import FIRST_LEASE, UNWATCH, WATCH, Fleet, kill_at_random, rate
from benchmarks.limits_queue import queue_rows
from benchmarks.queue_load import TASK_TYPE, ApiProcess, api_process, database_server, execute, refill
from benchmarks.queue_table import Row, print_table
from geo_jobs_api.database.migrate import migrate

LIMIT = 3
WORKERS = 8
_QUICK = {"FIRST_LEASE_SECONDS": str(FIRST_LEASE), "RESCUE_GRACE_SECONDS": "0"}


def set_limit(url: str, limit: int | None) -> None:
    """Set the limit on concurrent runs."""
    execute(url, "UPDATE task_types SET max_concurrent_runs = %s WHERE name = %s", limit, TASK_TYPE)
    execute(url, "SELECT pg_notify('geo_jobs_queued', %s)", f"{TASK_TYPE}:0")


async def drained_rate(apis: Sequence[ApiProcess], jobs: int, *, limited: bool, seed: int | None = None) -> float:
    """Return jobs per second of all workers, of which three have a job at once: by the type's limit, or by themselves.

    With a seed, workers and APIs are killed meanwhile, the same ones at the same moments in both cases.
    """
    url = apis[0].url
    refill(url, jobs)
    set_limit(url, LIMIT if limited else None)
    fleet = Fleet(apis, WORKERS, None if limited else LIMIT)
    fleet.start()
    killing = None if seed is None else asyncio.create_task(kill_at_random(fleet, seed))
    drained = await fleet.until_drained(url, 120)
    if killing is not None:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    await fleet.stop()
    return rate(url) if drained else float("nan")


def exact_rows(apis: Sequence[ApiProcess], jobs: int, rounds: int) -> Iterator[Row]:
    """A limit during kills: the number of concurrent jobs, by the database's count, and its cost."""
    url, ratios, most, left = apis[0].url, [], 0, 0
    execute(url, WATCH)
    for seed in range(rounds):
        found = {}
        for limited in (False, True) if seed % 2 else (True, False):
            execute(url, "TRUNCATE seen_running")
            found[limited] = asyncio.run(drained_rate(apis, jobs, limited=limited, seed=seed))
            if limited:
                ((seen,),) = execute(url, "SELECT coalesce(max(running), 0) FROM seen_running")
                ((lost,),) = execute(url, "SELECT count(*) FROM jobs WHERE state <> 'succeeded'")
                most, left = max(most, seen), left + lost
        print(f"jobs/s with kills: without limit {found[False]:.0f}, with limit {found[True]:.0f}", flush=True)
        ratios.append(found[True] / found[False])
    yield Row(f"limit {LIMIT}, {WORKERS} workers, {len(apis)} APIs, kills: most at once", most, LIMIT, False, "")
    yield Row(f"the same: of {rounds * jobs} jobs not succeeded", left, 0, False, "")
    for statement in UNWATCH:
        execute(url, statement)
    yield Row("the same: throughput ÷ without a limit, equal parallelism", statistics.median(ratios), 0.9, True, "x")


def throughput_rows(apis: Sequence[ApiProcess], jobs: int, rounds: int) -> Iterator[Row]:
    """The cost of a limit without faults."""
    ratios = []
    for number in range(rounds):
        # Alternating order, since the speed of a machine drifts.
        found = {
            limited: asyncio.run(drained_rate(apis, jobs, limited=limited))
            for limited in ((False, True) if number % 2 else (True, False))
        }
        print(f"jobs/s: without limit {found[False]:.0f}, with limit {found[True]:.0f}", flush=True)
        ratios.append(found[True] / found[False])
    yield Row("throughput with the limit ÷ without, no kills", statistics.median(ratios), 0.9, True, "x")


@contextlib.contextmanager
def two_apis() -> Iterator[list[ApiProcess]]:
    """Two API processes on one database."""
    with database_server() as server, contextlib.ExitStack() as stack:
        execute(server.conninfo, "CREATE DATABASE bench")
        url = server.url("bench")
        asyncio.run(migrate(url))
        yield [stack.enter_context(api_process(url, **_QUICK)) for _ in range(2)]


def _on_two_apis(measure: Callable[[Sequence[ApiProcess]], Iterator[Row]]) -> Iterator[Row]:
    with two_apis() as apis:
        yield from measure(apis)


PARTS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "exact": lambda jobs, rounds: _on_two_apis(lambda apis: exact_rows(apis, jobs, 2 * rounds + 1)),
    "throughput": lambda jobs, rounds: _on_two_apis(lambda apis: throughput_rows(apis, jobs // 4, 2 * rounds + 1)),
    "schedules": lambda jobs, _: iter(bench_schedules.rows(jobs)),
    "hanging": lambda jobs, rounds: hanging_rows(jobs // 4, max(1, rounds - 1)),
    "queue": lambda _, rounds: _on_two_apis(lambda apis: queue_rows(apis, rounds)),
}


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part. May be repeated")
    arguments = parser.parse_args()
    chosen = arguments.only or list(PARTS)
    return print_table(row for part in chosen for row in PARTS[part](arguments.jobs, arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
