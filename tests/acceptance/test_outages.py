"""API and database are away for longer than a lease. Finished jobs are reported, and none is done twice."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from geo_jobs_api.database import embedded
from tests.support.processes import Programs, programs
from tests.support.waiting import wait_until

QUICK = {"LEASE_SECONDS": "2", "HEARTBEAT_SECONDS": "0.7", "RESCUE_INTERVAL_SECONDS": "0.2"}
# Instead of a minute: the time for living workers after the stack's return.
GRACE = "20"


@pytest.fixture
def database_folder() -> Iterator[Path]:
    """A database that may be stopped and started, outside of pytest's folder, which belongs to another user."""
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-outage-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def has_logged(stack: Programs, worker: str, event: str) -> bool:
    log = stack.folder / worker / "worker.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return any(json.loads(line)["event"] == event for line in lines)


@pytest.mark.parametrize("killed", [False, True], ids=["worker lives", "worker killed"])
def test_a_result_finished_during_a_long_outage_is_not_made_twice(
    database_folder: Path, tmp_path: Path, large_map: Path, killed: bool
) -> None:
    database = embedded.start(database_folder / "postgres", {"fsync": "off"})
    with programs(database.url("postgres"), tmp_path, RESCUE_GRACE_SECONDS=GRACE, **QUICK) as stack:
        worker = stack.worker()
        job_id = stack.submit(large_map)
        child = stack.stop_child_of(worker, job_id)
        stack.kill_api()
        database.close()
        os.kill(child, signal.SIGCONT)
        if killed:
            wait_until(lambda: bool(reports(stack)), "the report to be written", 30)
            worker.kill()
            worker.wait()
            stack.worker()
        else:
            wait_until(lambda: has_logged(stack, "worker", "report_kept"), "the report to be kept", 30)
        database = embedded.start(database_folder / "postgres", {"fsync": "off"})
        try:
            stack.start_api()
            job = stack.until_over(job_id)
            events = stack.event_types(job_id)
        finally:
            database.close()
        assert (job["state"], job["attempt"]) == ("succeeded", 1)
        assert events.count("claimed") == 1
        wait_until(lambda: not reports(stack), "the outbox to be empty")
        assert list(stack.folder.glob("*/jobs/geojob_*")) == []


def reports(stack: Programs) -> list[Path]:
    return list(stack.folder.glob("*/jobs/outbox/*/report.json"))
