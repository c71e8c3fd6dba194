"""A worker with trouble beside healthy ones spends no attempt of any job. Real processes."""

from pathlib import Path

import pytest

from tests.support.clients import rows
from tests.support.processes import Programs
from tests.support.sickness import SICKNESSES, Sickness
from tests.support.waiting import wait_until

JOBS = 8


@pytest.mark.parametrize("sickness", SICKNESSES, ids=lambda sickness: sickness.name)
def test_a_worker_with_trouble_spends_no_attempt_and_delays_no_job(
    stack: Programs, postgres_url: str, small_map: Path, sickness: Sickness
) -> None:
    """Each kind of trouble. The worker stays up, shows its trouble to operators and claims nothing."""
    if sickness.missing:
        pytest.skip(sickness.missing)
    with sickness.prepared(stack.folder) as settings:
        troubled = stack.worker("troubled", WORKER_NAME="troubled", **settings)
        if sickness.code != "clock":  # visible only in the answer to a claim
            wait_until(
                lambda: bool(rows(postgres_url, "SELECT id FROM workers WHERE trouble IS NOT NULL")),
                "the trouble to be noted",
                30,
            )
        jobs = [stack.submit(small_map) for _ in range(JOBS)]
        stack.worker("healthy", WORKER_NAME="healthy")
        ended = [stack.until_over(job_id) for job_id in jobs]
        assert {(job["state"], job["attempt"]) for job in ended} == {("succeeded", 1)}
        wait_until(
            lambda: bool(rows(postgres_url, "SELECT id FROM workers WHERE trouble IS NOT NULL")),
            "the trouble to be noted",
            30,
        )
        (noted,) = rows(postgres_url, "SELECT name, trouble FROM workers WHERE trouble IS NOT NULL")
        assert (noted["name"], noted["trouble"][0]["code"]) == ("troubled", sickness.code)
        done_by = {row["worker_name"] for row in rows(postgres_url, "SELECT DISTINCT worker_name FROM jobs")}
        assert done_by == {"healthy"}
        assert troubled.poll() is None
        assert '"event": "trouble"' in (stack.folder / "troubled" / "worker.log").read_text()


def test_a_job_that_no_worker_takes_waits_and_the_worker_with_room_takes_it_later(
    stack: Programs, postgres_url: str, large_map: Path
) -> None:
    """One worker's MAX_FILE_SIZE fails no job that another can do."""
    stack.worker("small", WORKER_NAME="small", MAX_FILE_SIZE="1000000")
    wait_until(lambda: bool(rows(postgres_url, "SELECT id FROM workers")), "the worker to be noted", 30)
    job_id = stack.submit(large_map)
    explanation = stack.person().get(f"/api/geo-jobs/{job_id}/explain").raise_for_status().json()
    assert [reason["code"] for reason in explanation["reasons"]] == ["unfit"]
    assert explanation["reasons"][0]["text"].startswith("Worker small takes files up to 1 MB, and this one has ")
    assert stack.look(job_id)["state"] == "queued"
    stack.worker("large", WORKER_NAME="large")
    done = stack.until_over(job_id)
    assert (done["state"], done["attempt"]) == ("succeeded", 1)


def test_a_worker_logs_a_missing_api_at_once_and_its_return(stack: Programs) -> None:
    """The first refused connection is logged with its cure within seconds of the start."""
    stack.kill_api()
    stack.worker()
    log = stack.folder / "worker" / "worker.log"
    wait_until(lambda: log.exists() and "api_unreachable" in log.read_text(), "the warning", 20)
    stack.start_api()
    wait_until(lambda: "api_reachable" in log.read_text(), "the end of the outage", 30)
    assert log.read_text().count("api_unreachable") == 1
