"""Folders that no other local user can replace, reached by descriptors. Links are never followed.

Imports only the standard library, for the health check.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_DESCRIPTORS = Path("/proc/self/fd")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def prepare(folder: Path) -> None:
    """Create the folder if needed, and check that no other user can replace it or its entries.

    New folders have mode 0700, also parents: with a umask of 002 the group could replace them.

    Raises:
        OSError: it cannot be created, or another user could replace it or a parent.
    """
    for above in reversed(folder.parents):
        if not above.exists():
            above.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in {folder.absolute(), folder.resolve()}:
        for entry in (path, *path.parents[:-1]):
            _refuse_swappable(entry)
    info = folder.stat()
    if not is_trusted(info) or (info.st_mode & _WRITABLE_BY_OTHERS and not info.st_mode & stat.S_ISVTX):
        raise PermissionError(errno.EPERM, "another user owns it or can write to it: use a private folder")


def _refuse_swappable(path: Path) -> None:
    """Raise PermissionError if another user could replace `path`."""
    folder = path.parent.lstat()
    if not folder.st_mode & _WRITABLE_BY_OTHERS:
        return
    if folder.st_mode & stat.S_ISVTX:
        # In a sticky folder, owners can rename their entries, and the folder's owner any entry.
        if is_trusted(folder) and is_trusted(path.lstat()):
            return
    # The administrator controls mounted volumes, such as an emptyDir of Kubernetes.
    elif folder.st_uid == 0 and path.parent.is_mount():
        return
    raise PermissionError(errno.EPERM, f"another user could replace {path}: use a folder that only its owner can write")


def is_trusted(info: os.stat_result) -> bool:
    """Return whether this user or root owns a file or folder."""
    return info.st_uid in {0, os.geteuid()}


def opened(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """Prepare a folder, and hold it open as `held`.

    Raises:
        OSError: as `prepare`.
    """
    prepare(folder)
    return held(folder.resolve())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Open a folder, and yield a path that leads to it by the descriptor, whatever takes its name meanwhile.

    Only this process can use the path. `Path.resolve` returns the real one.

    Raises:
        OSError: it cannot be opened, is a link, or belongs to another user.
    """
    descriptor = os.open(folder, _FOLDER | os.O_NOFOLLOW)
    try:
        if not is_trusted(os.fstat(descriptor)):
            raise PermissionError(errno.EPERM, f"another user owns {folder}: remove it or set TEMP_DIR")
        yield _DESCRIPTORS / str(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str, flags: int) -> int:
    """Open a regular file only, as an opener: a hostile child may have left a link or a pipe.

    Raises:
        OSError: it cannot be opened, is not a regular file, has a second name, or its folder is a link.
    """
    file = Path(path)
    # The path of a folder held open is a link by itself.
    follow = 0 if file.parent.parent == _DESCRIPTORS else os.O_NOFOLLOW
    folder = os.open(file.parent, _FOLDER | follow)
    try:
        descriptor = os.open(file.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file with one name", path)
    return descriptor
