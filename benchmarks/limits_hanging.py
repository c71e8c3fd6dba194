"""A task type that never ends beside a healthy one, on the same real workers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

from benchmarks.queue_stack import stack
from benchmarks.queue_table import Row
from tests.support.clients import rows as query
from tests.support.packages import install
from tests.support.processes import Programs, job_children
from tests.support.waiting import wait_until

HUNG_JOBS = 6
HUNG_AT_ONCE = 2
HUNG_TIMEOUT = 5  # seconds
ATTEMPTS = 2
WARM_UP = 20
WORKERS = 2
PLACES = 4  # concurrent healthy jobs in all workers

_HEALTHY = {
    "name": "think",
    "input": "none",
    "outputs": [{"suffix": ".txt", "contentType": "text/plain", "maxBytes": 9}],
}
_HANGING = _HEALTHY | {
    "name": "ponder",
    "timeoutSeconds": HUNG_TIMEOUT,
    "maxAttempts": ATTEMPTS,
    "backoffSeconds": [0.1],
    "maxConcurrentRuns": HUNG_AT_ONCE,
}
_DEAD = """
    SELECT count(*) AS n FROM jobs
    WHERE task_type = 'ponder' AND state = 'failed' AND attempt = %s AND error ->> 'code' = 'timed_out'
        AND (SELECT count(*) FROM job_events WHERE job_id = jobs.id AND type = 'claimed') = %s
"""
_RATE = """
    SELECT count(*) / extract(epoch FROM max(finished_at) - min(finished_at))::float8 AS rate FROM jobs
    WHERE task_type = 'think' AND state = 'succeeded' AND created_at >= %s
"""


def measure(jobs: int, *, hanging: bool) -> tuple[float, int]:
    """Return healthy jobs per second, and the number of hung jobs that were killed, tried again, killed and then dead.

    The workers have the same places for healthy jobs in both cases. Hung jobs get additional ones.
    """
    with stack(TASK_TYPES=json.dumps([_HEALTHY, _HANGING])) as (made, url):
        installed = install(made.folder / "one", "thinker", input_rule="none")
        other = install(
            made.folder / "two",
            "ponderer",
            task_type="ponder",
            input_rule="none",
            doing="import time; [time.sleep(60) for _ in iter(int, 1)]",
        )
        places = (PLACES + (HUNG_AT_ONCE if hanging else 0)) // WORKERS
        for number in range(WORKERS):
            made.worker(
                f"worker-{number}",
                PYTHONPATH=f"{installed}:{other}",
                WORKER_TASK_TYPES="think,ponder",
                CONCURRENT_JOBS=str(places),
                LOG_LEVEL="WARNING",
            )
        _submit(made, "think", WARM_UP)
        wait_until(lambda: _ended(url, "think") == WARM_UP, "the workers to be warm", 60)
        ((begun,),) = (row.values() for row in query(url, "SELECT now() AS now"))
        if hanging:
            _submit(made, "ponder", HUNG_JOBS)
            wait_until(lambda: _running(url) == HUNG_AT_ONCE, "the first jobs to hang", 30)
        _submit(made, "think", jobs)
        wait_until(lambda: _ended(url, "think") == WARM_UP + jobs, "the healthy jobs to end", 180, pause=0.2)
        rate = float(query(url, _RATE, begun)[0]["rate"])
        if not hanging:
            return rate, 0
        wait_until(lambda: _ended(url, "ponder") == HUNG_JOBS, "the hung jobs to end", 120, pause=0.2)
        wait_until(lambda: not any(map(job_children, (each for each in made.workers))), "no process to be left", 10)
        return rate, int(query(url, _DEAD, ATTEMPTS, ATTEMPTS)[0]["n"])


def _submit(made: Programs, task_type: str, count: int) -> None:
    jobs = [{"taskType": task_type, "inputPayload": {}} for _ in range(count)]
    made.person().post("/api/geo-jobs/batch", json={"jobs": jobs}).raise_for_status()


def _ended(url: str, task_type: str) -> int:
    ended = "SELECT count(*) AS n FROM jobs WHERE task_type = %s AND state IN ('succeeded', 'failed')"
    return int(query(url, ended, task_type)[0]["n"])


def _running(url: str) -> int:
    return int(query(url, "SELECT count(*) AS n FROM jobs WHERE task_type = 'ponder' AND state = 'running'")[0]["n"])


def hanging_rows(jobs: int, rounds: int) -> Iterator[Row]:
    """The effect of a hanging task type on another."""
    ratios, dead = [], []
    for _ in range(rounds):
        alone, _none = measure(jobs, hanging=False)
        beside, killed = measure(jobs, hanging=True)
        print(f"healthy jobs/s of {WORKERS} real workers: alone {alone:.1f}, beside hung ones {beside:.1f}", flush=True)
        ratios.append(beside / alone)
        dead.append(killed)
    yield Row("throughput beside a type that hangs ÷ alone, real workers", statistics.median(ratios), 0.9, True, "x")
    yield Row(
        f"of {HUNG_JOBS} hung jobs: killed at {HUNG_TIMEOUT} s, tried again, killed, dead",
        min(dead),
        HUNG_JOBS,
        True,
        "",
    )
