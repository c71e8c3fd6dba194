"""A short storm as one of the tests, and a test of the verdict itself."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.storm import Storm, run
from tests.chaos.verdict import complaints, left_files
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, rows
from tests.support.receiver import Received

SHORT = Storm(jobs=30, workers=2, seed=20, pause=0.8, rounds=1, factor=1.5, held_open=2, deadline=150)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the database's user can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(180)
def test_a_short_storm_loses_no_job_does_none_twice_and_leaves_no_file(open_folder: Path) -> None:
    outcome = run(SHORT, open_folder)
    assert outcome.complaints == []
    assert sum(outcome.processes.values()) > 0
    assert sum(number for fault, number in outcome.requests.items() if fault != "none") > 0


def test_the_verdict_finds_lost_doubled_stale_and_torn_jobs(api: RunningApi, tmp_path: Path) -> None:
    person, worker = Person(api), Worker(api)
    done, waiting = person.submit(), person.submit()
    url = api.settings.conninfo or ""
    job = worker.claim()
    worker.heartbeat(job)
    outputs = worker.upload(job, b"no picture")
    worker.call("complete", job, {"outputs": outputs}).raise_for_status()
    colors = {done: (1, 2, 3), waiting: (1, 2, 3), "absent": (0, 0, 0)}
    rows(url, "UPDATE jobs SET attempt = 2 WHERE id = %s", done)
    rows(url, "UPDATE lease_outcomes SET lease_seq = 9")
    rows(url, "INSERT INTO job_events (job_id, type, state) VALUES (%s, 'succeeded', 'succeeded')", done)
    rows(url, "INSERT INTO job_dependencies VALUES (%s, %s, 'cancel')", done, waiting)
    rows(
        url,
        "INSERT INTO webhooks VALUES (gen_random_uuid(), 'x', 'https://example.org', 'x', '', '{job.succeeded}', NULL,"
        " true, false)",
    )
    word = b'{"job": {"id": "%s"}}' % done.encode()
    deliveries = [Received("/", {"webhook-id": number}, word) for number in "12"]
    for path in (api.settings.object_dir / "jobs" / done / "outputs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"torn")
    (tmp_path / "worker" / "jobs" / "outbox" / "x").mkdir(parents=True)
    lines = "\n".join(complaints(url, api.base_url, colors, 0, deliveries))
    for words in (
        "absent: is missing",
        f"{waiting}: is queued",
        "succeeded 2 times",
        "counts 2 attempts",
        "jobs ran at once",
        "-1 jobs still run",
        "not of the lease that won",
        "is not whole",
        f"{done}: ran before the job",
        f"{done}: its end was delivered under 2 ids",
        f"{waiting}: its end was delivered under 0 ids",
        "outputs",
    ):
        assert words in lines, words
    assert left_files(tmp_path) != []
