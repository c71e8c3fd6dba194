"""The cost of a long queue for claims and for newcomers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence

from benchmarks.queue_load import TASK_TYPE, ApiProcess, BareClient, execute, refill
from benchmarks.queue_table import Row

# Fills a long queue with the keys that `next_fair_share` would give to single jobs.
_FILL = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, fair_share_at
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
        uploaded_at, fair_share_at
    )
    SELECT
        gen_random_uuid(), %s, %s, 'queued', 0, '{}', 5, 'a.tif', 1, now(), next_fair_share(%s, %s, 0, n)
    FROM generate_series(0, %s - 1) AS n
"""


def queue(url: str, owner: str, count: int) -> None:
    """Queue this many jobs of a caller, each with its fair share key."""
    execute(url, _QUEUE, owner, TASK_TYPE, owner, TASK_TYPE, count)


async def claim_times(api: ApiProcess, waiting: int, samples: int) -> list[float]:
    """Return the milliseconds of claims while this many other jobs wait."""
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
    """Return the number of jobs of a busy caller that are claimed before a newcomer's."""
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
    """Return the 99th percentile."""
    return sorted(values)[int(len(values) * 0.99) - 1]


def queue_rows(apis: Sequence[ApiProcess], rounds: int) -> Iterator[Row]:
    """The cost of a long queue for claims and for newcomers."""
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
