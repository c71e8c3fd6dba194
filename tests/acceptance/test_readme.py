"""What the README says, done to the letter."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.api import make_jwt
from tests.support.processes import ROOT, Programs, clean_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title}"
    return found[1]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_curl_calls_of_the_readme_take_a_map_the_whole_way(
    stack: Programs, small_map: Path, tmp_path: Path
) -> None:
    stack.worker()
    (tmp_path / "map.tif").write_bytes(small_map.read_bytes())
    text = blocks(section("Use it over HTTP"))[0]
    calls = re.findall(r"curl -s .*?(?=\n\n|\ncurl|\Z)", text, re.DOTALL)
    assert len(calls) == 6
    # Only the address, the token and the wait for the worker are the test's; every call is the README's.
    text = text.replace("http://127.0.0.1:8000", stack.base_url)
    text = text.replace("$(.venv/bin/python -m geo_jobs_api jwt --sub you)", make_jwt())
    before, download = text.rsplit("curl -s ", 1)
    script = f"set -euo pipefail\n{before}\necho\nsleepless_wait\ncurl -s {download}"
    wait = f"""sleepless_wait() {{ {sys.executable} - "$ID" <<'PYTHON'
import httpx, sys
for _ in range(2000):
    headers = {{"Authorization": "Bearer {make_jwt()}"}}
    if httpx.get("{stack.base_url}/api/geo-jobs/" + sys.argv[1], headers=headers).json()["state"] == "succeeded":
        break
PYTHON
}}
"""
    ran = subprocess.run(
        ["bash", "-c", wait + script],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ran.returncode == 0, ran.stderr
    links = json.loads(ran.stdout.splitlines()[-1])["outputs"]
    assert {"map.png", "map.pgw", "map.json"} <= {link["name"] for link in links}


def test_the_readme_names_the_two_commands_and_they_are_there() -> None:
    commands = " ".join(blocks(README))
    for command in ("./start_worker.sh --demo", "./run_tests.sh"):
        assert command in commands
        assert (ROOT / command.split()[0]).stat().st_mode & 0o111


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_file_that_the_readme_links_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_convert_does_what_the_readme_says(small_map: Path, tmp_path: Path) -> None:
    block = next(block for block in blocks(section("Use it over HTTP")) if "convert" in block)
    command = block.replace("map.tif", str(small_map)).replace("out/", str(tmp_path / "out"))
    ran = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "small.png").exists()


def test_every_setting_of_the_readme_and_of_the_example_exists() -> None:
    from geo_jobs_api.config import Settings as ApiSettings
    from geoprocessing_worker.config import Settings as WorkerSettings

    known = {name.upper() for name in (*WorkerSettings.model_fields, *ApiSettings.model_fields)}
    table = [line.split("|")[1] for line in section("Settings").splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", " ".join(table)))
    named |= set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named <= known
    assert len(named) > 25
