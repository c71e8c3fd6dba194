"""Attacks of a compromised child, imported by name in the child. Each returns its outcome."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import rasterio
import rasterio.shutil

from geoprocessing_worker.sandbox.limits import max_tasks
from tests.support.child_work import ChildReply, Deed, ProgressCallback

DONE = "done"


def attack(deed: Deed, report: ProgressCallback) -> ChildReply:
    try:
        ATTACKS[deed.name](deed.path)
    except (OSError, rasterio.errors.RasterioError) as error:
        return ChildReply(text=type(error).__name__)
    return ChildReply(text=DONE)


def _connect(kind: int) -> Callable[[Path], None]:
    def connect(port: Path) -> None:
        with socket.socket(socket.AF_INET, kind) as made:
            made.connect(("127.0.0.1", int(port.name)))
            made.send(b"here I am")

    return connect


def _connect_unix(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(str(path))


def _open_a_vrt_by_any_name(folder: Path) -> None:
    """After GDAL has made VRT datasets of its own, for a JPEG of `a.tif` with alpha and for a reprojection."""
    source, vrt = folder / "a.tif", folder / "a.vrt"
    for scheme in ("CUSTOM", "GoogleMapsCompatible"):
        options = {"COMPRESS": "JPEG", "TILING_SCHEME": scheme}
        rasterio.shutil.copy(source, folder / "made.tif", driver="COG", **options)
    names = [str(vrt), vrt.read_text("utf-8"), f"vrt://{source}", f"vrt://{source}?bands=1"]
    for name in names:
        for driver in (None, "VRT"):
            with suppress(rasterio.errors.RasterioError), rasterio.open(name, driver=driver):
                return
    raise PermissionError("none opened")


def _fork(_path: Path) -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _write(path: Path) -> None:
    (path / "written").write_text("here I was")


def _call(number: int, *arguments: int) -> Callable[[Path], None]:
    def call(_path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        ctypes.set_errno(0)
        # A kernel that carries out the call answers bad arguments with other errors than EPERM.
        if libc.syscall(number, *arguments) < 0 and ctypes.get_errno() in {1, 13}:
            raise PermissionError(ctypes.get_errno(), "refused")

    return call


def _open_as(driver: str) -> Callable[[Path], None]:
    def open_as(path: Path) -> None:
        with rasterio.Env(), rasterio.open(path, driver=driver) as dataset:
            dataset.read()

    return open_as


def _write_much(path: Path) -> None:
    with (path / "much").open("wb") as file:
        file.truncate(1 << 40)


def _open_many(path: Path) -> None:
    kept = [path.open("rb") for _ in range(2000)]
    del kept


def _write_own_memory(_path: Path) -> None:
    Path("/proc/self/mem").open("wb").close()


def _run_from_memory(_path: Path) -> None:
    os.execve(os.memfd_create("program"), ["program"], {})  # noqa: S606 - that is the attack


X86 = os.uname().machine == "x86_64"
PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS = 2, 3, 39  # from linux/prctl.h


def tell_limits(deed: Deed, report: ProgressCallback) -> ChildReply:
    """Return the limits of the process, as read from the system."""
    libc = ctypes.CDLL(None)
    told: dict[str, object] = {kind: resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))[0] for kind in LIMITED}
    signal_of_parent = ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(signal_of_parent))
    told |= {
        "umask": os.umask(0),
        "no_new_privs": libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
        "signal when the parent dies": signal_of_parent.value,
        "leads its session": os.getsid(0) == os.getpid(),
        "standard files": [os.fstat(number).st_rdev for number in (0, 1, 2)],
    }
    return ChildReply(text=json.dumps(told))


F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
PR_SET_PDEATHSIG = 1


def _signal_by_a_pipe(_path: Path) -> None:
    """Make the kernel send a harmless signal to the worker when a pipe becomes readable."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, F_SETOWN, os.getppid())
    fcntl.fcntl(reader, F_SETSIG, signal.SIGCONT)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writer, b"x")


def _clear_death_signal(_path: Path) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0) != 0:
        raise PermissionError(ctypes.get_errno(), "refused")


