"""Many small jobs through real processes during faults, then a verdict.

python -m tests.chaos.storm --jobs 2000 --workers 6 --seed 7
"""

import argparse
import contextlib
import io
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from tests.chaos.faults import PATIENCE, Database, Fleet, Gremlin
from tests.chaos.proxy import Fault, FaultProxy, fault_proxy
from tests.chaos.verdict import complaints, left_files
from tests.support.api import bearer
from tests.support.clients import rows
from tests.support.processes import Programs, programs
from tests.support.rasters import Tiff
from tests.support.receiver import receiver
from tests.support.waiting import wait_until

# Bytes. By the seed, only the world file is inline, or all but the metadata.
INLINE_BYTES = (100, 1000)
LEASE = {
    "LEASE_SECONDS": "4",
    "FIRST_LEASE_SECONDS": "3",
    "HEARTBEAT_SECONDS": "1.3",
    "RESCUE_INTERVAL_SECONDS": "0.3",
    # The outbox's longest wait between two attempts. Usually the minute of a lease.
    "RESCUE_GRACE_SECONDS": "10",
    # A storm loses more workers of one job than real operation.
    "MAX_WORKER_LOSSES": "1000",
    # One caller submits all jobs.
    "REQUESTS_PER_MINUTE": "0",
    # Each ending has a webhook delivery. One that meets the API's death is retried after a few seconds.
    "WEBHOOK_HOSTS": "127.0.0.1",
    "WEBHOOK_DELIVERIES_PER_SECOND": "200",
}
# Exit codes: a worker that is terminated before it handles signals has no job to return.
UNHURT = (0, -signal.SIGTERM)
# One job in this many depends on another.
CHILDREN = 5
WORKER = {"CONCURRENT_JOBS": "2", "SHUTDOWN_GRACE": "2", "POLL_INTERVAL": "0.2", "LOG_LEVEL": "INFO"}


@dataclass(frozen=True)
class Storm:
    """Length and strength of a storm.

    Attributes:
        jobs: number of jobs.
        workers: number of processes, two jobs each.
        seed: decides all faults.
        pause: longest time between two faults of processes, in seconds.
        rounds: rounds of twelve faults of processes, after which they end.
        factor: multiplies the shares of faulty requests.
        held_open: seconds until a half-open connection ends.
        deadline: seconds for all jobs.
    """

    jobs: int
    workers: int
    seed: int
    pause: float = 3.0
    rounds: int = sys.maxsize
    factor: float = 1.0
    held_open: float = 40.0
    deadline: float = 3000.0


@dataclass(frozen=True)
class Outcome:
    """The faults of a storm, and the complaints after it."""

    complaints: list[str]
    requests: Counter[Fault]
    processes: Counter[str]
    events: dict[str, int]
    seconds: float


def run(storm: Storm, folder: Path) -> Outcome:
    """Run one storm in its own folder, which the database's user must be able to enter."""
    started = time.monotonic()
    # Durable as in operation: committed data survives.
    database = Database(folder / "postgres", {})
    url = database.start()
    try:
        inline = str(INLINE_BYTES[storm.seed % 2])
        with contextlib.ExitStack() as stay, programs(url, folder, **LEASE, MAX_INLINE_BYTES=inline) as stack:
            # One fewer than the capacity, so that the limit always holds jobs back.
            limit = max(1, 2 * storm.workers - 1)
            rows(
                url,
                "UPDATE task_types SET max_concurrent_runs = %s, max_attempts = 1000, backoff_seconds = '{0.2}'",
                limit,
            )
            hook = stay.enter_context(receiver())
            stack.person().post("/api/webhooks", json={"url": hook.url}).raise_for_status()
            colors = submit_all(stack, storm)
            port = int(stack.base_url.rsplit(":", 1)[1])
            with fault_proxy(FaultProxy(port, storm.seed, storm.factor, storm.held_open)) as proxy:
                fleet = Fleet(stack, proxy, storm.workers, WORKER)
                gremlin = Gremlin(stack, fleet, database, seed=storm.seed, pause=storm.pause, rounds=storm.rounds)
                gremlin.start()
                wrong = []
                try:
                    _wait_for_the_end(url, storm)
                except AssertionError as error:
                    wrong.append(str(error))
                try:
                    gremlin.stop()
                except Exception as error:  # noqa: BLE001 - counted as a complaint
                    wrong.append(f"the storm ended early: {error!r}")
                proxy.calm()
                _wait_for_clean_folders(folder)
                codes = fleet.stop()
                wrong += [f"a worker ended with {code}" for code in codes if code not in UNHURT]
            _wait_for_deliveries(url)
            wrong += complaints(url, stack.base_url, colors, limit, hook.received)
            wrong += [f"left behind: {path}" for path in left_files(folder)]
            counted = rows(url, "SELECT type, count(*) AS n FROM job_events GROUP BY type ORDER BY type")
            events = {str(row["type"]): int(row["n"]) for row in counted}
        return Outcome(wrong, proxy.done, gremlin.done, events, time.monotonic() - started)
    finally:
        database.close()


