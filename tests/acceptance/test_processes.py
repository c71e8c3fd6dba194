"""Real workers and real signals: each job ends, and no process or file remains."""

import os
import signal
from pathlib import Path

import rasterio

from tests.support.processes import Process, Programs, alive, job_children, programs
from tests.support.waiting import wait_until


def folders(stack: Programs) -> list[Path]:
    return list(stack.folder.glob("*/jobs/geojob_*"))


def end(process: Process) -> int:
    process.terminate()
    return process.wait(40)


def test_a_map_passes_through_real_processes(stack: Programs, small_map: Path, tmp_path: Path) -> None:
    worker = stack.worker()
    job = stack.until_over(stack.submit(small_map, name="خريطة صنعاء.tif"))
    assert job["state"] == "succeeded"
    results = stack.download(str(job["id"]), tmp_path / "results")
    with rasterio.open(results["خريطة صنعاء.png"]) as picture:
        assert picture.crs.to_epsg() == 4326
        assert tuple(picture.bounds) == (44.0, 15.4, 44.8, 16.0)
    assert end(worker) == 0
    assert folders(stack) == []
    log = (stack.folder / "worker" / "worker.log").read_text()
    assert log.count("ERROR") == 0
    assert len([line for line in log.splitlines() if "Job" in line and " completed in " in line]) == 1


def test_sigterm_during_a_render_returns_the_job_without_costing_an_attempt(stack: Programs, large_map: Path) -> None:
    worker = stack.worker("first", SHUTDOWN_GRACE="0.2")
    job_id = stack.submit(large_map)
    child = stack.stop_child_of(worker, job_id)
    assert end(worker) == 0
    assert not alive(child)
    job = stack.look(job_id)
    assert (job["state"], job["attempt"]) == ("queued", 0)
    assert folders(stack) == []
    stack.worker("second")
    done = stack.until_over(job_id)
    assert (done["state"], done["attempt"]) == ("succeeded", 1)


def test_sigterm_lets_a_running_job_finish_within_the_grace_period(stack: Programs, large_map: Path) -> None:
    worker = stack.worker()
    job_id = stack.submit(large_map)
    child = stack.stop_child_of(worker, job_id)
    worker.terminate()
    os.kill(child, signal.SIGCONT)
    assert worker.wait(40) == 0
    assert stack.look(job_id)["state"] == "succeeded"


def test_a_killed_child_costs_one_attempt_but_not_its_worker(stack: Programs, large_map: Path, small_map: Path) -> None:
    worker = stack.worker()
    job_id = stack.submit(large_map)
    os.kill(stack.stop_child_of(worker, job_id), signal.SIGKILL)
    wait_until(
        lambda: "retry_scheduled" in stack.event_types(job_id) or stack.look(job_id)["state"] == "failed", "the end"
    )
    assert stack.look(job_id)["error"]["code"] == "out_of_memory"  # type: ignore[index]
    assert stack.until_over(stack.submit(small_map))["state"] == "succeeded"
    assert worker.poll() is None


def test_a_killed_workers_children_die_and_another_worker_does_its_job(
    postgres_url: str, tmp_path: Path, large_map: Path
) -> None:
    with programs(
        postgres_url, tmp_path, LEASE_SECONDS="3", HEARTBEAT_SECONDS="1", RESCUE_INTERVAL_SECONDS="0.2"
    ) as stack:
        worker = stack.worker("first")
        job_id = stack.submit(large_map)
        child = stack.stop_child_of(worker, job_id)
        worker.kill()
        worker.wait()
        wait_until(lambda: not alive(child), "the child to end with its worker")
        assert folders(stack) != []
        second = stack.worker("first")
        done = stack.until_over(job_id)
        assert done["state"] == "succeeded"
        assert end(second) == 0
        assert folders(stack) == []


def test_three_jobs_run_at_once_in_one_worker(stack: Programs, large_map: Path) -> None:
    worker = stack.worker(CONCURRENT_JOBS="3", SHUTDOWN_GRACE="0")
    ids = [stack.submit(large_map) for _ in range(3)]
    stack.stop_child_of(worker, ids[0])
    stopped: set[int] = set()

    def all_three() -> bool:
        for pid in job_children(worker):
            os.kill(pid, signal.SIGSTOP)
            stopped.add(pid)
        return len(stopped) == 3

    wait_until(all_three, "three children", 30)
    assert {stack.look(job_id)["state"] for job_id in ids} == {"running"}
    assert end(worker) == 0
    assert [stack.look(job_id)["attempt"] for job_id in ids] == [0, 0, 0]
