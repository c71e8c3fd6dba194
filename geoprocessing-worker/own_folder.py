"""Folders that no other local user can replace. Imports only the standard library, for the health check."""

import errno
import os
import stat
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


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
