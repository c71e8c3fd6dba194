"""Health, metrics, logs, and outages of the database."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
import structlog

from geo_jobs_api.database import embedded
from geo_jobs_api.log import configure
from tests.support.api import NO_TLS, RunningApi, worker_header
from tests.support.clients import TIFF, Person, Worker, code_of, put, rows
from tests.support.waiting import wait_until


def test_a_healthy_service_reports_each_part(api: RunningApi) -> None:
    """200 and each part by name, without a token."""
    answer = api.client().get("/health")
    assert answer.status_code == 200
    assert answer.json() | {"version": ""} == {"status": "ok", "database": "ok", "storage": "ok", "version": ""}


def test_metrics_count_requests_and_open_jobs(api: RunningApi, person: Person) -> None:
    """Routes are counted by template, so ids create no series."""
    person.look(person.submit())
    text = api.client().get("/metrics").text
    assert 'geo_jobs_open{state="queued",task_type="geotiff_to_png"} 1.0' in text
    assert 'route="/api/geo-jobs/{job_id}"' in text
    assert "geo_jobs_parked_claims 0.0" in text


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """Not pytest's folder. As root the database runs as another account, and each start of pytest closes the path."""
    with tempfile.TemporaryDirectory(prefix="gj") as name:
        yield Path(name)


_MAKE_JOBS = """
    WITH made AS (
        INSERT INTO jobs (
            id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
            uploaded_at
        )
        SELECT gen_random_uuid(), 'ada', 'geotiff_to_png', 'queued', 0, '{}', 5, 'a.tif', 1, now()
        FROM generate_series(1, %s)
        RETURNING id
    )
    SELECT id::text, pg_notify('geo_jobs_queued', 'geotiff_to_png:' || count(*) OVER ()) FROM made
"""


async def claim_at_once(api: RunningApi, count: int) -> list[httpx.Response]:
    """This many claims, each waiting for up to 45 s."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=api.base_url, verify=NO_TLS, timeout=60, limits=limits, headers=worker_header()
    ) as client:
        body = {"workerId": "w", "workerName": "w", "taskTypes": ["geotiff_to_png"], "waitSeconds": 45}
        claims = ({"claimId": str(uuid4()), **body} for _ in range(count))
        return await asyncio.gather(*(client.post("/api/internal/geo-jobs/claim", json=claim) for claim in claims))


def test_a_database_that_restarts_loses_none_of_hundreds_of_claims_and_hides_nothing(
    api_server: Callable[..., RunningApi], own_folder: Path
) -> None:
    """During the outage: 503, and `/health` shows it. Afterwards the parked claims get their jobs."""
    server = embedded.start(own_folder / "postgres", {"fsync": "off"})
    parked = 200
    try:
        api = api_server(database_url=server.conninfo, database_timeout_seconds=1, backstop_seconds=0.3)
        person = Person(api)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(lambda: asyncio.run(claim_at_once(api, parked)))
            wait_until(lambda: api.parked == parked, "the claims to be parked", 20)
            server.close()
            health = api.client().get("/health")
            assert (health.status_code, health.json()["database"]) == (503, "unreachable")
            refused = person.http.get("/api/geo-jobs")
            assert code_of(refused) == (503, "unavailable")
            assert refused.headers["retry-after"] == "1"
            server = embedded.start(own_folder / "postgres", {"fsync": "off"})
            wait_until(lambda: api.client().get("/health").status_code == 200, "the service to be healthy again")
            ids = sorted(row["id"] for row in rows(server.conninfo, _MAKE_JOBS, parked))
            got = [job["id"] for answer in waiting.result(timeout=50) for job in answer.json()["jobs"]]
        assert sorted(got) == ids
    finally:
        server.close()


def test_health_warns_of_a_nearly_full_disk_before_uploads_are_rejected(
    api_server: Callable[..., RunningApi], tmp_path: Path
) -> None:
    """Space for less than ten of the largest uploads gives a warning with status 200. With more there is none."""
    free = shutil.disk_usage(tmp_path).free
    tight = api_server(max_file_size=free // 5).client().get("/health")
    assert (tight.status_code, tight.json()["status"], tight.json()["storage"]) == (200, "ok", "ok")
    (warning,) = tight.json()["warnings"]
    assert "less than 10 times MAX_FILE_SIZE" in warning
    assert "warnings" not in api_server(max_file_size=free // 20).client().get("/health").json()


def test_health_counts_and_the_log_names_sessions_that_hold_back_vacuum(
    api_server: Callable[..., RunningApi], caplog: pytest.LogCaptureFixture
) -> None:
    """`/health` contains the number only. The log contains process and program, once."""
    api = api_server(vacuum_warning_seconds=0.05)
    url = api.settings.conninfo or ""
    with psycopg.connect(url, application_name="forgotten-report") as forgotten:
        forgotten.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        forgotten.execute("SELECT count(*) FROM jobs")
        pid = forgotten.info.backend_pid

        def warnings() -> list[str]:
            answer = api.client().get("/health")
            assert (answer.status_code, answer.json()["status"]) == (200, "ok")
            return list(answer.json().get("warnings", []))

        wait_until(lambda: bool(warnings()), "the warning")
        assert warnings()[0].startswith("Vacuum is held back by 1, the longest for ")
        assert str(pid) not in warnings()[0]
        assert "forgotten-report" not in warnings()[0]
        logged = [str(record.msg) for record in caplog.records if "vacuum_held_back" in str(record.msg)]
        assert len(logged) == 1
        assert f"backend {pid} (forgotten-report, idle in transaction)" in logged[0]
    assert warnings() == []


def test_an_unexpected_error_reveals_no_internals(
    api: RunningApi, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 as a problem. The exception's text is in the log only."""

    async def broken(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(api.app.state.services.jobs, "find_job", broken)
    answer = person.http.get("/api/geo-jobs/01900000-0000-7000-8000-000000000000")
    assert code_of(answer) == (500, "internal")
    assert "secret" not in answer.text


def test_logs_are_json_lines_without_tokens_and_signatures(
    api: RunningApi, person: Person, worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    """A whole job leaves a record for each request, without signatures and tokens."""
    root = logging.getLogger()
    before = (root.handlers, root.level)
    configure("INFO")
    try:
        person.submit()
        job = worker.claim()
        worker.complete(job).raise_for_status()
        heard: list[str] = []

        def is_complete() -> bool:
            # A request is logged after its response.
            heard.append(capfd.readouterr().err)
            return "".join(heard).count('"event": "request"') >= 6

        wait_until(is_complete, "the records of six requests")
        text = "".join(heard)
    finally:
        root.handlers, root.level = before
        structlog.reset_defaults()
    records = [json.loads(line) for line in text.splitlines()]
    requests = [record for record in records if record["event"] == "request"]
    assert [record["status"] for record in requests] == [201, 200, 201, 200, 201, 200]
    assert {"job_claimed", "job_completed"} <= {record["event"] for record in records}
    for secret in ("signature", job["leaseToken"], "test-worker-token", "eyJ"):
        assert secret not in text


def test_a_browser_or_client_that_breaks_off_is_not_an_error(api: RunningApi, person: Person) -> None:
    """The service keeps responding."""
    url = person.upload_url(person.create()["id"], size=10_000_000)

    def chunks() -> object:
        yield TIFF
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        put(url, content=chunks(), headers={"Content-Length": "10000000"})  # type: ignore[arg-type]  # a generator
    assert api.client().get("/health").status_code == 200
