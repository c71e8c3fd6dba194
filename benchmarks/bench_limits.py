"""Limits, hung jobs, turns and long queues: each figure beside its bar; exit code 1 if one is missed.

One embedded server with its default durability, two API processes as people run them, bare HTTP clients as workers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path, it must find its own package

from benchmarks.limits_load import WATCH, Fleet, hang, rate
from benchmarks.queue_load import (
    TASK_TYPE,
    ApiProcess,
    BareClient,
    api_process,
    database_server,
    execute,
    refill,
)
from benchmarks.queue_table import Row, print_table
from geo_jobs_api.database import migrate

LIMIT = 3
WORKERS = 8
HANGING = 6
_QUICK = {"FIRST_LEASE_SECONDS": "1", "RESCUE_GRACE_SECONDS": "0", "TIMEOUT_GRACE_SECONDS": "1"}


def set_limit(url: str, limit: int | None) -> None:
    """Set the limit on concurrent runs."""
    execute(url, "UPDATE task_types SET max_concurrent_runs = %s WHERE name = %s", limit, TASK_TYPE)
    execute(url, "SELECT pg_notify('geo_jobs_queued', %s)", f"{TASK_TYPE}:0")


async def drained_rate(apis: Sequence[ApiProcess], jobs: int, workers: int, limit: int | None) -> float:
    """Jobs per second of so many workers under a limit (or none)."""
    url = apis[0].url
    refill(url, jobs)
    set_limit(url, limit)
    fleet = Fleet(apis, workers)
    fleet.start()
    drained = await fleet.until_drained(url, 120)
    await fleet.stop()
    return rate(url) if drained else float("nan")


async def most_at_once(apis: Sequence[ApiProcess], jobs: int) -> tuple[int, int]:
    """The most jobs that ever ran at once while workers and APIs are killed, and how many jobs did not succeed."""
    url = apis[0].url
    refill(url, jobs)
    set_limit(url, LIMIT)
    execute(url, WATCH)
    fleet = Fleet(apis, WORKERS)
    fleet.start()

    async def kill() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.2, 0.5))  # noqa: S311  # no secret
            if random.random() < 0.8:  # noqa: S311  # no secret
                fleet.kill_one()
                continue
            api = random.choice(apis)  # noqa: S311  # no secret
            if api.process is not None:
                api.process.kill()
                await asyncio.to_thread(api.process.wait)
                await asyncio.to_thread(api.start)

    killing = asyncio.create_task(kill())
    await fleet.until_drained(url, 240)
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    await fleet.stop()
    ((most,),) = execute(url, "SELECT coalesce(max(running), 0) FROM seen_running")
    ((left,),) = execute(url, "SELECT count(*) FROM jobs WHERE state <> 'succeeded'")
    execute(url, "DROP TRIGGER watch_running ON jobs")
    execute(url, "DROP FUNCTION watch_running")
    execute(url, "DROP TABLE seen_running")
    return int(most), int(left)


def make_hanging(url: str, count: int) -> None:
    """Jobs of a type that times out soon, with two attempts."""
    execute(
        url,
        "INSERT INTO task_types (name, timeout_seconds, max_attempts, backoff_seconds)"
        " VALUES ('hanging', 1, 2, '{0.1}') ON CONFLICT DO NOTHING",
    )
    execute(
        url,
        "INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name,"
        " input_size_bytes, uploaded_at) SELECT gen_random_uuid(), 'bench', 'hanging', 'queued', 0, '{}', 2, 'a.tif',"
        " 1, now() FROM generate_series(1, %s)",
        count,
    )


async def beside_hanging(apis: Sequence[ApiProcess], jobs: int, *, hanging: bool) -> tuple[float, int]:
    """Jobs per second of a healthy type, beside one that hangs for ever or alone; hung jobs that died as they must."""
    url = apis[0].url
    refill(url, jobs)
    set_limit(url, None)
    stuck = []
    if hanging:
        make_hanging(url, HANGING)
        stuck = [asyncio.create_task(hang(apis[number % len(apis)], "hanging")) for number in range(HANGING)]
        await asyncio.sleep(0.5)
    fleet = Fleet(apis, 4)
    fleet.start()
    await fleet.until_drained(url, 120)
    await fleet.stop()
    speed, dead = rate(url), 0
    deadline = time.monotonic() + 30
    while hanging and dead < HANGING and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        ((dead,),) = execute(
            url,
            "SELECT count(*) FROM jobs WHERE task_type = 'hanging' AND state = 'failed' AND attempt = 2"
            " AND error ->> 'class' = 'timeout'",
        )
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    return speed, int(dead)


# Filling a long queue: the turns that `fair_turn` would give, had the jobs come one by one.
_FILL = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, turn
    )
    SELECT
        gen_random_uuid(), %s, name, 'queued', 0, '{}', 5, 'a.tif', 1, now(),
        now() + n * make_interval(secs => timeout_seconds)
    FROM task_types, generate_series(0, %s - 1) AS n
    WHERE name = %s
"""
_QUEUE = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, turn
    )
    SELECT
        gen_random_uuid(), %s, %s, 'queued', 0, '{}', 5, 'a.tif', 1, now(), fair_turn(%s, %s, 0, n)
    FROM generate_series(0, %s - 1) AS n
