"""Packages are installed by hash only, and a missing audit is not reported as clean."""

import json
import re
from pathlib import Path

import pytest

from scripts.audit import PINS, verdict, without_hash

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("pins", PINS)
def test_every_pin_has_a_hash(pins: str) -> None:
    assert without_hash((ROOT / pins).read_text()) == []
    assert without_hash("a==1 \\\n    --hash=sha256:00\nb[c]==2\nd==3 --hash=sha256:00\n") == ["b[c]"]


@pytest.mark.parametrize("script", ["Dockerfile", "scripts/environment.sh"])
def test_no_package_is_installed_without_its_hash(script: str) -> None:
    """Each pip install uses pinned files with `--require-hashes`, or the project itself without dependencies."""
    lines = re.findall(r"pip install [^\n|&]*", (ROOT / script).read_text())
    assert lines
    assert [
        line for line in lines if "--require-hashes" not in line and "--no-deps --no-build-isolation" not in line
    ] == []


def test_npm_packages_are_pinned_by_hash_and_name_no_registry() -> None:
    """Each locked package has an integrity hash. The lock works with any registry, and no package runs a script."""
    folder = ROOT / "tests" / "maps"
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    packages = {name: facts for name, facts in locked.items() if name}
    assert len(packages) > 3
    assert [name for name, facts in packages.items() if not facts.get("integrity", "").startswith("sha512-")] == []
    assert [name for name, facts in packages.items() if "resolved" in facts] == []
    assert "ignore-scripts=true" in (folder / ".npmrc").read_text()


def test_packages_without_a_lookup_are_counted() -> None:
    clean = {"name": "a", "version": "1", "vulns": []}
    weak = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "not found"}
    assert verdict({"dependencies": [clean]})[0] == 0
    assert verdict({"dependencies": [clean, weak, skipped]})[0] == 1
    code, lines = verdict({"dependencies": [clean, skipped]})
    assert (code, lines[-1][:25]) == (0, "NOT LOOKED UP: 1 packages")
    assert verdict({"dependencies": []}) == (0, ["0 of 0 packages looked up, 0 known weaknesses"])