def submit_all(stack: Programs, storm: Storm) -> dict[str, tuple[int, int, int]]:
    """Create all jobs, each with its own color. Each of the last ones waits for one of the others.

    Returns:
        The colors by job id.
    """
    source = random.Random(storm.seed)
    colors = [(source.randrange(256), source.randrange(256), source.randrange(256)) for _ in range(storm.jobs)]
    folder = stack.folder / "sources"
    folder.mkdir()
    with httpx.Client(base_url=stack.base_url, headers=bearer(), timeout=60) as person, httpx.Client() as storage:

        def submit(numbered: tuple[int, tuple[int, int, int]], parent: str | None = None) -> str:
            number, color = numbered
            pixels = np.broadcast_to(np.array(color, "uint8")[:, None, None], (3, 24, 32))
            path = Tiff(np.ascontiguousarray(pixels)).write(folder / f"{number}.tif")
            content = path.read_bytes()
            path.unlink()
            body: dict[str, object] = {"taskType": "geotiff_to_png", "inputPayload": {"thumbnailSize": 16}}
            if parent is not None:
                body["dependsOn"] = [{"jobId": parent}]
            job_id = str(person.post("/api/geo-jobs", json=body).raise_for_status().json()["id"])
            wanted = {"fileName": "map.tif", "fileSize": len(content), "fileType": "image/tiff"}
            slot = person.post(f"/api/geo-jobs/{job_id}/upload", json=wanted).raise_for_status().json()
            storage.put(slot["uploadUrl"], content=io.BytesIO(content).getvalue(), timeout=60).raise_for_status()
            return job_id

        numbered = list(enumerate(colors))
        alone = numbered[: len(numbered) - len(numbered) // CHILDREN]
        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(submit, alone))
            ids += pool.map(submit, numbered[len(alone) :], [source.choice(ids) for _ in numbered[len(alone) :]])
    return dict(zip(ids, colors, strict=True))


def _wait_for_the_end(url: str, storm: Storm) -> None:
    def over() -> bool:
        try:
            (row,) = rows(url, "SELECT count(*) AS n FROM jobs WHERE finished_at IS NULL")
        except Exception:  # noqa: BLE001 - the database is being restarted
            return False
        return bool(row["n"] == 0)

    wait_until(over, "all jobs to end", storm.deadline, pause=0.3)


def _wait_for_deliveries(url: str) -> None:
    """Wait until no webhook delivery is pending."""

    def all_delivered() -> bool:
        (row,) = rows(url, "SELECT count(*) AS n FROM webhook_deliveries WHERE state = 'pending'")
        return bool(row["n"] == 0)

    with contextlib.suppress(AssertionError):  # the verdict counts missing deliveries
        wait_until(all_delivered, "all deliveries", PATIENCE, pause=0.3)


def _wait_for_clean_folders(folder: Path) -> None:
    try:
        wait_until(lambda: not left_files(folder), "workers to clean up", PATIENCE)
    except AssertionError:
        return  # the verdict lists the files


def main() -> int:
    """Run a long storm. Return 0 if no job was lost or done twice and no file is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    parsed = parser.parse_args()
    storm = Storm(parsed.jobs, parsed.workers, parsed.seed)
    print(f"seed {storm.seed}: {storm.jobs} jobs, {storm.workers} workers", flush=True)  # noqa: T201 - a command
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-chaos-"))
    try:
        outcome = run(storm, folder)
    except Exception as error:  # noqa: BLE001 - any error gets a verdict
        traceback.print_exc()
        print(f"✗ seed {storm.seed}: the storm could not be run to its end ({error!r}); logs: {folder}")  # noqa: T201
        return 1
    for name, counted in (
        ("requests", outcome.requests),
        ("processes", outcome.processes),
        ("events", outcome.events),
    ):
        print(f"{name}: " + ", ".join(f"{key} {number}" for key, number in sorted(counted.items())))  # noqa: T201
    for line in outcome.complaints[:50]:
        print(f"✗ {line}")  # noqa: T201
    lost = len(outcome.complaints)
    print(f"{'✗' if lost else '✓'} seed {storm.seed}: {lost} complaints after {outcome.seconds:.0f} s")  # noqa: T201
    if lost or parsed.keep:
        print(f"logs: {folder}")  # noqa: T201
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
