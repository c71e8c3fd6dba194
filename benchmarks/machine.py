"""What the figures of a benchmark depend on: the machine, its other work, and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def description() -> str:
    """Return cores, processor, kernel and load."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    return f"{os.cpu_count()} cores ({model.split(':')[1].strip()}), Linux {platform.release()}, load {load}"


def busy() -> float:
    """Return the seconds of CPU that all processes of this machine have used."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:7])) / TICKS


@contextmanager
def checked_out(ref: str) -> Iterator[Path]:
    """Check out another commit in a folder of its own for the block."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(other), ref], check=True, cwd=ROOT)
        try:
            yield other
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], check=True, cwd=ROOT)


def importing(tree: Path) -> dict[str, str]:
    """Return an environment whose Python imports the project from `tree`."""
    return os.environ | {"PYTHONPATH": f"{tree}:{tree / 'typings'}"}
