"""Speed of the queue over HTTP beside Procrastinate in one process, latency of claims, cost of an idle queue.

Interleaved medians on one embedded server with its default durability. wrk (Debian: wrk) makes the load, since a Python
client would measure itself. Each figure is beside its bar. The exit code is 1 for a missed one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

import psycopg

from benchmarks.queue_load import (
    TASK_TYPE,
    TOKEN,
    ApiProcess,
    BareClient,
    api_process,
    cpu_seconds,
    database_server,
    enqueue,
    execute,
    refill,
)
from benchmarks.queue_table import Row, print_table
from geo_jobs_api.database.embedded import EmbeddedPostgres
from geo_jobs_api.database.migrate import migrate

HERE = Path(__file__).resolve().parent
CONNECTIONS = 32
PARKED = 20
IDLE_PARKED = 500
_PROCRASTINATE_JOBS = 3000
_STATEMENT = re.compile(rb"duration: [0-9.]+ ms  (?:execute|statement)")
_DEPTHS = (100, 10_000, 1_000_000)
_CLAIMS_AT_A_DEPTH = 60
_JOBS_A_SECOND = 8000  # more than can be claimed, so that the queue never empties


def drain_rate(api: ApiProcess, most: int, seconds: int, database: int | None = None) -> float:
    """Return jobs claimed and completed per second over HTTP, by the database's count.

    With the process id of `database`, also print the CPU time of a job.
    """
    refill(api.url, _JOBS_A_SECOND * (seconds + 1))
    seed = str(time.time_ns() % 10**6)
    load = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s"]
    command = [*load, "-s", str(HERE / "claim_complete.lua"), api.base_url, "--", TOKEN, TASK_TYPE, str(most), seed]
    watched = () if database is None or api.process is None else (api.process.pid, database)
    before = [cpu_seconds(pid) for pid in watched]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = [cpu_seconds(pid) - earlier for pid, earlier in zip(watched, before, strict=True)]
    if "Non-2xx" in output or "Socket errors" in output:
        print(output, file=sys.stderr)
    ((count, span),) = execute(
        api.url,
        "SELECT count(*), extract(epoch FROM max(finished_at) - min(finished_at))::float8 FROM jobs"
        " WHERE state = 'succeeded'",
    )
    if used:
        in_api, in_database = (seconds * 1e6 / count for seconds in used)
        print(
            f"maxJobs {most}: {count / span:.0f} jobs/s, API {in_api:.0f} µs, database {in_database:.0f} µs of CPU each"
        )
    return float(count / span)


async def claim_p99(api: ApiProcess, waiting: int) -> float:
    """Return the milliseconds of one claim in a hundred, on one connection, with so many jobs waiting."""
    refill(api.url, waiting)
    client, seen = BareClient(api.port), []
    for _ in range(_CLAIMS_AT_A_DEPTH):
        begun = time.perf_counter()
        await client.claim(0)
        seen.append((time.perf_counter() - begun) * 1000)
    client.close()
    return statistics.quantiles(seen[10:], n=100, method="inclusive")[-1]


def depth_row(api: ApiProcess, rounds: int) -> Row:
    """Return how much slower claims are at one length of the queue than at another."""
    seen = {depth: [asyncio.run(claim_p99(api, depth)) for _ in range(rounds)] for depth in _DEPTHS}
    medians = [statistics.median(values) for values in seen.values()]
    print("claim p99: " + ", ".join(f"{p99:.1f} ms at {depth}" for depth, p99 in zip(_DEPTHS, medians, strict=True)))
    return Row(
        "claim p99 at 100, 10,000 and 1,000,000 waiting: worst ÷ best", max(medians) / min(medians), 2, False, "x"
    )


def procrastinate_rate(url: str) -> float:
    """Return jobs per second of Procrastinate's worker."""
    execute(url, "TRUNCATE procrastinate_jobs CASCADE")
    command = [sys.executable, str(HERE / "procrastinate_drain.py"), "drain", url, str(_PROCRASTINATE_JOBS)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@contextlib.asynccontextmanager
async def parked_claims(api: ApiProcess, count: int) -> AsyncIterator[asyncio.Queue[tuple[float, Any]]]:
    """Claim repeatedly on many connections, like idle workers. Yield a queue of (moment, job)."""
    got: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()

    async def work(client: BareClient) -> None:
        while True:
            status, answer = await client.claim(25)
            if status == 200:
                got.put_nowait((time.perf_counter(), answer["jobs"][0]))
                await client.on_job("complete", answer["jobs"][0], {"outputs": []})

    clients = [BareClient(api.port) for _ in range(count)]
    tasks = [asyncio.create_task(work(client)) for client in clients]
    await asyncio.sleep(1)
    try:
        yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            client.close()


async def wake_latencies(api: ApiProcess, samples: int) -> list[float]:
    """Return the sorted milliseconds from a job's commit to the answer of its parked claim."""
    refill(api.url, 0)
    seen = []
    async with parked_claims(api, PARKED) as got:
        with psycopg.connect(api.url, autocommit=True) as connection:
            for _ in range(samples):
                enqueue(connection)
                queued = time.perf_counter()
                moment, _ = await asyncio.wait_for(got.get(), 10)
                seen.append((moment - queued) * 1000)
                # The claim parks again.
                await asyncio.sleep(0.01)
    return sorted(seen)


async def idle_queries(server: EmbeddedPostgres, seconds: float) -> float:
    """Return statements per second on an idle queue, by the server's log, since its counters lag."""
    execute(server.conninfo, "CREATE DATABASE idle")
    await migrate(server.url("idle"))
    execute(server.conninfo, "ALTER DATABASE idle SET log_min_duration_statement = 0")
    with api_process(server.url("idle")) as api:
        refill(api.url, 0)
        async with parked_claims(api, IDLE_PARKED):
            # The first claims queried for themselves.
            await asyncio.sleep(5)
            log = server.data / "server.log"
            before = log.stat().st_size
            await asyncio.sleep(seconds)
            return len(_STATEMENT.findall(log.read_bytes()[before:])) / seconds


async def restart_damage(api: ApiProcess, parked: int = 200, running: int = 20) -> float:
    """Return jobs given twice and failed claims over a restart of the API."""
    refill(api.url, running)
    workers = [BareClient(api.port) for _ in range(running)]
    jobs = [(await worker.claim(5))[1]["jobs"][0] for worker in workers]
    for worker, job in zip(workers, jobs, strict=True):
        await worker.on_job("heartbeat", job, {})

    async def patient_claim(number: int) -> str:
        claim_id = f"00000000-0000-4000-8000-{number:012x}"
        while True:
            client = BareClient(api.port)
            with contextlib.suppress(OSError):
                status, answer = await client.claim(25, claim_id)
                if status == 200:
                    return str(answer["jobs"][0]["id"])
            client.close()
            await asyncio.sleep(0.05)

    waiting = [asyncio.create_task(patient_claim(number)) for number in range(1, parked + 1)]
    await asyncio.sleep(2)
    await asyncio.to_thread(api.stop)
    await asyncio.to_thread(api.start)
    with psycopg.connect(api.url, autocommit=True) as connection:
        for _ in range(parked):
            await asyncio.to_thread(enqueue, connection)
    done, late = await asyncio.wait(waiting, timeout=60)
    for task in late:
        task.cancel()
    ids = [task.result() for task in done] + [str(job["id"]) for job in jobs]
    damage = len(late) + len(ids) - len(set(ids))
    for worker, job in zip(workers, jobs, strict=True):
        worker.close()
        status, _ = await worker.on_job("complete", job, {"outputs": []})
        damage += status != 200
        worker.close()
    return float(damage)


def own_rows(rounds: int, seconds: int) -> Iterator[Row]:
    """The figures of the API alone."""
    with database_server() as server:
        execute(server.conninfo, "CREATE DATABASE ours")
        execute(server.conninfo, "CREATE DATABASE theirs")
        ours, theirs = server.url("ours"), server.url("theirs")
        asyncio.run(migrate(ours))
        subprocess.run([sys.executable, str(HERE / "procrastinate_drain.py"), "prepare", theirs], check=True)
        with api_process(ours) as api:
            postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
            yield from rates(api, theirs, postmaster, rounds, seconds)
            latencies = asyncio.run(wake_latencies(api, 100 * rounds))
            yield Row("queued → held by a parked worker, p50", statistics.median(latencies), 1, False, "ms")
            yield Row("the same, p99", latencies[int(len(latencies) * 0.99) - 1], 5, False, "ms")
            yield depth_row(api, rounds)
            yield Row("API restart: claims lost, jobs twice", asyncio.run(restart_damage(api)), 0, False, "")
        yield Row(f"statements at idle, {IDLE_PARKED} parked", asyncio.run(idle_queries(server, 30)), 1, False, "1/s")


def rates(api: ApiProcess, theirs: str, database: int, rounds: int, seconds: int) -> Iterator[Row]:
    """Return drain rates, alternating, so that drifts of the machine affect both."""
    drain_rate(api, 1, 2)
    seen: dict[str, list[float]] = {"theirs": [], "1": [], "10": []}
    for _ in range(rounds):
        seen["theirs"].append(procrastinate_rate(theirs))
        seen["1"].append(drain_rate(api, 1, seconds, database))
        seen["10"].append(drain_rate(api, 10, seconds, database))
    theirs_rate, one, ten = (statistics.median(seen[name]) for name in ("theirs", "1", "10"))
    print(f"jobs/s: Procrastinate {theirs_rate:.0f}, ours {one:.0f}, ours with maxJobs 10 {ten:.0f}", flush=True)
    yield Row(f"claim + complete, {CONNECTIONS} connections, ÷ Procrastinate", one / theirs_rate, 3.5, True, "x")
    yield Row("the same with maxJobs 10", ten / theirs_rate, 6, True, "x")


def stack_rows() -> Iterator[Row]:
    """The figures that need real workers."""
    # Imported late, since it imports the worker.
    yield from import_module("benchmarks.queue_stack").rows()


def listener_rows() -> Iterator[Row]:
    """The cost of event streams."""
    listeners = import_module("benchmarks.queue_listeners")
    yield from listeners.rows(listeners.most_listeners())


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="length of one round")
    parser.add_argument("--own", action="store_true", help="only figures that need no worker")
    arguments = parser.parse_args()
    own = own_rows(arguments.rounds, arguments.seconds)
    return print_table(own if arguments.own else itertools.chain(own, stack_rows(), listener_rows()))


if __name__ == "__main__":
    sys.exit(main())
