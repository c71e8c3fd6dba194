"""The queue's figures that need real workers: small jobs through the whole stack, cancelling, losses, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

import httpx
import numpy as np
from pydantic import SecretStr

from benchmarks.queue_table import Row, print_table
from geo_jobs_api.database import embedded
from geoprocessing_worker.errors import ErrorClass, JobError, LeaseLost, Unavailable
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import ClaimRequest, Failure
from tests.support.api import WORKER_TOKEN
from tests.support.clients import rows as query
from tests.support.processes import Programs, programs
from tests.support.rasters import UTM, Tiff
from tests.support.waiting import wait_until

SMALL_JOBS = 150
SMALL_JOBS_ROUNDS = 3
WARM_UP = 10
CANCELS = 25
LOSSES = 3
LEASE_SECONDS = 5.0
PARKED, RUNNING = 200, 20

_MAKE_JOBS = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at
    )
    SELECT gen_random_uuid(), 'bench', 'geotiff_to_png', 'queued', 0, '{}', 5, 'a.tif', 1, now()
    FROM generate_series(1, %s)
"""


@contextlib.contextmanager
def stack(**settings: str) -> Iterator[tuple[Programs, str]]:
    """Yield an API on an embedded server of default durability, in a temporary folder, and the database's URL."""
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-bench-"))
    try:
        server = embedded.start(folder / "postgres")
        try:
            with programs(server.url("postgres"), folder, **settings) as made:
                yield made, server.url("postgres")
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def waves(folder: Path, size: int, **place: Any) -> Path:
    """Write a smooth RGB GeoTIFF, in degrees unless `place` sets another system."""
    rows, columns = np.mgrid[0:size, 0:size]
    band = np.sin(columns / 40) * 60 + np.cos(rows / 30) * 60 + 128
    return Tiff(np.stack([band, band[::-1], band.T]).astype("uint8"), **place).write(folder / f"waves-{size}.tif")


def small_jobs() -> Row:
    """Return the median of jobs per second, from download to published results, without reprojection."""
    rate = statistics.median(_small_jobs_rate() for _ in range(SMALL_JOBS_ROUNDS))
    return Row("small real jobs (512² RGB), one worker, CONCURRENT_JOBS=2", rate, 15, True, "1/s")


def small_jobs_warped() -> Row:
    """Return the same for UTM to degrees, the usual case."""
    rate = _small_jobs_rate(crs="EPSG:32638", transform=UTM)
    return Row("the same in UTM, warped to EPSG:4326", rate, None, True, "1/s")


def _small_jobs_rate(**place: Any) -> float:
    with stack() as (made, url):
        source = waves(made.folder, 512, **place)
        for _ in range(SMALL_JOBS + WARM_UP):
            made.submit(source)
        made.worker(CONCURRENT_JOBS="2", LOG_LEVEL="WARNING")

        def ended() -> list[float]:
            found = query(url, "SELECT extract(epoch FROM finished_at)::float8 AS at FROM jobs ORDER BY finished_at")
            return [row["at"] for row in found if row["at"] is not None]

        wait_until(lambda: len(ended()) == SMALL_JOBS + WARM_UP, "all small jobs", 300, pause=1)
        moments = ended()[WARM_UP - 1 :]
        ((lost,),) = [
            tuple(row.values()) for row in query(url, "SELECT count(*) AS n FROM jobs WHERE state <> 'succeeded'")
        ]
        return 0.0 if lost else SMALL_JOBS / (moments[-1] - moments[0])


def cancels() -> Row:
    """Return the slowest time from a caller's cancel to the worker's report of it."""
    spans = []
    with stack() as (made, url):
        source = waves(made.folder, 1500)
        worker = made.worker()
        person = made.person()
        for _ in range(CANCELS):
            job_id = made.submit(source)
            made.stop_child_of(worker, job_id)
            time.sleep(1.0)  # in the middle of a held heartbeat
            begun = time.monotonic()
            person.post(f"/api/geo-jobs/{job_id}/cancel", json={}).raise_for_status()
            spans.append(until(partial(is_cancelled, url, job_id), begun))
    return Row("cancel of a running job → its worker has stopped, slowest", max(spans), 1, False, "s")


