"""Small jobs (512² RGB) through the whole stack: CPU by process, jobs per second, and one job on an idle machine.

Each round is a new stack with one worker and CONCURRENT_JOBS=2. The CPU of the API and PostgreSQL includes creating and
uploading the jobs. `--against REF` measures another commit in turn, with this file. Each figure is beside its bar.
The exit code is 1 for a missed one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from benchmarks import machine
from benchmarks.machine import TICKS, busy, checked_out, description, importing
from benchmarks.queue_stack import stack, waves
from benchmarks.queue_table import Row, print_table
from tests.support.clients import rows as query
from tests.support.processes import ROOT, Programs, children
from tests.support.rasters import UTM
from tests.support.waiting import wait_until

PLACES: dict[str, dict[str, Any]] = {"native": {}, "UTM": {"crs": "EPSG:32638", "transform": UTM}}
PROCESSES = ("API", "worker", "fork server", "child", "PostgreSQL")
STEPS = ("created → queued", "queued → claimed", "claimed → started", "started → succeeded")
WARM_UP = 10
PAUSE = 0.3  # seconds before each job on an idle machine
# Name, figure, its bar for native and UTM, and whether it is a minimum.
BARS = (
    ("CPU per job, ms", (75, 100), False),
    ("jobs per second", (22, 16), True),
    ("one job, created → succeeded, p50, ms", (130, None), False),
)
_EVENTS = """
    SELECT type, extract(epoch FROM created_at)::float8 AS at FROM job_events WHERE job_id = %s
    UNION ALL SELECT 'created', extract(epoch FROM created_at)::float8 FROM jobs WHERE id = %s
    UNION ALL SELECT 'finished', extract(epoch FROM finished_at)::float8 FROM jobs WHERE id = %s
