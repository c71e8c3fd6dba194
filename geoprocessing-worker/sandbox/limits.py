"""The limits of a child process: resources, signals, and its end with the worker."""

import functools
import multiprocessing
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from geoprocessing_worker.sandbox import libc

# Seconds between the soft and the hard limit on CPU time.
CPU_GRACE = 10
# Threads for the children of a user, beside all that run already. A job has five, and a kernel 32,768 in all.
SPARE_TASKS = 2048


@dataclass(frozen=True)
class Limits:
    """The limits of one child."""

    memory_bytes: int = 4 * 1024**3
    cpu_seconds: int | None = 7200
    file_bytes: int = 4 * 1024**3
    open_files: int = 256
    # Progress and result. The largest jobs have some ten thousand lines. A quarter of a million take a core 2 s.
    lines: int = 250_000
    # The outputs are for their owner only.
    umask: int = 0o077


DEFAULT_LIMITS = Limits()


def apply(limits: Limits) -> None:
    """Limit this process, and bind its life to the worker's."""
    # The fork server dies with the worker, and no child outlives the fork server.
    libc.die_with_parent()
    worker = multiprocessing.parent_process()
    if worker is None or not worker.is_alive():
        os._exit(1)  # it died before the kernel was asked to watch it
    os.setsid()
    # A signal to the whole control group must not end the job: the worker decides.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.umask(limits.umask)
    for kind, limit in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, resource.RLIM_INFINITY if limits.cpu_seconds is None else limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, max_tasks()),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # At the soft limit on CPU time the kernel sends SIGXCPU, at the hard one SIGKILL, which names no reason.
        grace = CPU_GRACE if kind == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(kind, (soft, soft + grace))


@functools.cache
def max_tasks() -> int:
    """Return the limit on threads and processes of this user: all that run now, and `SPARE_TASKS`.

    The kernel counts them by user and not by process. It does not apply the limit to root.
    """
    return SPARE_TASKS + sum(_threads_of(status, os.getuid()) for status in Path("/proc").glob("[0-9]*/status"))


def _threads_of(status: Path, user: int) -> int:
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    except OSError:  # the process has ended
        return 0
    return int(fields["Threads"]) if int(fields["Uid"].split()[0]) == user else 0
