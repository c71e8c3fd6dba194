"""A copy of the project in a folder that any user can enter, with a ready environment."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT


def public_python() -> str:
    """Return an interpreter of this version that every user can run, since the current one may be in a private home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("/usr/bin", "/usr/local/bin", "/opt/venv/bin"):
        path = Path(folder, name)
        if path.exists() and not path.resolve().is_relative_to("/root"):
            return str(path)
    pytest.skip(f"no {name} that another user can run")


def copy_project(folder: Path) -> None:
    """Copy the files that git tracks or would add."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    for name in filter(None, names.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def make_environment(folder: Path, checkout: Path) -> None:
    """Make an environment like scripts/environment.sh, with this one's libraries instead of installed ones."""
    subprocess.run([public_python(), "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    here = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"), None) or Path(sys.prefix)
    there = next((folder / "lib").glob("python3*/site-packages"))
    for finder in here.glob("__editable__*"):
        (there / finder.name).write_text(finder.read_text().replace(str(ROOT), str(checkout)))
    (there / "libraries.pth").write_text(f"{here}\n")
    command = 'PATH=/usr/bin:/bin; . scripts/environment.sh; _fingerprint requirements.txt >"$1/.installed"'
    subprocess.run(["bash", "-c", command, "-", folder], cwd=checkout, check=True, timeout=60)
