"""README's commands, settings and length."""

import re

from geoprocessing_worker.color.colormaps import NAMES
from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title}"
    return found[1]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_two_commands_of_the_readme_exist() -> None:
    commands = " ".join(blocks(README))
    for command in ("./start_worker.sh --demo", "./run_tests.sh"):
        assert command in commands
        assert (ROOT / command.split()[0]).stat().st_mode & 0o111


def test_the_readme_has_at_most_130_lines() -> None:
    assert len(README.splitlines()) <= 130


def test_every_setting_of_the_readme_and_of_the_example_exists() -> None:
    from geo_jobs_api.config import Settings as ApiSettings
    from geoprocessing_worker.config import Settings as WorkerSettings

    known = {name.upper() for name in (*WorkerSettings.model_fields, *ApiSettings.model_fields)}
    table = [line.split("|")[1] for line in section("Settings").splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", " ".join(table)))
    named |= set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named <= known
    assert len(named) > 25


def test_the_documented_colormaps_are_those_that_exist() -> None:
    """docs/RENDERING.md lists each colormap. `_r` reverses it."""
    text = (ROOT / "docs" / "RENDERING.md").read_text(encoding="utf-8")
    found = re.search(r"names of `colormap` are (.*?), in any case", text, re.DOTALL)
    assert found
    listed = set(re.findall(r"`(\w+)`", found[1]))
    assert {*listed, *(f"{name}_r" for name in listed)} == NAMES