def losses() -> Row:
    """Return the slowest time from SIGKILL of a worker to the next claim of its job, beyond the lease."""
    spans = []
    with stack(LEASE_SECONDS=str(LEASE_SECONDS), HEARTBEAT_SECONDS=str(LEASE_SECONDS / 3), MAX_WORKER_LOSSES="99") as (
        made,
        url,
    ):
        source = waves(made.folder, 1500)
        for number in range(LOSSES):
            worker = made.worker(f"victim-{number}")
            job_id = made.submit(source)
            made.stop_child_of(worker, job_id)
            heir = made.worker(f"heir-{number}")
            wait_until(partial(is_connected, made, heir.pid), "the other worker to wait", 30)
            begun = time.monotonic()
            worker.kill()
            worker.wait()
            spans.append(until(partial(is_claimed_again, url, job_id), begun))
            made.until_over(job_id)
            heir.terminate()
            heir.wait(40)
    name = f"SIGKILL of a worker → its job is claimed again, slowest, with a lease of {LEASE_SECONDS:g} s"
    return Row(name, max(spans), LEASE_SECONDS + 2, False, "s")


def restart() -> Row:
    """Return jobs lost or given twice when the API is killed with parked claims and running jobs."""
    with stack() as (made, url):
        query(url, _MAKE_JOBS, RUNNING)
        wrong = asyncio.run(_restarted(made, url))
    return Row(f"API killed with {PARKED} parked claims, {RUNNING} running jobs: lost or twice", wrong, 0, False, "")


async def _restarted(made: Programs, url: str) -> int:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=made.base_url, limits=limits) as http:
        api = JobApi(http, SecretStr(WORKER_TOKEN))
        leases = [await _hold_one(api) for _ in range(RUNNING)]
        keeping = [asyncio.create_task(LeaseKeeper(api, lease, interval=10).keep()) for lease in leases]
        waiting = [asyncio.create_task(_hold_one(api)) for _ in range(PARKED)]
        await asyncio.sleep(2)
        await asyncio.to_thread(made.kill_api)
        await asyncio.to_thread(made.start_api)
        query(url, _MAKE_JOBS, PARKED)
        leases += await asyncio.gather(*waiting)
        for task in keeping:
            task.cancel()
        failure = Failure.of(JobError("measured", "The measurement is over.", ErrorClass.INVALID_INPUT))
        states = [answer.state for answer in await asyncio.gather(*[api.fail(lease, failure) for lease in leases])]
    twice = sum(number - 1 for number in Counter(lease.job_id for lease in leases).values())
    ended = query(url, "SELECT job_id, count(*) AS n FROM lease_outcomes WHERE state = 'failed' GROUP BY job_id")
    lost = PARKED + RUNNING - len(ended)
    return int(twice + lost + sum(state != "failed" for state in states) + sum(row["n"] > 1 for row in ended))


async def _hold_one(api: JobApi) -> Lease:
    """Claim repeatedly, like a worker, and confirm one job."""
    while True:
        request = ClaimRequest(
            claim_id=str(uuid.uuid4()),
            worker_id=str(uuid.uuid4()),
            worker_name="bench",
            task_types=("geotiff_to_png",),
            max_jobs=1,
            wait_seconds=25,
        )
        with contextlib.suppress(Unavailable, LeaseLost):
            answer = await api.claim(request)
            if answer is not None and answer.jobs:
                lease, sent = Lease(answer.jobs[0]), time.monotonic()
                lease.renew(sent, await api.heartbeat(lease))
                return lease


def until(holds: Callable[[], bool], begun: float, patience: float = 60) -> float:
    """Return the seconds from `begun` until a condition holds."""
    wait_until(holds, "the end of a measurement", patience)
    return time.monotonic() - begun


def is_cancelled(url: str, job_id: str) -> bool:
    """Return whether the worker has reported the cancellation."""
    return bool(query(url, "SELECT state FROM jobs WHERE id = %s", job_id)[0]["state"] == "cancelled")


def is_claimed_again(url: str, job_id: str) -> bool:
    """Return whether a second worker has the job."""
    return len(query(url, "SELECT id FROM job_events WHERE job_id = %s AND type = 'claimed'", job_id)) == 2


def is_connected(made: Programs, pid: int) -> bool:
    """Return whether a worker has a connection to the API, which it opens for its first claim."""
    port = f":{int(made.base_url.rsplit(':', 1)[1]):04X}"
    inodes = {
        str(entry.readlink())[8:-1]
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.lexists(entry) and str(entry.readlink()).startswith("socket:")
    }
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[2].endswith(port) and line[9] in inodes for line in lines)


def rows() -> Iterator[Row]:
    """All figures that need real workers."""
    for measure in (small_jobs, small_jobs_warped, cancels, losses, restart):
        yield measure()


if __name__ == "__main__":
    sys.exit(print_table(rows()))
