"""A newcomer's commands: demo, local stack, health check. Real processes from the real scripts."""

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from dotenv import dotenv_values
from rasterio.warp import transform_bounds

from tests.support.api import WORKER_TOKEN
from tests.support.processes import ROOT, Process, Programs, children, clean_environment, free_port, running
from tests.support.waiting import wait_until


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment(
        DATA_DIR=str(tmp_path / "data"), LOG_FILE=str(tmp_path / "worker.log"), TEMP_DIR=str(tmp_path / "jobs")
    )


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL
    )


def test_the_demo_sends_a_generated_map_through_the_service(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, "./start_worker.sh", "--demo", "--output", str(tmp_path / "out"))
    assert (ran.returncode, ran.stderr) == (0, "")
    for words in ("✅ Done.", "EPSG:4326 (WGS 84)", "Time ", "download", "terrain.png.aux.xml", "drag it into QGIS"):
        assert words in ran.stdout
    with rasterio.open(tmp_path / "out" / "source" / "terrain.tif") as source:
        assert (source.crs.to_epsg(), min(source.shape) >= 3000) == (32638, True)
        wanted = transform_bounds(source.crs, 4326, *source.bounds, densify_pts=21)
    with rasterio.open(tmp_path / "out" / "terrain.png") as picture:
        assert picture.crs.to_epsg() == 4326
        assert picture.bounds == pytest.approx(wanted, abs=1e-4)
    log = (tmp_path / "worker.log").read_text()
    assert log.count("ERROR") == 0
    secrets = (tmp_path / "data" / "secrets.env").read_text()
    assert (tmp_path / "data" / "secrets.env").stat().st_mode & 0o077 == 0
    written = log + ran.stdout + (tmp_path / "data" / "api.log").read_text()
    for line in secrets.split():
        assert line.partition("=")[2] not in written
    assert "signature=" not in written


