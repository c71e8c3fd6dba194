"""Traps for attacks: a listener that must not be called, and a file that must not be opened."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

IN_OPEN = 0x20  # from sys/inotify.h
IN_NONBLOCK = 0o4000
SECRET = "nobody-may-read-this"


@dataclass
class Canary:
    """`path` and `url` are the targets of the attack."""

    path: Path
    url: str
    _watch: int
    _calls: list[bytes] = field(default_factory=list)

    def touched(self) -> list[str]:
        """Return the accesses since the last call."""
        found = [f"called: {call!r}" for call in self._calls]
        self._calls.clear()
        try:
            events = os.read(self._watch, 65536)
        except BlockingIOError:
            return found
        size = struct.calcsize("iIII")
        return [*found, f"opened: {len(events) // size} times"]


@contextmanager
def canary(folder: Path) -> Iterator[Canary]:
    """Yield a new one, with its file in `folder`."""
    path = folder / "canary.txt"
    path.write_text(SECRET * 200)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(IN_NONBLOCK)
    if libc.inotify_add_watch(watch, str(path).encode(), IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "no watch on the canary")
    with socket.create_server(("127.0.0.1", 0)) as server:
        bird = Canary(path, f"http://127.0.0.1:{server.getsockname()[1]}/canary.tif", watch)

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(0.2)
                    try:
                        bird._calls.append(connection.recv(200))
                    except OSError:
                        bird._calls.append(b"")

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        yield bird
        server.shutdown(socket.SHUT_RDWR)
        listener.join(5)
    os.close(watch)
