"""Run many small real jobs through real processes during faults. Then check the queue.

python -m tests.chaos.storm --jobs 2000 --workers 6 --seed 7 --faults read-only,packets
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from tests.chaos import isolation
from tests.chaos.database import PATIENCE, Database
from tests.chaos.faults import Fleet, Gremlin, temp_dir
from tests.chaos.outages import Outages
from tests.chaos.proxy import Fault, FaultProxy, fault_proxy
from tests.chaos.verdict import Kind, complaints, count, left_files, spent_attempts
from tests.support.api import bearer
from tests.support.clients import rows
from tests.support.pgbouncer import PGBOUNCER
from tests.support.processes import Programs, programs
from tests.support.rasters import Tiff
from tests.support.receiver import receiver
from tests.support.waiting import wait_until

# Bytes: by the seed, the world file alone comes with the report, or all but the metadata does.
INLINE_BYTES = (100, 1000)
API = {
    "RESCUE_INTERVAL_SECONDS": "0.3",
    # The storm takes more workers from a job than real life does.
    "MAX_WORKER_LOSSES": "1000",
    # All is submitted by one person.
    "REQUESTS_PER_MINUTE": "0",
    # Each end has a delivery. One that fails during an API's death is repeated after a few seconds.
    "WEBHOOK_HOSTS": "127.0.0.1",
    "WEBHOOK_DELIVERIES_PER_SECOND": "200",
}
# Groups of faults, the values of `--faults`.
ROOTED = ("packets", "disks")
FAULTS = (
    "processes", "restart", "requests", "read-only", "standby", "pgbouncer", "stop-api", "clocks", *ROOTED,
)  # fmt: skip
# Small disks, in MB: of the database, of storage without its jobs, of each worker.
DISKS = (400, 64, 64)
STORAGE_MB_PER_JOB = 0.1
# Three of these must fit on a worker's disk.
MAX_FILE_SIZE = 4_000_000
# A worker that gets SIGTERM before it handles signals has nothing to give back.
UNHURT = (0, -signal.SIGTERM)
# Of all jobs so many wait for another: one in five.
CHILDREN = 5
WORKER = {
    "CONCURRENT_JOBS": "2",
    "SHUTDOWN_GRACE": "2",
    "POLL_INTERVAL": "0.2",
    "LOG_LEVEL": "INFO",
    "MAX_FILE_SIZE": str(MAX_FILE_SIZE),
}


@dataclass(frozen=True)
class Storm:
    """Length and strength of a storm.

    Attributes:
        jobs: number of jobs.
        workers: processes, two jobs each.
        seed: of all random choices.
        pause: longest time between two faults of processes, in seconds.
        rounds: rounds of faults. Each has every fault of the chosen groups.
        factor: multiple of the usual rate of faulty requests.
        held_open: seconds until a half-open connection counts as dead.
        deadline: seconds for all jobs.
        faults: the groups of faults.
        spread: seconds over which a rate limit spreads the claims. 0: no rate limit.
        stop_seconds: duration of the API's SIGSTOP.
        lease: seconds of a lease. Long enough for a busy machine, short for a storm that kills workers.
    """

    jobs: int
    workers: int
    seed: int
    pause: float = 3.0
    rounds: int = sys.maxsize
    factor: float = 1.0
    held_open: float = 40.0
    deadline: float = 3000.0
    faults: frozenset[str] = frozenset({"processes", "restart", "requests"})
    spread: float = 0.0
    stop_seconds: float = 120.0
    lease: float = 30.0


@dataclass(frozen=True)
class Outcome:
    """The faults of a storm, and the complaints after it."""

    complaints: list[str]
    requests: Counter[Fault]
    processes: Counter[str]
    events: dict[str, int]
    seconds: float


def run(storm: Storm, folder: Path) -> Outcome:
    """Run one storm in a folder of its own, which another user must be able to enter."""
    started = time.monotonic()
    database = Database(
        folder / "database",
        over_tcp="packets" in storm.faults,
        with_standby="standby" in storm.faults,
        pooled="pgbouncer" in storm.faults,
    )
    storage, temp_dirs = folder / "storage", [temp_dir(folder, number) for number in range(storm.workers)]
    sizes = (DISKS[0], DISKS[1] + round(STORAGE_MB_PER_JOB * storm.jobs), *[DISKS[2]] * storm.workers)
    disks = dict(zip((database.disk, storage, *temp_dirs), sizes, strict=True)) if "disks" in storm.faults else {}
    try:
        for path, size in disks.items():
            isolation.mount_disk(path, size)
        # As in service: committed data survive.
        database.start()
        database.start_others()
        url = database.url
        settings = API | _leases(storm.lease) | database.api_settings | {"DATA_DIR": str(storage)}
        settings["MAX_INLINE_BYTES"] = str(INLINE_BYTES[storm.seed % 2])
        with contextlib.ExitStack() as stay, programs(url, folder, **settings) as stack:
            # All but one may run at once, so that the limit is always at work.
            limit = max(1, 2 * storm.workers - 1)
            rows(
                url,
                "UPDATE task_types SET max_concurrent_runs = %s, max_attempts = 1000, backoff_seconds = '{0.2}'",
                limit,
            )
            hook = stay.enter_context(receiver())
            stack.person().post("/api/webhooks", json={"url": hook.url}).raise_for_status()
            colors = submit_all(stack, storm)
            if storm.spread:
                rate = "UPDATE task_types SET rate_count = 1, rate_period_seconds = %s WHERE name = 'geotiff_to_png'"
                rows(url, rate, storm.spread / storm.jobs)
            with fault_proxy(FaultProxy(stack.port, storm.seed, storm.factor, storm.held_open)) as proxy:
                if "requests" not in storm.faults:
                    proxy.calm()
                fleet = Fleet(stack, proxy, storm.workers, WORKER, wrong_clocks="clocks" in storm.faults)
                ports = [stack.port, int(proxy.base_url.rsplit(":", 1)[1])]
                outages = Outages(
                    stack, database, ports, storage, temp_dirs, storm.seed, stop_seconds=storm.stop_seconds
                )
                gremlin = Gremlin(
                    stack,
                    fleet,
                    database,
                    outages,
                    asked=storm.faults,
                    seed=storm.seed,
                    lease=storm.lease,
                    pause=storm.pause,
                    rounds=storm.rounds,
                )
                wrong = _rage(storm, url, gremlin)
                proxy.calm()
                _wait_for_silence(folder)
                codes = fleet.stop()
                wrong += [f"{Kind.OTHER}: a worker ended with {code}" for code in codes if code not in UNHURT]
            _wait_for_word(url)
            wrong += complaints(url, stack.base_url, colors, limit, hook.received)
            wrong += spent_attempts(url, gremlin.harms)
            wrong += [f"{Kind.OTHER}: left behind: {path}" for path in left_files(folder)]
            counted = rows(url, "SELECT type, count(*) AS n FROM job_events GROUP BY type ORDER BY type")
            events = {str(row["type"]): int(row["n"]) for row in counted}
        return Outcome(wrong, proxy.done, gremlin.done, events, time.monotonic() - started)
    finally:
        database.close()
        with contextlib.suppress(OSError):
            shutil.copy(database.data / "server.log", folder)
        for path in disks:
            isolation.unmount_disk(path)


def _leases(seconds: float) -> dict[str, str]:
    return {
        "LEASE_SECONDS": str(seconds),
        "FIRST_LEASE_SECONDS": str(0.4 * seconds),
        "HEARTBEAT_SECONDS": str(seconds / 6),
        # At least as long as the outbox may wait between two tries.
        "RESCUE_GRACE_SECONDS": str(max(10.0, seconds)),
    }


def _rage(storm: Storm, url: str, gremlin: Gremlin) -> list[str]:
    """Make faults until all jobs have ended. Return the complaints."""
    wrong = []
    gremlin.start()
    try:
        _wait_for_the_end(url, storm)
    except AssertionError as error:
        wrong.append(f"{Kind.OTHER}: {error}")
    try:
        gremlin.stop()
    except Exception as error:  # noqa: BLE001 - a storm that broke off is reported like any other fault
        wrong.append(f"{Kind.OTHER}: the storm broke off: {error!r}")
    return wrong


def submit_all(stack: Programs, storm: Storm) -> dict[str, tuple[int, int, int]]:
    """Make all jobs, each with a color of its own, the last of them to wait for one of the others each.

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