def test_the_demo_takes_a_file_and_keeps_its_data_over_a_restart(
    environment: dict[str, str], small_map: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        ran = run(environment, "./start_worker.sh", "--demo", str(small_map), "--output", str(tmp_path / "out"))
        assert (ran.returncode, ran.stderr) == (0, "")
    with rasterio.open(tmp_path / "out" / "small.png") as picture:
        assert picture.crs.to_epsg() == 4326
    log = (tmp_path / "data" / "api.log").read_text()
    migrations = list((ROOT / "geo_jobs_api" / "database" / "sql" / "migrations").glob("*.sql"))
    assert log.count("migration_applied") == len(migrations)


def test_the_demo_of_a_file_that_is_no_map_fails_with_the_reason(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "page.tif").write_text("<html>")
    ran = run(environment, "./start_worker.sh", "--demo", str(tmp_path / "page.tif"), "--output", str(tmp_path / "out"))
    assert ran.returncode == 1
    assert "not_a_tiff" in ran.stdout


def test_the_demo_of_a_missing_file_fails_with_its_path(environment: dict[str, str]) -> None:
    ran = run(environment, "./start_worker.sh", "--demo", "missing.tif")
    assert (ran.returncode, ran.stderr) == (1, "❌ There is no file missing.tif. Check its path.\n")


def health(environment: dict[str, str]) -> list[str]:
    return run(environment, sys.executable, "health_check.py").stdout.splitlines()


HEALTHY = [
    "✅ Database: Database connection successful",
    "✅ Api: API connection successful",
    "✅ File_System: File system accessible",
    "✅ Dependencies: All dependencies available",
    "",
    "🎉 Overall Status: HEALTHY - Worker is ready to process jobs",
]


def test_the_health_check_follows_the_local_stack_up_and_down(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    with running([str(ROOT / "start_worker.sh")], tmp_path / "stack", environment) as stack:
        announced(tmp_path / "stack", stack)
        assert health(environment) == HEALTHY
        wrong = health({**environment, **_stack_facts(tmp_path), "WORKER_AUTH_TOKEN": "wrong-token-of-some-length"})
        assert wrong[1].startswith("❌ Api: the API refuses the worker token (401)")
        assert wrong[0] == HEALTHY[0]
        stack.send_signal(signal.SIGINT)
        assert stack.wait(40) in (0, 130)
    stopped = health(environment)
    assert stopped[0].startswith("❌ Database: no connection")
    assert "does not answer" in stopped[1]
    assert stopped[-1].startswith("💥 Overall Status: UNHEALTHY - Database, Api")


def announced(folder: Path, process: Process) -> str:
    """Wait until a local stack prints its address, and return it."""
    output = folder / "output.log"
    found: list[str] = []

    def look() -> bool:
        assert process.poll() is None, output.read_text()
        found.extend(re.findall(r"The job API is at (http://127\.0\.0\.1:\d+)", output.read_text()))
        return bool(found)

    wait_until(look, "the stack to say where it is", 60)
    return found[0]


def command_line(pid: int) -> str:
    # Twice w, since ps otherwise truncates long paths if COLUMNS is set.
    return subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, timeout=10
    ).stdout


def test_the_local_stack_honors_api_port_and_the_number_of_workers(environment: dict[str, str], tmp_path: Path) -> None:
    """API_PORT sets the port. --workers 2 starts two processes that `ps` shows as worker.py. They share one log."""
    port = free_port()
    command = [str(ROOT / "start_worker.sh"), "--workers", "2"]
    with running(command, tmp_path, environment | {"API_PORT": str(port)}) as stack:
        assert announced(tmp_path, stack) == f"http://127.0.0.1:{port}"
        workers = [pid for pid in children(stack.pid) if "geoprocessing-worker/worker.py" in command_line(pid)]
        assert len(workers) == 2
        log = Path(environment["LOG_FILE"])
        wait_until(lambda: log.exists() and log.read_text().count("worker_started") == 2, "both workers to start", 30)
        assert {f"Worker geoprocessing-worker-{one} started" in log.read_text() for one in (1, 2)} == {True}
        taken = run(environment | {"API_PORT": str(port), "DATA_DIR": str(tmp_path / "other")}, "./start_worker.sh")
        assert (taken.returncode, taken.stderr) == (
            1,
            f"❌ Port {port} is taken. Set API_PORT to another, or to 0 for any.\n",
        )


def test_ps_shows_a_configured_worker_as_worker_py(environment: dict[str, str], stack: Programs) -> None:
    """Started by the script and by path. The started process itself becomes the worker."""
    configured = environment | {"API_BASE_URL": stack.base_url, "WORKER_AUTH_TOKEN": WORKER_TOKEN}
    folder = stack.folder / "configured"
    folder.mkdir()
    with running([str(ROOT / "start_worker.sh")], folder, configured) as worker:
        log = Path(environment["LOG_FILE"])
        wait_until(lambda: log.exists() and "worker_started" in log.read_text(), "the worker to start", 60)
        assert "geoprocessing-worker/worker.py" in command_line(worker.pid)
        assert HEALTHY[-1] in (folder / "output.log").read_text()
    by_path = stack.worker()
    by_path_log = stack.folder / "worker" / "worker.log"
    wait_until(lambda: by_path_log.exists() and "worker_started" in by_path_log.read_text(), "it to start", 60)
    assert "geoprocessing-worker/worker.py" in command_line(by_path.pid)


def test_the_option_workers_is_refused_for_a_configured_api(environment: dict[str, str]) -> None:
    away = {**environment, "API_BASE_URL": "http://127.0.0.1:9", "WORKER_AUTH_TOKEN": "some-token"}
    ran = run(away, "./start_worker.sh", "--workers", "2")
    assert ran.returncode == 78
    assert "--workers is for the local stack" in ran.stderr


def _stack_facts(tmp_path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(tmp_path / "data" / "stack.env").items() if value}


def test_an_unhealthy_configured_worker_is_not_started(environment: dict[str, str]) -> None:
    away = {**environment, "API_BASE_URL": f"http://127.0.0.1:{free_port()}", "WORKER_AUTH_TOKEN": "some-token"}
    ran = run(away, "./start_worker.sh")
    assert ran.returncode == 1
    assert "does not answer" in ran.stdout
    assert not Path(environment["LOG_FILE"]).exists()


def test_two_stacks_can_start_at_once(environment: dict[str, str], small_map: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as both:
        started = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            own = {**environment, "DATA_DIR": str(tmp_path / name / "data"), "LOG_FILE": str(tmp_path / name / "log")}
            command = [
                str(ROOT / "start_worker.sh"),
                "--demo",
                str(small_map),
                "--output",
                str(tmp_path / name / "out"),
            ]
            started.append(both.enter_context(running(command, tmp_path / name, own)))
        assert [process.wait(60) for process in started] == [0, 0]


def test_paths_are_relative_to_the_callers_folder(environment: dict[str, str], small_map: Path, tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_bytes(small_map.read_bytes())
    command = [str(ROOT / "start_worker.sh"), "--demo", "map.tif", "--output", "here"]
    # A dead proxy, which loopback must not use.
    own = {**environment, "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    ran = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=90)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "here" / "map.png").exists()


def test_half_a_configuration_is_refused_and_starts_no_local_stack(environment: dict[str, str]) -> None:
    ran = run({**environment, "API_BASE_URL": "https://maps.example.org"}, "./start_worker.sh")
    assert ran.returncode == 78
    assert "WORKER_AUTH_TOKEN is not set" in ran.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEMP_DIR", "/proc/nowhere"),
        ("CA_BUNDLE", "/nowhere.pem"),
        ("WORKER_AUTH_TOKEN", "tökén-of-some-length"),
        ("API_BASE_URL", "http://127.0.0.1:99999"),
        ("COORDINATE_SYSTEM", "EPSG:999999"),
    ],
)
def test_an_impossible_setting_ends_the_worker_with_its_name_and_exit_code_78(
    environment: dict[str, str], name: str, value: str
) -> None:
    whole = {"API_BASE_URL": "http://127.0.0.1:1", "WORKER_AUTH_TOKEN": "token-of-some-length"}
    ran = run({**environment, **whole, name: value}, sys.executable, "geoprocessing-worker/worker.py")
    assert ran.returncode == 78, ran.stderr
    assert f"❌ {name}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_configured_database_overrides_the_local_stacks(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stack.env").write_text(
        "API_BASE_URL='http://127.0.0.1:1'\nWORKER_AUTH_TOKEN='t'\nDATABASE_URL='host=/nowhere'\n"
    )
    assert "/nowhere" in health(environment)[0]
    assert "/elsewhere" in health({**environment, "PGHOST": "/elsewhere"})[0]
