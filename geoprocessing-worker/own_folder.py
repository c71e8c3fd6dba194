"""Folders that no other local user can replace. Of the standard library alone, since the health check uses it too."""

import errno
import os
import stat
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def prepare(folder: Path) -> None:
    """Make sure that the folder exists and that no other user can swap it or its entries.

    New folders have mode 0700, also those above it: with a umask of 002 the group could otherwise replace them.

    Raises:
        OSError: it cannot be made, or another user could replace something on the way to it.
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
        raise PermissionError(errno.EPERM, "another user owns it or can write to it: use a folder of one's own")


def _refuse_swappable(path: Path) -> None:
    """Raise PermissionError where another user could put something else in the place of `path`."""
    folder = path.parent.lstat()
    if not folder.st_mode & _WRITABLE_BY_OTHERS:
        return
    if folder.st_mode & stat.S_ISVTX:
        # In a sticky folder the owner of an entry may rename it, and the owner of the folder any entry.
        if is_trusted(folder) and is_trusted(path.lstat()):
            return
    # A mounted volume, such as an emptyDir of Kubernetes, is for whom the administrator gave it to.
    elif folder.st_uid == 0 and path.parent.is_mount():
        return
    raise PermissionError(errno.EPERM, f"another user could replace {path}: use a folder that only its owner can write")


def is_trusted(info: os.stat_result) -> bool:
    """Return whether this user or root owns a file or folder."""
    return info.st_uid in {0, os.geteuid()}
