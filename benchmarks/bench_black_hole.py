"""One worker of four with trouble: the attempts that it spends, and the pace of the others.

For each kind of trouble, 200 small jobs run through a real API and four worker processes, three of them healthy. The
pace is compared with the three healthy workers alone, measured just before and after. The exit code is 1 if the worker
with trouble spends an attempt, or a job does not succeed at its first one.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from benchmarks.queue_stack import stack, waves
from tests.support.clients import rows
from tests.support.sickness import SICKNESSES, Sickness
from tests.support.waiting import wait_until

HEALTHY = 3
# Number of jobs in the warm-up.
WARM_UP = 20


def run(jobs: int, sickness: Sickness | None) -> tuple[float, int, int]:
    """Return jobs per second after the warm-up, jobs not done at first, and leases of the worker with trouble."""
    with stack() as (made, url):
        source = waves(made.folder, 128)
        with sickness.prepared(made.folder) if sickness else _nothing() as settings:
            if sickness:
                made.worker("troubled", WORKER_NAME="troubled", LOG_LEVEL="ERROR", **settings)
            for number in range(HEALTHY):
                made.worker(f"healthy-{number}", WORKER_NAME=f"healthy-{number}", LOG_LEVEL="WARNING")
            wait_until(lambda: len(rows(url, "SELECT id FROM workers")) >= HEALTHY, "the workers", 60)
            for _ in range(jobs):
                made.submit(source)

            def ended() -> list[float]:
                found = rows(
                    url,
                    "SELECT extract(epoch FROM finished_at)::float8 AS at FROM jobs"
                    " WHERE finished_at IS NOT NULL ORDER BY finished_at",
                )
                return [row["at"] for row in found]

            wait_until(lambda: len(ended()) == jobs, "all jobs", 600, pause=1)
            moments = ended()[WARM_UP:]
            (wrong,) = rows(url, "SELECT count(*) AS n FROM jobs WHERE state <> 'succeeded' OR attempt <> 1")
            (spent,) = rows(
                url,
                "SELECT count(*) AS n FROM lease_outcomes WHERE worker_name = 'troubled'"
                " AND coalesce(error ->> 'class', '') <> 'interrupted'",
            )
    return (len(moments) - 1) / (moments[-1] - moments[0]), wrong["n"], spent["n"]


def _nothing() -> contextlib.AbstractContextManager[dict[str, str]]:
    return contextlib.nullcontext({})


def main() -> int:
    """Print one line for each kind of trouble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="jobs of each run (default: 200)")
    parser.add_argument("--only", metavar="WORD", default="", help="only kinds whose name has this word")
    parsed = parser.parse_args()
    is_bad = False
    alone = [run(parsed.jobs, None)[0]]
    print(f"three healthy workers alone: {alone[0]:.1f} jobs/s")
    for sickness in SICKNESSES:
        if parsed.only not in sickness.name:
            continue
        if sickness.missing:
            print(f"{sickness.name:<16} not run: {sickness.missing}")
            continue
        pace, wrong, spent = run(parsed.jobs, sickness)
        alone.append(run(parsed.jobs, None)[0])
        share = pace / statistics.mean(alone[-2:])
        is_bad |= bool(wrong or spent)
        print(
            f"{sickness.name:<16} attempts spent by the worker with trouble: {spent}, jobs not done at first: {wrong},"
            f" {pace:.1f} jobs/s, {share:.0%} of the healthy ones alone",
            flush=True,
        )
    return 1 if is_bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