def _wait_for_word(url: str) -> None:
    """Wait until no delivery is pending."""

    def told() -> bool:
        (row,) = rows(url, "SELECT count(*) AS n FROM webhook_deliveries WHERE state = 'pending'")
        return bool(row["n"] == 0)

    with contextlib.suppress(AssertionError):  # the verdict counts the missing deliveries
        wait_until(told, "all deliveries", PATIENCE, pause=0.3)


def _wait_for_silence(folder: Path) -> None:
    try:
        wait_until(lambda: not left_files(folder), "workers to clean up", PATIENCE)
    except AssertionError:
        return  # the verdict names the pending ones


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--faults", type=_groups, default=frozenset(FAULTS), help=f"groups, comma separated: {', '.join(FAULTS)}"
    )
    parser.add_argument("--seconds", type=float, default=0, help="hand the jobs out over so many seconds")
    parser.add_argument("--stop-seconds", type=float, default=120, help="how long the API is stopped by SIGSTOP")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    return parser.parse_args(arguments)


def _groups(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(","))
    if unknown := names - set(FAULTS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}. Use some of {', '.join(FAULTS)}")
    return names


def possible(asked: frozenset[str]) -> frozenset[str]:
    """Leave out the groups that cannot be made here, with a line for each."""
    reasons = dict.fromkeys(ROOTED, isolation.obstacle())
    reasons["pgbouncer"] = "" if PGBOUNCER else "PgBouncer is not installed"
    for name in sorted(asked):
        if reasons.get(name):
            print(f"skipped {name}: {reasons[name]}", flush=True)  # noqa: T201 - a command
    return frozenset(name for name in asked if not reasons.get(name))


