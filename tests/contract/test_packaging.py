"""The wheel has all modules, and no folder hides a module of the standard library."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.checkout import copy_project
from tests.support.processes import ROOT

PACKAGES = {
    "geoprocessing_worker": "geoprocessing-worker",
    "geo_jobs_api": "geo_jobs_api",
    "geo_jobs_common": "geo_jobs_common",
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


# Optional imports.
OPTIONAL = {"geoprocessing_worker": {"psycopg"}, "geo_jobs_api": {"geoprocessing_worker"}}


def run(command: Sequence[object], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [str(part) for part in command]
    ended = subprocess.run(words, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel. The dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_project(folder / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    run(build, folder)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    purelib = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], folder).strip())
    # Python does not read .pth files in this folder, so the checkout is out of reach.
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
def test_the_wheel_has_both_programs(installed: Path, program: str) -> None:
    assert run([installed / program, "--help"], installed).startswith("usage: ")


@pytest.mark.parametrize(("program", "extra"), [("geoprocessing-worker", "worker"), ("geo-jobs-api", "api")])
def test_a_program_without_its_libraries_names_the_extra_that_has_them(
    installed: Path, program: str, extra: str, tmp_path: Path
) -> None:
    """A plain `pip install geoprocessing-worker` installs the shared dependencies only."""
    bare = tmp_path / "bare"
    shutil.copytree(installed.parent, bare, symlinks=True)
    (pth,) = bare.rglob("dependencies.pth")
    pth.unlink()
    module = program.replace("-", "_")
    ended = subprocess.run(
        [bare / "bin" / "python", "-m", module], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert f"Install geoprocessing-worker[{extra}]" in ended.stderr


def test_no_worker_module_hides_one_of_the_standard_library() -> None:
    """Run by its path, `worker.py` has its own folder before the standard library in `sys.path`."""
    names = {entry.stem for entry in (ROOT / "geoprocessing-worker").iterdir()}
    assert not names & sys.stdlib_module_names


def imported_by(folder: Path) -> set[str]:
    """The top-level names of all imports, also inside functions and by name."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    found |= {alias.name for alias in names}
                case ast.ImportFrom(module=str(module)):
                    found.add(module)
                case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(module)), *_]):
                    found.add(module)
    return {name.split(".")[0] for name in found}


def declared(extra: str) -> set[str]:
    """The normalized requirements of the base and of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def pinned(extra: str) -> set[str]:
    """The normalized packages that an extra installs."""
    text = (ROOT / f"requirements-{extra}.txt").read_text(encoding="utf-8")
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)", text, re.MULTILINE)}


@pytest.mark.parametrize(("package", "extra"), [("geoprocessing_worker", "worker"), ("geo_jobs_api", "api")])
def test_each_program_imports_only_packages_of_its_extra(package: str, extra: str) -> None:
    """A worker's host needs no API and no PostgreSQL client, and the API's no raster library."""
    ours = {*PACKAGES, "config", "worker", "bootstrap"}
    named = imported_by(ROOT / PACKAGES[package]) - sys.stdlib_module_names - ours - OPTIONAL[package]
    providers = packages_distributions()
    wanted = {name: {canonicalize_name(each) for each in providers[name]} for name in named}
    assert {name for name, distributions in wanted.items() if not distributions & pinned(extra)} == set()


@pytest.mark.parametrize("extra", ["worker", "api"])
def test_the_pins_of_one_program_exclude_the_other(extra: str) -> None:
    (other,) = {"worker", "api"} - {extra}
    assert not pinned(extra) & (declared(other) - declared(extra))


@pytest.mark.parametrize("package", PACKAGES.values())
def test_no_folder_has_more_than_16_modules(package: str) -> None:
    """At most 16 modules in a folder, and at least three in a sub-package."""
    folders = {file.parent for file in (ROOT / package).rglob("*.py")}
    counts = {folder: sum(1 for file in folder.glob("*.py") if file.stem != "__init__") for folder in folders}
    assert {folder.name for folder, count in counts.items() if count > 16} == set()
    assert {folder.name for folder, count in counts.items() if count < 3 and folder != ROOT / package} == set()
