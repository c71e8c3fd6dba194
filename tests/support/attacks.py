"""What a file that has taken over its process might try; imported by name in the child. Each tells how it went."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import rasterio

from tests.support.child_work import Deed, Report, Told

DONE = "done"


def attack(deed: Deed, report: Report) -> Told:
    try:
        ATTACKS[deed.name](deed.path)
    except (OSError, rasterio.errors.RasterioError) as error:
        return Told(text=type(error).__name__)
    return Told(text=DONE)


def _connect(kind: int) -> Callable[[Path], None]:
    def connect(port: Path) -> None:
        with socket.socket(socket.AF_INET, kind) as made:
            made.connect(("127.0.0.1", int(port.name)))
            made.send(b"here I am")

    return connect


def _connect_unix(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(str(path))


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
        # Bad arguments are answered with other errors than EPERM, by a kernel that carries the call out.
        if libc.syscall(number, *arguments) < 0 and ctypes.get_errno() in {1, 13}:
            raise PermissionError(ctypes.get_errno(), "refused")

    return call


def _open_as(driver: str) -> Callable[[Path], None]:
    def open_as(path: Path) -> None:
        with rasterio.Env(), rasterio.open(path, driver=driver) as dataset:
            dataset.read()

    return open_as


ATTACKS: dict[str, Callable[[Path], object]] = {
    "read a file": lambda path: path.read_bytes(),
    "read its environment": lambda _: Path("/proc/self/environ").read_bytes(),
    "read the parent's environment": lambda _: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "write a file": _write,
    "delete a file": lambda path: path.unlink(),
    "link a file": lambda path: Path("link").symlink_to(path),
    "connect by TCP": _connect(socket.SOCK_STREAM),
    "send by UDP": _connect(socket.SOCK_DGRAM),
    "connect to a Unix socket": _connect_unix,
    "fork": _fork,
    "start a program": lambda _: subprocess.run(["/bin/true"], check=True),
    "signal the parent": lambda _: os.kill(os.getppid(), 0),
    "signal everybody": lambda _: os.kill(-1, signal.SIGCONT),
    "open a VRT": _open_as("VRT"),
    "open a GeoTIFF": _open_as("GTiff"),
    "trace": _call(101, 0, 0, 0, 0) if os.uname().machine == "x86_64" else _call(117, 0, 0, 0, 0),
    "use io_uring": _call(425, 8, 0),
}
