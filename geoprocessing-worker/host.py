"""Trouble of the worker's host that keeps jobs from being done: disk, memory, clock.

Only the standard library is imported, since the health check also runs where libraries are missing.
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

from geoprocessing_worker.own_folder import prepare

if TYPE_CHECKING:
    from geoprocessing_worker.config import Settings

# A download, its pictures and their copies on the way out.
ROOM_IN_FILES = 3
# A job makes a dozen files.
LEAST_INODES = 100
PROBE_BYTES = 4096
MIB = 1024**2
# Leases do not depend on the wall clock. Certificates of storage and the age of kept reports do, by days.
LARGEST_CLOCK_ERROR = 86_400.0
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Trouble:
    """A reason to claim nothing: a stable code, and a sentence with the cure."""

    code: str
    message: str


def disk(settings: Settings) -> Trouble | None:
    """`TEMP_DIR` cannot be written or could be replaced by others, or lacks room for one job with the largest file."""
    folder = settings.temp_dir
    try:
        prepare(folder)
        # Quotas and read-only file systems show only in a write.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
        found = os.statvfs(folder)
    except OSError as error:
        cure = "mend its permissions or set TEMP_DIR"
        return Trouble("disk", f"{folder} cannot be used ({error.strerror}); {cure}")
    cure = "make room or set TEMP_DIR to a larger disk"
    if _jobs_with_room(settings, found) < 1:
        free = found.f_bavail * found.f_frsize / 1e6
        return Trouble(
            "disk", f"{folder} has {free:.0f} MB free, less than {ROOM_IN_FILES} times MAX_FILE_SIZE; {cure}"
        )
    # File systems that make inodes as they need them report none.
    if found.f_files and found.f_favail < LEAST_INODES:
        return Trouble("disk", f"{folder} has only {found.f_favail} inodes free; {cure}")
    return None


def count_jobs_with_room(settings: Settings) -> int:
    """How many jobs with the largest file `TEMP_DIR` has room for."""
    try:
        return _jobs_with_room(settings, os.statvfs(settings.temp_dir))
    except OSError:
        return 0


def _jobs_with_room(settings: Settings, found: os.statvfs_result) -> int:
    return found.f_bavail * found.f_frsize // (ROOM_IN_FILES * settings.max_file_size)


def memory(settings: Settings) -> Trouble | None:
    """Less memory is free than `MIN_FREE_MEMORY_MB`, on the host or within the control group."""
    free = free_memory()
    if free is None or free >= settings.min_free_memory_mb * MIB:
        return None
    return Trouble(
        "memory",
        f"{free // MIB} MiB of memory are free, less than MIN_FREE_MEMORY_MB ({settings.min_free_memory_mb}); "
        "give this host or container more memory, or lower CONCURRENT_JOBS",
    )


def clock(offset: float | None) -> Trouble | None:
    """The host's clock and the API's differ by more than a day; `offset` in seconds, None if unknown."""
    if offset is None or abs(offset) <= LARGEST_CLOCK_ERROR:
        return None
    way = "behind" if offset > 0 else "ahead of"
    return Trouble(
        "clock", f"this host's clock is {abs(offset) / 86_400:.1f} days {way} the API's; set it (NTP), or the API's"
    )


def clock_offset(date: str, now: float) -> float | None:
    """Seconds by which the clock behind a Date header is ahead of `now`; None if it is no date."""
    try:
        said = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return None
    return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp() - now


def no_process(reason: str) -> Trouble:
    """Jobs cannot have processes of their own, with all walls round them."""
    cure = "look at the limits on processes and memory of this user and container, then restart the worker"
    return Trouble("sandbox", f"no process for jobs can be made ({reason}); {cure}")


def free_memory() -> int | None:
    """Bytes that this process could still get, without what caches hold; None where the kernel does not tell."""
    found = [*_free_on_host(), *_free_in_groups()]
    return min(found) if found else None


def _free_on_host() -> Iterator[int]:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _free_in_groups() -> Iterator[int]:
    """What each control group from this process's up to the root leaves."""
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
        # Within a container the path may be the host's: then the root of what is mounted is this group.
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