"""


def measure(place: dict[str, Any], jobs: int) -> dict[str, float]:
    """Return all figures of one stack, in milliseconds and jobs per second."""
    # The tree that a commit under `--against` is measured from.
    settings = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    with stack(**settings) as (made, url):
        source = waves(made.folder, 512, **place)
        person = Person(made, source)
        before = cpu(made)
        for _ in range(jobs + WARM_UP):
            person.submit()
        submitted = {name: (after - before[name]) / (jobs + WARM_UP) for name, after in cpu(made).items()}
        made.worker(CONCURRENT_JOBS="2", LOG_LEVEL="WARNING", **settings)

        def ended() -> list[float]:
            found = query(url, "SELECT extract(epoch FROM finished_at)::float8 AS at FROM jobs ORDER BY finished_at")
            return [row["at"] for row in found if row["at"] is not None]

        wait_until(lambda: len(ended()) >= WARM_UP, "the first jobs", 120, pause=0.05)
        start, count, others = cpu(made), len(ended()), 1000 * busy()
        wait_until(lambda: len(ended()) == jobs + WARM_UP, "all jobs", 600, pause=0.5)
        moments = ended()[count - 1 :]
        worked = {name: (after - start[name]) / (jobs + WARM_UP - count) for name, after in cpu(made).items()}
        others = 1000 * busy() - others - sum(worked.values()) * (jobs + WARM_UP - count)
        figures = {name: submitted[name] + worked[name] for name in PROCESSES}
        figures["CPU per job, ms"] = sum(figures.values())
        figures["jobs per second"] = (len(moments) - 1) / (moments[-1] - moments[0])
        figures["CPU of others, cores"] = others / 1000 / (time.time() - moments[0])
        idle = [person.one(url) for _ in range(jobs // 5)]
        figures["one job, created → succeeded, p50, ms"] = statistics.median(sum(steps) for steps in idle)
        figures |= {step: statistics.median(steps[at] for steps in idle) for at, step in enumerate(STEPS)}
        ((wrong,),) = [
            tuple(row.values()) for row in query(url, "SELECT count(*) FROM jobs WHERE state <> 'succeeded'")
        ]
    return figures if wrong == 0 else dict.fromkeys(figures, float("nan"))


class Person:
    """A caller with kept connections.

    Args:
        made: the stack.
        source: the file of all its jobs.
    """

    def __init__(self, made: Programs, source: Path) -> None:
        self._api = made.person()
        self._content = source.read_bytes()
        self._body = {"fileName": source.name, "fileSize": len(self._content), "fileType": "image/tiff"}

    def submit(self) -> str:
        """Create a job and upload its file. Return its id."""
        made = self._api.post("/api/geo-jobs", json={"taskType": "geotiff_to_png", "inputPayload": {}})
        job_id = str(made.raise_for_status().json()["id"])
        slot = self._api.post(f"/api/geo-jobs/{job_id}/upload", json=self._body).raise_for_status().json()
        self._api.put(slot["uploadUrl"], content=self._content).raise_for_status()
        return job_id

    def one(self, url: str) -> tuple[float, ...]:
        """Run one job on an idle machine. Return the milliseconds of `STEPS`."""
        time.sleep(PAUSE)
        job_id = self.submit()

        def moments() -> dict[str, float]:
            return {row["type"]: row["at"] for row in query(url, _EVENTS, job_id, job_id, job_id)}

        wait_until(lambda: moments()["finished"] is not None, "a job", 60, pause=0.2)
        at = moments()
        order = [at[name] for name in ("created", "queued", "claimed", "started", "finished")]
        return tuple(1000 * (after - before) for before, after in pairwise(order))


def cpu(made: Programs) -> dict[str, float]:
    """Return the milliseconds of CPU so far, by kind of process. Those of ended processes are in their parents."""
    spent = dict.fromkeys(PROCESSES, 0.0)
    (postgres,) = [int(file.read_text().split()[0]) for file in (made.folder / "postgres").rglob("postmaster.pid")]
    spent["PostgreSQL"] = _family(postgres)
    spent["API"] = _family(made.api.pid)
    for worker in made.workers:
        servers = children(worker.pid, b"forkserver")
        spent["worker"] += _own(worker.pid)
        for server in servers:
            spent["fork server"] += _own(server)
            spent["child"] += _family(server) - _own(server)
    return spent


def _family(pid: int) -> float:
    own, ended = _times(pid)
    return own + ended + sum(map(_family, children(pid)))


def _own(pid: int) -> float:
    return _times(pid)[0]


def _times(pid: int) -> tuple[float, float]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    user, system, user_of_ended, system_of_ended = (1000 * int(field) / TICKS for field in fields[11:15])
    return user + system, user_of_ended + system_of_ended


def one_round(tree: Path, place: str, jobs: int) -> dict[str, float]:
    """Measure a tree in processes of its own."""
    command = [sys.executable, str(tree / "benchmarks" / Path(__file__).name), "--round", place, "--jobs", str(jobs)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=tree, env=importing(tree))
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def table(trees: dict[str, Path], rounds: int, jobs: int) -> Iterator[Row]:
    """Measure all trees in turn. Yield the figures of the first beside their bars, after a line for each tree."""
    for which, place in enumerate(PLACES):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(rounds):
            for name, tree in trees.items():
                found[name].append(one_round(tree, place, jobs))
        for name, runs in found.items():
            middle = {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
            print(
                f"{place}, {name}: " + ", ".join(f"{figure} {value:.1f}" for figure, value in middle.items()),
                flush=True,
            )
        for figure, bars, at_least in BARS:
            value = statistics.median(run[figure] for run in next(iter(found.values())))
            yield Row(f"small jobs, {place}: {figure}", value, bars[which], at_least, "")


def main() -> int:
    """Print the machine, its load, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="stacks for each kind of job (default: 3)")
    parser.add_argument("--jobs", type=int, default=100, help="jobs of each stack (default: 100)")
    parser.add_argument("--against", metavar="REF", help="another commit, measured in turn")
    parser.add_argument("--round", choices=PLACES, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.round:
        print(json.dumps(measure(PLACES[parsed.round], parsed.jobs)))
        return 0
    print(description())
    if not parsed.against:
        return print_table(table({"here": ROOT}, parsed.rounds, parsed.jobs))
    with checked_out(parsed.against) as other:
        for needed in (__file__, machine.__file__):
            shutil.copy(needed, other / "benchmarks")
        return print_table(table({"here": ROOT, parsed.against: other}, parsed.rounds, parsed.jobs))


if __name__ == "__main__":
    sys.exit(main())