def _make_threads(_path: Path) -> None:
    """Start more threads than allowed, as a user with a limit in the kernel."""
    if os.getuid() == 0:
        os.setuid(65534)
    threading.stack_size(1 << 16)
    enough = threading.Event()
    made = [threading.Thread(target=enough.wait, daemon=True) for _ in range(max_tasks() + 100)]
    try:
        for thread in made:
            thread.start()
    except RuntimeError:
        raise OSError("no more threads") from None
    finally:
        enough.set()


LIMITED = ("AS", "CPU", "FSIZE", "NOFILE", "CORE")
ATTACKS: dict[str, Callable[[Path], object]] = {
    "read a file": lambda path: path.read_bytes(),
    "read its environment": lambda _: Path("/proc/self/environ").read_bytes(),
    "read the parent's environment": lambda _: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "write a file": _write,
    "empty a file": lambda path: os.truncate(path, 0),
    "empty a file by reading": lambda path: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
    "empty a file by neither": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_RDWR | os.O_TRUNC)),
    "delete a file": lambda path: path.unlink(),
    "link a file": lambda path: Path("link").symlink_to(path),
    "connect by TCP": _connect(socket.SOCK_STREAM),
    "send by UDP": _connect(socket.SOCK_DGRAM),
    "connect to a Unix socket": _connect_unix,
    "fork": _fork,
    "start a program": lambda _: subprocess.run(["/bin/true"], check=True),
    "signal the parent": lambda _: os.kill(os.getppid(), 0),
    "signal everybody": lambda _: os.kill(-1, signal.SIGCONT),
    "open a VRT after using some": _open_a_vrt_by_any_name,
    "open a VRT": _open_as("VRT"),
    "open a GeoTIFF": _open_as("GTiff"),
    "trace": _call(101, 0, 0, 0, 0) if os.uname().machine == "x86_64" else _call(117, 0, 0, 0, 0),
    "use io_uring": _call(425, 8, 0),
    "use userfaultfd": _call(323 if X86 else 282, 0),
    "open a process": _call(434, os.getppid(), 0),
    "read a process's memory": _call(310 if X86 else 270, os.getppid(), 0, 0, 0, 0, 0),
    "share memory": _call(29 if X86 else 194, 0, 4096, 0o1600),
    "make a queue": _call(68 if X86 else 186, 0, 0o1600),
    "set the clock": _call(227 if X86 else 112, 0, 0),
    "write its own memory": _write_own_memory,
    "run from memory": _run_from_memory,
    "look at all processes": lambda _: list(Path("/proc").iterdir()),
    "leave something in shared memory": lambda _: _write(Path("/dev/shm")),  # noqa: S108 - that is the attack
    "change a file's rights": lambda path: path.chmod(0o777),
    "change a file's owner": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "change a file's time": os.utime,
    "change a file's attributes": lambda path: os.setxattr(path, "user.a", b"b"),
    "connect to an abstract socket": lambda _: _connect_unix(Path("\0abstract")),
    "make a FIFO": lambda path: os.mkfifo(path.with_name("fifo")),
    "signal by a pipe's owner": _signal_by_a_pipe,
    "own a pipe by ioctl": lambda _: fcntl.ioctl(os.pipe()[0], FIOSETOWN, struct.pack("i", os.getppid())),
    "clear its death signal": _clear_death_signal,
    "set a limit": _call(302 if X86 else 261, 0, resource.RLIMIT_NOFILE, 1, 0),
    "renice the parent": lambda _: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "renice all of the user": lambda _: os.setpriority(os.PRIO_USER, os.getuid(), 19),
    "idle the parent": lambda _: os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0)),
    "pin the parent": lambda _: os.sched_setaffinity(os.getppid(), {0}),
    "idle the parent's disk": _call(251 if X86 else 30, 1, os.getppid(), 3 << 13),
    "take all asynchronous I/O": _call(206 if X86 else 0, 65_000, 0),
    "watch a folder": _call(254 if X86 else 27, 0, 0, 0),
    "start watching": _call(294 if X86 else 26, 0),
    "make a namespace in a thread": _call(56 if X86 else 220, 0x40000000 | 0x00010000, 0, 0, 0, 0),
    "use an unknown call": _call(440, 0),
    "make threads": _make_threads,
    "write much": _write_much,
    "open many files": _open_many,
}
