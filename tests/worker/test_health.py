"""Each check names the fault and the cure. Real servers, real processes."""

import json
import os
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from starlette.responses import Response

from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.support.waiting import in_thread

ROOT = Path(__file__).resolve().parents[2]


def check(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder), **variables}
    ran = subprocess.run(
        [sys.executable, ROOT / "health_check.py", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stderr == ""
    return ran.returncode, ran.stdout


async def test_a_healthy_worker_prints_the_agreed_lines_to_the_letter(server: ScriptedApi, tmp_path: Path) -> None:
    server.on("heartbeat", problem(404, "job_not_found"))
    code, printed = await in_thread(
        check, tmp_path, API_BASE_URL=server.base_url, WORKER_AUTH_TOKEN="t" * 20, TEMP_DIR=str(tmp_path)
    )
    assert printed == (
        "✅ Database: Not checked: PGHOST is not set, and a worker needs no database of its own\n"
        "✅ Api: API connection successful\n"
        "✅ File_System: File system accessible\n"
        "✅ Dependencies: All dependencies available\n"
        "\n"
        "🎉 Overall Status: HEALTHY - Worker is ready to process jobs\n"
    )
    assert code == 0


@pytest.mark.parametrize(
    ("heartbeat", "claim", "said"),
    [
        (problem(404, "job_not_found"), problem(500, "unused"), "API connection successful"),
        (problem(409, "lease_lost"), problem(500, "unused"), "API connection successful"),
        (answer({}), problem(500, "unused"), "API connection successful"),
        (problem(401, "token_invalid"), answer(status=405), "the API refuses the worker token (401)"),
        (problem(503, "unavailable"), answer(status=405), "answered 503"),
        (answer("no such page", 404), answer("only POST", 405), "API connection successful"),
        (answer("no such page", 404), problem(401, "token_invalid"), "the API refuses the worker token (401)"),
        (answer("no such page", 404), answer("no such page", 404), "has no worker endpoints (404)"),
        (answer(["not a UUID"], 422), answer(status=405), "API connection successful"),
        (answer("moved", 302), answer("moved", 302), "answered 302"),
    ],
)
async def test_the_token_is_proven_without_a_claim(
    server: ScriptedApi, tmp_path: Path, heartbeat: Response, claim: Response, said: str
) -> None:
    """No server can lose a job to the health check: it never POSTs to the claim, whatever the server answers."""
    server.on("heartbeat", heartbeat)
    server.on("claim", claim)
    told = {"API_BASE_URL": server.base_url, "WORKER_AUTH_TOKEN": "t" * 20, "TEMP_DIR": str(tmp_path)}
    _, printed = await in_thread(check, tmp_path, **told)
    assert said in printed.splitlines()[1]
    assert {asked.method for asked in server.asked} <= {"GET", "PATCH"}


async def test_a_disabled_worker_is_healthy_and_reports_it(server: ScriptedApi, tmp_path: Path) -> None:
    server.on("heartbeat", problem(409, "lease_lost"))
    told = {"API_BASE_URL": server.base_url, "WORKER_AUTH_TOKEN": "t" * 20, "TEMP_DIR": str(tmp_path)}
    code, printed = await in_thread(check, tmp_path, **told, DISABLE_WORKERS="true")
    assert (code, printed.splitlines()[-1]) == (
        0,
        "🎉 Overall Status: HEALTHY - Worker is up but claims nothing (DISABLE_WORKERS)",
    )
    _, printed = await in_thread(check, tmp_path, "--json", **told, DISABLE_WORKERS="true")
    assert json.loads(printed)["claiming"] is False


async def test_other_trouble_that_stops_claims_is_a_finding_of_its_own(server: ScriptedApi, tmp_path: Path) -> None:
    """Memory and clock have a line only if there is a fault. The worker's checks are the same."""
    later = formatdate(time.time() + 3 * 86_400, usegmt=True)
    server.on("claim", Response(status_code=204, headers={"Date": later}))
    told = {"API_BASE_URL": server.base_url, "WORKER_AUTH_TOKEN": "t" * 20, "TEMP_DIR": str(tmp_path)}
    code, printed = await in_thread(check, tmp_path, **told, MIN_FREE_MEMORY_MB=str(10**7))
    lines = printed.splitlines()
    assert code == 1
    assert lines[4].startswith("❌ Memory: ")
    assert "less than MIN_FREE_MEMORY_MB (10000000); give this host or container more memory" in lines[4]
    assert lines[5].startswith("❌ Clock: this host's clock is 3.0 days behind the API's; set it (NTP)")
    assert lines[-1].startswith("💥 Overall Status: UNHEALTHY - Memory, Clock")


async def test_a_refused_token_is_unhealthy_although_the_api_answers(server: ScriptedApi, tmp_path: Path) -> None:
    server.on("heartbeat", problem(401, "token_invalid"))
    code, printed = await in_thread(
        check, tmp_path, "--json", API_BASE_URL=server.base_url, WORKER_AUTH_TOKEN="wrong", TEMP_DIR=str(tmp_path)
    )
    assert code == 1
    found = json.loads(printed)
    assert not found["healthy"]
    assert "correct WORKER_AUTH_TOKEN" in found["checks"]["api"]["message"]


def test_everything_that_is_missing_is_named_with_a_remedy(tmp_path: Path, unused_tcp_port: int) -> None:
    (tmp_path / "file").touch()
    code, printed = check(
        tmp_path,
        API_BASE_URL=f"http://127.0.0.1:{unused_tcp_port}",
        WORKER_AUTH_TOKEN="t",
        PGHOST=str(tmp_path),
        PGUSER="nobody",
        TEMP_DIR=str(tmp_path / "file" / "below"),
    )
    lines = printed.splitlines()
    assert code == 1
    assert lines[0].startswith("❌ Database: no connection (")
    assert lines[0].endswith("start PostgreSQL or correct PGHOST and its companions")
    assert "does not answer" in lines[1]
    assert lines[2].endswith("correct its permissions or set TEMP_DIR")
    assert lines[3] == "✅ Dependencies: All dependencies available"
    assert lines[-1].startswith("💥 Overall Status: UNHEALTHY - Database, Api, File_System")


def test_a_missing_library_is_named_and_does_not_hide_the_other_findings(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import sys\nsys.modules['rasterio'] = None\n")
    code, printed = check(tmp_path, PYTHONPATH=str(broken), TEMP_DIR=str(tmp_path))
    assert code == 1
    assert "❌ Dependencies: cannot be imported: rasterio (" in printed
    assert "pip install --require-hashes -r " in printed
    assert "✅ File_System: File system accessible" in printed


def test_without_an_environment_the_script_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "geoprocessing-worker").mkdir()
    for name in ("health_check.py", "geoprocessing-worker/bootstrap.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    bare = subprocess.run(
        [sys.executable, "-S", "-I", tmp_path / "health_check.py"], capture_output=True, text=True, timeout=60
    )
    assert bare.returncode == 1
    assert "run ./start_worker.sh --demo once" in bare.stderr


@pytest.mark.parametrize(
    "script", ["geoprocessing-worker/worker.py", "geoprocessing-worker/config.py", "health_check.py"]
)
def test_the_scripts_run_by_path_from_any_folder(script: str, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, timeout=60)
    assert b"Traceback" not in ran.stderr
    assert ran.stdout
