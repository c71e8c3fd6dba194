"""Retention on the real database and a real folder, with real ages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from geo_jobs_api.app import local_storage, retention
from geo_jobs_api.cli import main
from geo_jobs_api.database.pool import open_pool
from geo_jobs_api.maintenance.retention import Retention
from geo_jobs_api.storage.incoming import Incoming
from tests.support.api import RunningApi, make_settings
from tests.support.clients import Person, Worker, code_of, input_file, rows, storage_files, unfinished_uploads
from tests.support.waiting import until

DAY = 86_400


@pytest.fixture
async def keeper(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Retention]:
    """Retention on the test's API: 30 days for ended jobs, 90 for failed ones, 7 for those without a file."""
    monkeypatch.setattr("geo_jobs_api.maintenance.retention._BATCH_PAUSE_SECONDS", 0)
    settings = api.settings
    async with open_pool(settings.conninfo or "", size=2, wait_seconds=10) as pool:
        made = retention(settings, pool, local_storage(settings))
        yield made


def age(api: RunningApi, job_id: str, days: float) -> None:
    """Backdate the end (and creation) of a job by this many days."""
    rows(
        api.settings.conninfo or "",
        "UPDATE jobs SET finished_at = CASE WHEN finished_at IS NOT NULL THEN now() - %s * interval '1 day' END,"
        " created_at = now() - %s * interval '1 day' WHERE id = %s",
        days,
        days,
        job_id,
    )


def finished(person: Person, worker: Worker, ending: str) -> str:
    job_id = person.submit()
    job = worker.claim()
    if ending == "failed":
        worker.fail(job, "invalid_input").raise_for_status()
    else:
        worker.complete(job).raise_for_status()
    return job_id


def history(api: RunningApi, job_id: str) -> int:
    statement = (
        "SELECT (SELECT count(*) FROM jobs WHERE id = %s) + (SELECT count(*) FROM job_events WHERE job_id = %s)"
        " + (SELECT count(*) FROM lease_outcomes WHERE job_id = %s) AS n"
    )
    return int(rows(api.settings.conninfo or "", statement, job_id, job_id, job_id)[0]["n"])


async def test_a_job_that_gets_a_child_while_its_removal_begins_is_kept(
    api: RunningApi, person: Person, worker: Worker
) -> None:
    """The statement that marks it has begun, and has not locked it yet."""
    parent, url = finished(person, worker, "succeeded"), api.settings.conninfo or ""
    age(api, parent, 31)
    rows(
        url,
        """
        CREATE SCHEMA gate;
        CREATE FUNCTION gate.now() RETURNS timestamptz LANGUAGE plpgsql AS $$
        BEGIN
            IF current_query() LIKE '%%SET purge_started_at = now()%%' THEN
                PERFORM pg_advisory_xact_lock_shared(1);
            END IF;
            RETURN pg_catalog.now();
        END $$
        """,
    )
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    gated = make_conninfo(url, options="-csearch_path=gate,public,pg_catalog")
    with contextlib.ExitStack() as stack:
        stack.callback(rows, url, "DROP SCHEMA gate CASCADE")
        opener = stack.enter_context(psycopg.connect(url))
        opener.execute("SELECT pg_advisory_xact_lock(1)")
        async with open_pool(gated, size=2, wait_seconds=10) as pool:
            removal = asyncio.create_task(retention(api.settings, pool, local_storage(api.settings)).run_once())
            await until(lambda: rows(url, waiting))
            body = {"taskType": "geotiff_to_png", "inputFrom": {"jobId": parent, "output": ".png"}}
            person.http.post("/api/geo-jobs", json=body).raise_for_status()
            opener.rollback()
            await removal
    told = worker.claim()
    assert worker.http.get(told["input"]["downloadUrl"]).content == b"\x89PNG picture"


@pytest.mark.parametrize(("ending", "kept", "over"), [("succeeded", 29, 31), ("failed", 89, 91)])
async def test_an_ended_job_is_removed_with_its_events_and_objects_after_its_period(
    api: RunningApi, person: Person, worker: Worker, keeper: Retention, ending: str, kept: float, over: float
) -> None:
    """A day before, nothing is removed. A day after, nothing is left."""
    job_id = finished(person, worker, ending)
    age(api, job_id, kept)
    assert (await keeper.run_once()).jobs_removed == 0
    assert storage_files(api, job_id) != []
    age(api, job_id, over)
    assert (await keeper.run_once()).jobs_removed == 1
    assert (storage_files(api, job_id), history(api, job_id)) == ([], 0)


async def test_nothing_of_a_job_that_has_not_ended_is_ever_removed(
    api: RunningApi, person: Person, worker: Worker, keeper: Retention
) -> None:
    """Of any age: running and queued jobs keep rows, events and objects."""
    running, queued = person.submit(), person.submit()
    assert worker.claim()["id"] == running
    for job_id in (running, queued):
        age(api, job_id, 10_000)
    before = [history(api, job_id) for job_id in (running, queued)]
    assert (await keeper.run_once()).is_empty
    assert [history(api, job_id) for job_id in (running, queued)] == before
    assert all(storage_files(api, job_id) == [input_file()] for job_id in (running, queued))


async def test_an_old_job_that_is_requeued_is_not_removed(
    api: RunningApi, person: Person, worker: Worker, keeper: Retention
) -> None:
    """A dead letter of last year that runs again is open. Once its removal has started, it cannot be requeued."""
    job_id, other = finished(person, worker, "failed"), finished(person, worker, "failed")
    for old in (job_id, other):
        age(api, old, 400)
    assert person.http.post(f"/api/geo-jobs/{job_id}/retry").status_code == 200
    rows(api.settings.conninfo or "", "UPDATE jobs SET purge_started_at = now() WHERE id = %s", other)
    assert code_of(person.http.post(f"/api/geo-jobs/{other}/retry")) == (404, "job_not_found")
    assert (await keeper.run_once()).jobs_removed == 1
    assert worker.complete(worker.claim()).json()["state"] == "succeeded"


