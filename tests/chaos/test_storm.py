"""A short storm as a test, and tests of its verdict: it finds each kind of error."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import isolation
from tests.chaos.storm import FAULTS, Storm, parse, possible, run
from tests.chaos.verdict import Harm, Kind, complaints, count, left_files, spent_attempts
from tests.support.api import RunningApi
from tests.support.clients import Person, Worker, rows
from tests.support.receiver import Received

SHORT = Storm(jobs=30, workers=2, seed=20, pause=0.8, rounds=1, factor=1.5, held_open=2, deadline=300, lease=8)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the database's own user can enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(360)
def test_a_short_storm_loses_nothing_does_nothing_twice_and_leaves_nothing_behind(open_folder: Path) -> None:
    outcome = run(SHORT, open_folder)
    # Leases of eight seconds run out on a busy machine, which costs attempts.
    assert [line for line in outcome.complaints if not line.startswith(Kind.SPENT)] == []
    assert sum(outcome.processes.values()) > 0
    assert sum(number for fault, number in outcome.requests.items() if fault != "none") > 0


def test_the_verdict_finds_lost_double_stale_and_torn_results(api: RunningApi, tmp_path: Path) -> None:
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
    told = [Received("/", {"webhook-id": number}, word) for number in "12"]
    for path in (api.settings.object_dir / "jobs" / done / "outputs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"torn")
    (tmp_path / "worker" / "jobs" / "outbox" / "x").mkdir(parents=True)
    said = "\n".join(complaints(url, api.base_url, colors, 0, told))
    for words in (
        "absent: is not there",
        f"{waiting}: is queued",
        "succeeded 2 times",
        "counts 2 attempts",
        "jobs ran at once",
        "-1 jobs still run",
        "not of the lease that won",
        "is not whole",
        f"{done}: ran before the job",
        f"{done}: its end was told under 2 ids",
        f"{waiting}: its end was told under 0 ids",
        "outputs",
    ):
        assert words in said, words
    assert left_files(tmp_path) != []


def test_the_judge_counts_attempts_of_unharmed_workers_alone(api: RunningApi) -> None:
    person, worker = Person(api), Worker(api)
    person.submit()
    job = worker.claim()
    worker.heartbeat(job)
    error = {"class": "transient", "code": "upload_failed", "message": "no storage", "detail": {}}
    worker.call("fail", job, {"error": error}).raise_for_status()
    url = api.settings.conninfo or ""
    (line,) = spent_attempts(url, [Harm("another", 0, time.time())])
    assert "upload_failed" in line
    assert count([line], Kind.SPENT) == 1
    assert list(spent_attempts(url, [Harm(worker.name, 0, time.time())])) == []
    assert len(list(spent_attempts(url, [Harm(worker.name, 0, 1)]))) == 1


def test_faults_that_need_root_are_skipped_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(isolation, "obstacle", lambda: "needs root")
    asked = parse(["--faults", "read-only, packets,disks"]).faults
    assert possible(asked) == {"read-only"}
    assert capsys.readouterr().out == "skipped disks: needs root\nskipped packets: needs root\n"
    assert parse([]).faults == set(FAULTS)
    with pytest.raises(SystemExit):
        parse(["--faults", "earthquake"])
