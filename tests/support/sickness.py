"""Kinds of trouble of a worker's host, caused by its settings and surroundings."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Prepare = Callable[[Path], AbstractContextManager[dict[str, str]]]


@dataclass(frozen=True)
class Sickness:
    """One kind: its name, its code, how to cause it (the worker's settings), and why that is impossible here."""

    name: str
    code: str
    prepared: Prepare
    missing: str = ""


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[dict[str, str]]:
    """A file system of 4 MB without a free byte."""
    disk = folder / "full-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(disk)], check=True)
    try:
        with contextlib.suppress(OSError), (disk / "filling").open("wb") as file:
            while True:
                file.write(bytes(65536))
                file.flush()
        yield {"TEMP_DIR": str(disk)}
    finally:
        # The worker may still be ending.
        subprocess.run(["umount", "-l", str(disk)], check=True)


@contextlib.contextmanager
def _read_only_disk(folder: Path) -> Iterator[dict[str, str]]:
    disk = folder / "read-only-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700,ro", "tmpfs", str(disk)], check=True)
    try:
        yield {"TEMP_DIR": str(disk)}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _by_settings(**settings: str) -> Prepare:
    @contextlib.contextmanager
    def prepared(_folder: Path) -> Iterator[dict[str, str]]:
        yield settings

    return prepared


@contextlib.contextmanager
def _no_scanner(folder: Path) -> Iterator[dict[str, str]]:
    yield {"SCAN_FOR_MALWARE": "true", "CLAMD_ADDRESS": str(folder / "nobody")}


@contextlib.contextmanager
def _no_processes(folder: Path) -> Iterator[dict[str, str]]:
    """A worker that cannot start processes, as under a limit on processes (which does not bind root)."""
    (folder / "limits").mkdir()
    (folder / "limits" / "sitecustomize.py").write_text(
        "import multiprocessing.util\n"
        "def none_left(*_):\n"
        "    raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "multiprocessing.util.spawnv_passfds = none_left\n"
    )
    yield {"PYTHONPATH": str(folder / "limits")}


@contextlib.contextmanager
def _wrong_clock(folder: Path) -> Iterator[dict[str, str]]:
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() - 3 * 86_400\n"
    )
    yield {"PYTHONPATH": str(folder / "clock")}


def _can_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("mount") or not shutil.which("unshare"):
        return False
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


_NO_MOUNT = "" if _can_mount() else "mounting a file system needs root"

SICKNESSES = (
    Sickness("disk full", "disk", _full_disk, _NO_MOUNT),
    Sickness("disk read-only", "disk", _read_only_disk, _NO_MOUNT),
    Sickness("too little room", "disk", _by_settings(MAX_FILE_SIZE=str(10**15))),
    Sickness("memory", "memory", _by_settings(MIN_FREE_MEMORY_MB=str(10**7))),
    Sickness("scanner away", "scanner", _no_scanner),
    Sickness("no processes", "sandbox", _no_processes),
    Sickness("clock", "clock", _wrong_clock),
)
