"""Trouble of the worker's host that prevents jobs: disk, memory, clock.

Imports only the standard library, since the health check runs without the others too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from geoprocessing_worker.own_folder import opened

if TYPE_CHECKING:
    from geoprocessing_worker.config import Settings

# A download, its results and their copies.
ROOM_IN_FILES = 3
# A job creates a dozen files.
LEAST_INODES = 100
PROBE_BYTES = 4096
MIB = 1024**2
# Seconds. Leases do not depend on the wall clock. Certificates of storage and the age of reports do, by days.
LARGEST_CLOCK_ERROR = 86_400.0
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Trouble:
    """A reason to claim nothing: a stable code, and a sentence with the remedy."""

    code: str
    message: str


def disk(settings: Settings) -> Trouble | None:
    """Check that `TEMP_DIR` is writable, private, and has room for one job with the largest file."""
    folder = settings.temp_dir
    try:
        # Only a write detects quotas and read-only file systems.
        with opened(folder) as held, tempfile.TemporaryFile(dir=held) as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            status = os.statvfs(held)
    except OSError as error:
        return Trouble("disk", f"{folder} cannot be used ({error.strerror}); correct its permissions or set TEMP_DIR")
    cure = "make room or set TEMP_DIR to a larger disk"
    if _jobs_with_room(settings, status) < 1:
        free = status.f_bavail * status.f_frsize / 1e6
        return Trouble(
            "disk", f"{folder} has {free:.0f} MB free, less than {ROOM_IN_FILES} times MAX_FILE_SIZE; {cure}"
        )
    # File systems with dynamic inodes report none.
    if status.f_files and status.f_favail < LEAST_INODES:
        return Trouble("disk", f"{folder} has only {status.f_favail} inodes free; {cure}")
    return None


def count_jobs_with_room(settings: Settings) -> int:
    """Return the number of jobs with the largest file that `TEMP_DIR` has room for."""
    try:
        return _jobs_with_room(settings, os.statvfs(settings.temp_dir))
    except OSError:
        return 0


def _jobs_with_room(settings: Settings, status: os.statvfs_result) -> int:
    return status.f_bavail * status.f_frsize // (ROOM_IN_FILES * settings.max_file_size)


def memory(settings: Settings) -> Trouble | None:
    """Check that `MIN_FREE_MEMORY_MB` is free, on the host and within the control group."""
    free = free_memory()
    if free is None or free >= settings.min_free_memory_mb * MIB:
        return None
    return Trouble(
        "memory",
        f"{free // MIB} MiB of memory are free, less than MIN_FREE_MEMORY_MB ({settings.min_free_memory_mb}); "
        "give this host or container more memory, or lower CONCURRENT_JOBS",
    )


def clock(offset: float | None) -> Trouble | None:
    """Check that the clocks of host and API differ by less than a day. `offset` in seconds, None if unknown."""
    if offset is None or abs(offset) <= LARGEST_CLOCK_ERROR:
        return None
    way = "behind" if offset > 0 else "ahead of"
    return Trouble(
        "clock", f"this host's clock is {abs(offset) / 86_400:.1f} days {way} the API's; set it (NTP), or the API's"
    )


def clock_offset(date: str, now: float) -> float | None:
    """Return the seconds by which a Date header is ahead of `now`, None if it is no date."""
    try:
        parsed = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() - now


def no_process(reason: str) -> Trouble:
    """Return the trouble that no sandboxed process can be started."""
    cure = "check the limits on processes and memory of this user and container, then restart the worker"
    return Trouble("sandbox", f"no process for jobs can be started ({reason}); {cure}")


def free_memory() -> int | None:
    """Return the bytes available to this process, caches included, None if unknown."""
    return min([*_free_on_host(), *_free_in_groups()], default=None)


def _free_on_host() -> Iterator[int]:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _free_in_groups() -> Iterator[int]:
    """Yield the free bytes of each control group, from this process's up to the root."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = CGROUPS, ("memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's. Then the root of the mount is this group.
        while folder != root.parent:
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                yield max(0, limit - used + _cached(folder, names[2]))
            folder = folder.parent


def _cached(folder: Path, names: tuple[str, ...]) -> int:
    words = (line.split() for line in _lines(folder / "memory.stat"))
    return sum(int(value) for name, value in words if name in names)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
