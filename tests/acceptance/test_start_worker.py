"""What a newcomer runs: the demo, the local stack, the health check beside it. Real processes from the real scripts."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from dotenv import dotenv_values
from rasterio.warp import transform_bounds

from tests.support.processes import ROOT, clean_environment, free_port, running
from tests.support.waiting import wait_until


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment(
        DATA_DIR=str(tmp_path / "data"), LOG_FILE=str(tmp_path / "worker.log"), TEMP_DIR=str(tmp_path / "work")
    )


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL
    )


def test_the_demo_makes_a_map_and_sends_it_the_whole_way(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, "./start_worker.sh", "--demo", "--output", str(tmp_path / "out"))
    assert (ran.returncode, ran.stderr) == (0, "")
    for said in ("✅ Done.", "EPSG:4326 (WGS 84)", "Time ", "download", "terrain.png.aux.xml", "drag it into QGIS"):
        assert said in ran.stdout
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


def test_the_demo_takes_a_file_of_ones_own_and_its_data_survives_a_restart(
    environment: dict[str, str], small_map: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        ran = run(environment, "./start_worker.sh", "--demo", str(small_map), "--output", str(tmp_path / "out"))
        assert (ran.returncode, ran.stderr) == (0, "")
    with rasterio.open(tmp_path / "out" / "small.png") as picture:
        assert picture.crs.to_epsg() == 4326
    log = (tmp_path / "data" / "api.log").read_text()
    assert log.count("migration_applied") == 1


def test_the_demo_of_a_file_that_is_no_map_says_why_and_fails(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "page.tif").write_text("<html>")
    ran = run(environment, "./start_worker.sh", "--demo", str(tmp_path / "page.tif"), "--output", str(tmp_path / "out"))
    assert ran.returncode == 1
    assert "not_a_tiff" in ran.stdout


def test_the_demo_of_a_file_that_is_not_there_says_so(environment: dict[str, str]) -> None:
    ran = run(environment, "./start_worker.sh", "--demo", "missing.tif")
    assert (ran.returncode, ran.stderr) == (1, "❌ there is no file missing.tif\n")


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
        output = tmp_path / "stack" / "output.log"

        def announced() -> bool:
            assert stack.poll() is None, output.read_text()
            return "The job API is at http://127.0.0.1:" in output.read_text()

        wait_until(announced, "the stack to say where it is", 60)
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


def _stack_facts(tmp_path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(tmp_path / "data" / "stack.env").items() if value}


def test_a_configured_worker_that_is_not_healthy_is_not_started(environment: dict[str, str]) -> None:
    away = {**environment, "API_BASE_URL": f"http://127.0.0.1:{free_port()}", "WORKER_AUTH_TOKEN": "some-token"}
    ran = run(away, "./start_worker.sh")
    assert ran.returncode == 1
    assert "does not answer" in ran.stdout
    assert not Path(environment["LOG_FILE"]).exists()