def main(arguments: Sequence[str] = sys.argv[1:]) -> int:
    """Run a long storm. Return 0 when no job was lost or done twice, no attempt spent and nothing left behind."""
    asked = parse(arguments)
    faults = asked.faults if isolation.is_inside() else possible(asked.faults)
    if not faults:
        return 0
    if faults & set(ROOTED) and not isolation.is_inside():
        given = [*arguments, "--faults", ",".join(sorted(faults)), "--seed", str(asked.seed)]
        return isolation.enter("tests.chaos.storm", given)
    # Processes are stopped and disks unmounted then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    storm = Storm(
        asked.jobs,
        asked.workers,
        asked.seed,
        faults=faults,
        spread=asked.seconds,
        stop_seconds=asked.stop_seconds,
    )
    print(  # noqa: T201
        f"seed {storm.seed}: {storm.jobs} jobs, {storm.workers} workers, faults: {', '.join(sorted(faults))}",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-chaos-"))
    try:
        outcome = run(storm, folder)
    except Exception as error:  # noqa: BLE001 - whatever it was, there is a verdict
        traceback.print_exc()
        print(f"✗ seed {storm.seed}: the storm could not be run to its end ({error!r}); logs: {folder}")  # noqa: T201
        return 1
    for name, counted in (
        ("requests", outcome.requests),
        ("faults", outcome.processes),
        ("events", outcome.events),
    ):
        print(f"{name}: " + ", ".join(f"{key} {number}" for key, number in sorted(counted.items())))  # noqa: T201
    for line in outcome.complaints[:50]:
        print(f"✗ {line}")  # noqa: T201
    counts = ", ".join(f"{kind} {count(outcome.complaints, kind)}" for kind in Kind)
    mark = "✗" if outcome.complaints else "✓"
    print(f"{mark} seed {storm.seed}: {storm.jobs} jobs: {counts}, after {outcome.seconds:.0f} s")  # noqa: T201
    if outcome.complaints or asked.keep:
        print(f"logs: {folder}")  # noqa: T201
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if outcome.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
