"""One sick worker beside healthy ones: it spends no attempt of any job, and the others do them all. Real processes."""

from pathlib import Path

import pytest

from tests.support.clients import rows
from tests.support.processes import Programs
from tests.support.sickness import SICKNESSES, Sickness
from tests.support.waiting import wait_until

JOBS = 8


@pytest.mark.parametrize("sickness", SICKNESSES, ids=lambda sickness: sickness.name)
def test_a_sick_worker_spends_no_attempt_and_holds_up_nobody(
    stack: Programs, postgres_url: str, small_map: Path, sickness: Sickness
) -> None:
    """Each kind of local trouble; the worker stays up, shows its trouble to operators, and claims nothing."""
    if sickness.missing:
        pytest.skip(sickness.missing)
    with sickness.prepared(stack.folder) as settings:
        sick = stack.worker("sick", WORKER_NAME="sick", **settings)
        if sickness.code != "clock":  # which only the answer to a claim shows
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
        assert (noted["name"], noted["trouble"][0]["code"]) == ("sick", sickness.code)
        done_by = {row["worker_name"] for row in rows(postgres_url, "SELECT DISTINCT worker_name FROM jobs")}
        assert done_by == {"healthy"}
        assert sick.poll() is None
        assert '"event": "trouble"' in (stack.folder / "sick" / "worker.log").read_text()


def test_a_job_that_no_worker_takes_waits_and_the_worker_with_room_takes_it_later(
    stack: Programs, postgres_url: str, large_map: Path
) -> None:
    """A worker's own MAX_FILE_SIZE fails no job that another can do."""
    stack.worker("small", WORKER_NAME="small", MAX_FILE_SIZE="1000000")
    wait_until(lambda: bool(rows(postgres_url, "SELECT id FROM workers")), "the worker to be noted", 30)
    job_id = stack.submit(large_map)
    told = stack.person().get(f"/api/geo-jobs/{job_id}/explain").raise_for_status().json()
    assert [reason["code"] for reason in told["reasons"]] == ["unfit"]
    assert told["reasons"][0]["text"].startswith("Worker small takes files up to 1 MB, and this one has ")
    assert stack.look(job_id)["state"] == "queued"
    stack.worker("large", WORKER_NAME="large")
    done = stack.until_over(job_id)
    assert (done["state"], done["attempt"]) == ("succeeded", 1)


def test_a_worker_without_an_api_says_so_at_once_and_again_when_it_is_there(stack: Programs) -> None:
    """The first refused connection is in the log within seconds of the start, with the cure."""
    stack.kill_api()
    stack.worker()
    log = stack.folder / "worker" / "worker.log"
    wait_until(lambda: log.exists() and "api_unreachable" in log.read_text(), "the warning", 20)
    stack.start_api()
    wait_until(lambda: "api_reachable" in log.read_text(), "the end of the outage", 30)
    assert log.read_text().count("api_unreachable") == 1