async def test_a_removal_that_was_interrupted_is_finished_by_the_next_round(
    api: RunningApi, person: Person, worker: Worker, keeper: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects first, then rows: after a crash the job is still known, but hidden from its owner."""
    job_id = finished(person, worker, "succeeded")
    age(api, job_id, 31)

    async def crash(_: object) -> None:
        raise OSError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(keeper, "remove_objects", crash)
        with pytest.raises(OSError, match="the disk is away"):
            await keeper.run_once()
    assert storage_files(api, job_id) != []
    assert person.http.get(f"/api/geo-jobs/{job_id}").status_code == 404
    assert (await keeper.run_once()).jobs_removed == 1
    assert (storage_files(api, job_id), history(api, job_id)) == ([], 0)


async def test_a_job_without_its_upload_is_cancelled_and_later_removed(
    api: RunningApi, person: Person, keeper: Retention
) -> None:
    """It is cancelled after a week, and then removed like other ended jobs."""
    job_id = str(person.create()["id"])
    age(api, job_id, 6)
    assert (await keeper.run_once()).unused_cancelled == 0
    age(api, job_id, 8)
    assert (await keeper.run_once()).unused_cancelled == 1
    assert (person.look(job_id)["state"], person.event_types(job_id)[-1]) == ("cancelled", "cancelled")
    age(api, job_id, 31)
    assert (await keeper.run_once()).jobs_removed == 1


async def test_more_than_a_batch_is_removed_in_one_round(api: RunningApi, person: Person, keeper: Retention) -> None:
    """Batches follow each other until nothing is left."""
    rows(
        api.settings.conninfo or "",
        "INSERT INTO jobs (id, owner, task_type, state, priority, input_payload, max_attempts, finished_at)"
        " SELECT gen_random_uuid(), 'ada', 'geotiff_to_png', 'cancelled', 0, '{}', 5, now() - interval '31 days'"
        " FROM generate_series(1, 120)",
    )
    assert (await keeper.run_once()).jobs_removed == 120


_UPLOADING = """
import sys, time
from pathlib import Path
from geo_jobs_api.storage.incoming import Incoming
incoming = Incoming(Path(sys.argv[1]))
incoming.prepare()
(incoming.folder / "half").write_bytes(b"half")
print("ready", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def uploading(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of an upload."""
    with subprocess.Popen([sys.executable, "-c", _UPLOADING, str(folder)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


async def test_a_round_removes_uploads_of_dead_processes(api: RunningApi, keeper: Retention) -> None:
    """The report counts them. Uploads of live processes stay."""
    incoming = api.settings.object_dir / ".incoming"
    with uploading(incoming):
        assert (await keeper.run_once()).broken_uploads_removed == 0
    assert (await keeper.run_once()).broken_uploads_removed == 1
    assert unfinished_uploads(api.settings.object_dir) == []


def test_uploads_of_dead_processes_are_removed_at_once_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    """One of two processes is killed. The other one is stopped, and its old files stay."""
    folder = tmp_path / ".incoming"
    cleaner = Incoming(folder)
    cleaner.prepare()
    (cleaner.folder / "own").write_bytes(b"half")
    with uploading(folder) as living, uploading(folder) as dead:
        living.send_signal(signal.SIGSTOP)
        assert cleaner.remove_abandoned() == 0
        dead.kill()
        dead.wait()
        assert cleaner.remove_abandoned() == 1
        assert sorted(unfinished_uploads(tmp_path)) == ["half", "own"]
    assert cleaner.remove_abandoned() == 1
    assert unfinished_uploads(tmp_path) == ["own"]
    assert len(list(folder.iterdir())) == 2


def test_processes_that_start_while_others_clean_up_lose_nothing(tmp_path: Path) -> None:
    """A folder that a cleaner removes right after its creation is created again, and never shared."""
    over = threading.Event()
    cleaner = Incoming(tmp_path)
    cleaner.prepare()

    def clean() -> None:
        while not over.is_set():
            cleaner.remove_abandoned()

    with ThreadPoolExecutor(4) as threads:
        cleaning = [threads.submit(clean) for _ in range(2)]
        made = [Incoming(tmp_path) for _ in range(200)]
        for incoming in made:
            incoming.prepare()
            (incoming.folder / "half").write_bytes(b"half")
        over.set()
        for task in cleaning:
            task.result(timeout=20)
    assert all((incoming.folder / "half").exists() for incoming in made)


def test_cleanup_reports_its_removals_and_removes_unknown_objects_on_request_only(
    postgres_url: str,
    tmp_path: Path,
    api_server: Callable[..., RunningApi],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A service with the wrong database must not delete all its files."""
    settings = make_settings(postgres_url, tmp_path / "data")
    local_storage(settings)
    lost = settings.object_dir / "jobs" / "01900000-0000-7000-8000-000000000000"
    lost.mkdir(parents=True)
    (lost / "file").write_bytes(b"x")
    os.utime(lost, (1, 1))
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    assert main(["cleanup"]) == 0
    assert "Removed 0 ended jobs" in (told := capsys.readouterr().out)
    assert "The storage has objects of 1 jobs that are not in the database" in told
    assert lost.exists()
    assert main(["cleanup", "--lost-objects"]) == 0
    assert "Removed the objects of 1 jobs" in capsys.readouterr().out
    assert not lost.exists()
