"""The wheel holds all that the project imports, and no folder hides a module of the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.checkout import copy_project
from tests.support.processes import ROOT

PACKAGES = {
    "geoprocessing_worker": "geoprocessing-worker",
    "geo_jobs_api": "geo_jobs_api",
    "local_stack": "local_stack",
}
IMPORT_ALL = """
import importlib, pkgutil, sys
names = []
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    names += [name, *(each.name for each in pkgutil.walk_packages(package.__path__, name + "."))]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
    print(name)
"""


def run(command: Sequence[object], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(part) for part in command]
    ended = subprocess.run(words, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment that holds the wheel. Its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_project(folder / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    run(build, folder)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    purelib = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], folder).strip())
    # A path file in a path that is named here is not read, so that the checkout itself is out of reach.
    (purelib / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "venv" / "bin"


def test_every_module_of_the_installed_wheel_can_be_imported(installed: Path) -> None:
    listed = run([installed / "python", "-c", IMPORT_ALL, *PACKAGES], installed)
    tracked = run(["git", "ls-files", "--", *PACKAGES.values()], ROOT).split()
    expected = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in tracked if file.endswith(".py")
    }
    expected = {name.replace("geoprocessing-worker", "geoprocessing_worker", 1) for name in expected}
    assert set(listed.split()) == expected


@pytest.mark.parametrize("program", ["geoprocessing-worker", "geo-jobs-api"])
def test_the_wheel_brings_both_programs(installed: Path, program: str) -> None:
    assert run([installed / program, "--help"], installed).startswith("usage: ")


def test_no_module_or_folder_of_the_worker_hides_one_of_the_standard_library() -> None:
    """Run by its path, `worker.py` has its own folder before the standard library in `sys.path`."""
    names = {entry.stem for entry in (ROOT / "geoprocessing-worker").iterdir()}
    assert not names & sys.stdlib_module_names
