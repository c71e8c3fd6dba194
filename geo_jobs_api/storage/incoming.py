"""The folder of unfinished uploads. Those of dead processes are removed at once, those of live processes stay."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import weakref
from pathlib import Path
from uuid import uuid4

_LOCK_SUFFIX = ".lock"


class Incoming:
    """One subfolder per process, beside a file that the process keeps locked.

    The kernel releases the lock when the process ends for any reason. Several processes may share the folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own = root

    @property
    def folder(self) -> Path:
        """Return the folder of this process's uploads."""
        return self._own

    def prepare(self) -> None:
        """Create the folders, or raise OSError."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        while self._own == self._root:
            self._take_place()

    def _take_place(self) -> None:
        own = self._root / uuid4().hex
        path = own.with_suffix(_LOCK_SUFFIX)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        weakref.finalize(self, os.close, lock)
        # Where files cannot be locked, no cleaner gets a lock either.
        with contextlib.suppress(OSError):
            if not _is_locked(lock) or not _is_same(lock, path):
                # A cleaner ran between the two steps.
                return
        own.mkdir(mode=0o700)
        self._own = own

    def remove_abandoned(self) -> int:
        """Remove uploads of dead processes. Return the number of files."""
        return sum(self._remove_if_dead(lock) for lock in self._root.glob(f"*{_LOCK_SUFFIX}"))

    def _remove_if_dead(self, path: Path) -> int:
        try:
            with path.open("r+") as lock:
                if not _is_locked(lock.fileno()):
                    return 0
                folder = path.with_suffix("")
                files = len(list(folder.iterdir())) if folder.is_dir() else 0
                shutil.rmtree(folder, ignore_errors=True)
                path.unlink(missing_ok=True)
                return files
        except OSError:
            # Another cleaner was faster, or files cannot be locked here.
            return 0


def _is_locked(file: int) -> bool:
    """Lock a descriptor. Return False when another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
