"""One folder per job, for its owner only, gone when the job is, and gone after a crash at the next start."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from geoprocessing_worker.errors import ErrorClass, JobError, worker_trouble
from geoprocessing_worker.own_folder import is_trusted, prepare

log = structlog.get_logger(__name__)

PREFIX = "geojob_"
# Held for as long as the folder's job runs; the system lets go of it however the process ends.
OWNER_LOCK = ".owner"
# Held while a folder is made or a search goes on, so that no search sees a folder whose owner has not locked it yet.
SEARCH_LOCK = ".geojobs.lock"


@contextlib.contextmanager
def job_folder(temp_dir: Path, job_id: str) -> Iterator[Path]:
    """A new folder `geojob_<id>_…` (mode 0700), removed on leaving, whatever happened.

    Raises:
        JobError: `worker_trouble`: the disk is full or `TEMP_DIR` cannot be written.
    """
    try:
        prepare(temp_dir)
        with searching(temp_dir):
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{job_id}_", dir=temp_dir))
            owner = own(folder)
    except OSError as error:
        # Nothing of the job is on the disk yet, so it is not the cause.
        raise worker_trouble("disk", reason=error.strerror or str(error)) from error
    try:
        yield folder
    finally:
        remove(folder)
        os.close(owner)


def no_room(error: OSError) -> JobError:
    """The disk is full or `TEMP_DIR` cannot be written, as the end of a job."""
    return JobError(
        "workspace_unavailable",
        "The worker has no room to work in at the moment.",
        ErrorClass.TRANSIENT,
        {"reason": error.strerror or str(error)},
    )


def sweep(temp_dir: Path) -> int:
    """Remove the folders of jobs whose worker is dead; those of living ones stay, also other workers'.

    Returns:
        How many were removed.
    """
    prepare(temp_dir)
    # Found under the lock, removed without it: nobody who makes a folder waits for files to be deleted.
    with searching(temp_dir):
        own_folders = [folder for folder in temp_dir.glob(f"{PREFIX}*") if _is_own_folder(folder)]
        dead = [(folder, owner) for folder in own_folders if (owner := take_over(folder)) is not None]
    for folder, owner in dead:
        remove(folder)
        os.close(owner)
    return len(dead)


def own(folder: Path) -> int:
    """The lock of a folder that was made just now, under `searching`; closing it lets go."""
    return _lock(folder / OWNER_LOCK, fcntl.LOCK_EX)


def take_over(folder: Path) -> int | None:
    """The lock of a folder whose owner is dead; to be asked under `searching`."""
    try:
        return _lock(folder / OWNER_LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None  # its owner lives
    except OSError as error:
        log.warning("workspace_not_removed", folder=folder.name, reason=str(error))
        return None


def _is_own_folder(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, and say so when that fails."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.error("workspace_not_removed", folder=folder.name, reason=str(error))


@contextlib.contextmanager
def searching(temp_dir: Path) -> Iterator[None]:
    """Keep others below `temp_dir` from making folders or taking them over."""
    descriptor = _lock(temp_dir / SEARCH_LOCK, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not is_trusted(os.fstat(descriptor)):
            raise PermissionError(errno.EPERM, f"another user owns {path}: remove it or set TEMP_DIR")
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