"""


def queue(url: str, owner: str, count: int) -> None:
    """Queue so many jobs of a caller, each in its turn."""
    execute(url, _QUEUE, owner, TASK_TYPE, owner, TASK_TYPE, count)


async def claim_times(api: ApiProcess, waiting: int, samples: int) -> list[float]:
    """Milliseconds of claims that get a job while so many others wait."""
    refill(api.url, 0)
    for owner in range(50):
        execute(api.url, _FILL, f"caller {owner}", waiting // 50, TASK_TYPE)
    execute(api.url, "VACUUM ANALYZE jobs")
    client = BareClient(api.port)
    seen = []
    for _ in range(samples):
        await asyncio.to_thread(queue, api.url, "somebody", 1)
        began = time.perf_counter()
        _, answer = await client.claim(0)
        seen.append((time.perf_counter() - began) * 1000)
        await client.on_job("complete", answer["jobs"][0], {"outputs": []})
    client.close()
    return seen


async def jobs_before_newcomer(api: ApiProcess, waiting: int = 10_000, served: int = 50) -> int:
    """How many jobs of a caller with thousands of them are claimed before the one of another who has just come."""
    refill(api.url, 0)
    execute(api.url, _FILL, "bulk", waiting, TASK_TYPE)
    client = BareClient(api.port)
    most = 0
    for _ in range(5):
        for _ in range(served):
            _, answer = await client.claim(0)
            await client.on_job("complete", answer["jobs"][0], {"outputs": []})
        queue(api.url, "newcomer", 1)
        before = 0
        while execute(api.url, "SELECT FROM jobs WHERE owner = 'newcomer' AND state = 'queued'"):
            _, answer = await client.claim(0)
            await client.on_job("complete", answer["jobs"][0], {"outputs": []})
            before += 1
        most = max(most, before - 1)
    client.close()
    return most


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(len(values) * 0.99) - 1]


def exact_rows(apis: Sequence[ApiProcess], jobs: int, _rounds: int) -> Iterator[Row]:
    """A limit under kills."""
    most, left = asyncio.run(most_at_once(apis, jobs))
    yield Row(f"limit {LIMIT}, {WORKERS} workers, {len(apis)} APIs, kills: most at once", most, LIMIT, False, "")
    yield Row(f"the same: of {jobs} jobs not succeeded", left, 0, False, "")


def throughput_rows(apis: Sequence[ApiProcess], jobs: int, rounds: int) -> Iterator[Row]:
    """What a limit costs."""
    rates: dict[int | None, list[float]] = {LIMIT: [], None: []}
    for _ in range(rounds):
        rates[None].append(asyncio.run(drained_rate(apis, jobs // 2, LIMIT, None)))
        rates[LIMIT].append(asyncio.run(drained_rate(apis, jobs // 2, WORKERS, LIMIT)))
    free, limited = (statistics.median(rates[limit]) for limit in (None, LIMIT))
    print(f"jobs/s: {LIMIT} workers without limit {free:.0f}, {WORKERS} workers with limit {limited:.0f}", flush=True)
    ratio = statistics.median(a / b for a, b in zip(rates[LIMIT], rates[None], strict=True))
    yield Row("throughput with the limit ÷ without, 3 at once", ratio, 0.9, True, "x")


def hanging_rows(apis: Sequence[ApiProcess], jobs: int, rounds: int) -> Iterator[Row]:
    """What a type that hangs does to another."""
    pairs = []
    for _ in range(rounds):
        alone, _ = asyncio.run(beside_hanging(apis, jobs // 2, hanging=False))
        beside, dead = asyncio.run(beside_hanging(apis, jobs // 2, hanging=True))
        pairs.append((beside / alone, dead))
    yield Row("throughput beside a type that hangs ÷ alone", statistics.median(one[0] for one in pairs), 0.9, True, "x")
    yield Row(f"of {HANGING} hung jobs: timed out, retried, dead", min(one[1] for one in pairs), HANGING, True, "")


def queue_rows(apis: Sequence[ApiProcess], _jobs: int, rounds: int) -> Iterator[Row]:
    """What a long queue costs those who claim, and those who come late."""
    few: list[float] = []
    many: list[float] = []
    for _ in range(rounds):
        few += asyncio.run(claim_times(apis[0], 0, 200))
        many += asyncio.run(claim_times(apis[0], 100_000, 200))
    medians = f"p50 {statistics.median(few):.2f} → {statistics.median(many):.2f}"
    print(f"claim, ms, none → 100,000 waiting: {medians}, p99 {p99(few):.2f} → {p99(many):.2f}", flush=True)
    yield Row("claim p99, 100,000 waiting ÷ none", p99(many) / p99(few), 2, False, "x")
    before = asyncio.run(jobs_before_newcomer(apis[0]))
    yield Row("of 10,000 waiting, claimed before a newcomer's", before, 3, False, "")


PARTS = {"exact": exact_rows, "throughput": throughput_rows, "hanging": hanging_rows, "queue": queue_rows}


def own_rows(parts: Sequence[str], jobs: int, rounds: int) -> Iterator[Row]:
    """The figures of limits, hung jobs, turns and long queues."""
    with database_server() as server, contextlib.ExitStack() as stack:
        execute(server.conninfo, "CREATE DATABASE bench")
        url = server.url("bench")
        asyncio.run(migrate(url))
        apis = [stack.enter_context(api_process(url, **_QUICK)) for _ in range(2)]
        for part in parts:
            yield from PARTS[part](apis, jobs, rounds)


def schedule_rows() -> Sequence[Row]:
    """The figures of schedules, where they can be measured."""
    if find_spec("benchmarks.bench_schedules") is None:
        return ()
    found: Sequence[Row] = import_module("benchmarks.bench_schedules").rows()
    return found


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part; may be repeated")
    arguments = parser.parse_args()
    rows = list(own_rows(arguments.only or list(PARTS), arguments.jobs, arguments.rounds))
    if not arguments.only:
        rows += schedule_rows()
    return print_table(rows)


if __name__ == "__main__":
    sys.exit(main())
