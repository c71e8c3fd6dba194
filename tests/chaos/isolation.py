"""Network and file systems of a storm's own: packets are dropped and disks filled in namespaces that end with it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Set in the process that runs inside.
INSIDE = "GEO_JOBS_CHAOS_INSIDE"
TABLE = "inet geo_jobs_chaos"


def is_inside() -> bool:
    """Whether this process has its own namespaces."""
    return os.environ.get(INSIDE) == "1"


def obstacle() -> str:
    """Return why namespaces cannot be made here. Empty: they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("unshare", "ip", "nft", "mount") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    probe = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        "ip link set lo up && nft list ruleset && mount -t tmpfs t /mnt",
    ]
    answer = subprocess.run(probe, check=False, capture_output=True, text=True, env=_environment())
    return "" if answer.returncode == 0 else f"namespaces are refused here ({answer.stderr.strip()})"


def enter(module: str, arguments: Sequence[str]) -> int:
    """Run a module again in new namespaces. The kernel removes them after a crash too. Its exit code."""
    script = 'ip link set lo up && exec "$0" "$@"'
    command = ["unshare", "--net", "--mount", "sh", "-c", script, sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, env={**_environment(), INSIDE: "1"})
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to both


@contextlib.contextmanager
def dropped_packets(ports: Sequence[int], *, to: bool, back: bool, percent: int) -> Iterator[None]:
    """Drop TCP packets on the loopback interface.

    Args:
        ports: of the servers.
        to: drop packets to the servers.
        back: drop packets from the servers.
        percent: share of packets to drop.
    """
    chance = "" if percent >= 100 else f"numgen random mod 100 < {percent} "
    listed = ", ".join(str(port) for port in ports)
    ways = [way for way, is_closed in (("dport", to), ("sport", back)) if is_closed]
    rules = "".join(f"tcp {way} {{ {listed} }} {chance}drop\n" for way in ways)
    chain = f"chain input {{ type filter hook input priority 0; policy accept;\n{rules}}}"
    _nft(f"table {TABLE} {{\n{chain}\n}}")
    try:
        yield
    finally:
        _nft(f"delete table {TABLE}")


def mount_disk(folder: Path, megabytes: int) -> None:
    """Mount a small file system at a new folder."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    subprocess.run(command, check=True, env=_environment())


def unmount_disk(folder: Path) -> None:
    """Unmount the file system at a folder, also while it is in use."""
    subprocess.run(["umount", "-l", str(folder)], check=False, env=_environment())


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no byte free on the file system of a folder."""
    filling = folder / "filling"
    try:
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            room = os.statvfs(folder)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize))
            file.seek(0, os.SEEK_END)
            while file.write(bytes(4096)):
                pass
        yield
    finally:
        filling.unlink(missing_ok=True)


def _nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, capture_output=True, env=_environment())


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}
