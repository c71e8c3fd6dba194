"""One private folder per job, removed after the job or, after a crash, at the next start."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from geoprocessing_worker.errors import ErrorClass, JobError, worker_trouble
from geoprocessing_worker.own_folder import held, is_trusted, open_regular, opened

log = structlog.get_logger(__name__)

PREFIX = "geojob_"
# Held while the job runs. The kernel releases it when the process ends.
OWNER_LOCK = ".owner"
# Held to create or search folders, so that no search finds one that its owner has not locked yet.
SEARCH_LOCK = ".geojobs.lock"


@dataclass(frozen=True)
class OwnedFolder:
    """A folder that is held open and locked by this process. `path` leads to it by its descriptor."""

    path: Path
    _descriptors: contextlib.ExitStack

    def release(self) -> None:
        """Unlock the folder. Its path is invalid from now on."""
        self._descriptors.close()

    def remove(self) -> None:
        """Remove the folder with its content. Log a failure."""
        with self._descriptors, held(self.path / "..") as above:
            remove(above / self.path.resolve().name)


@contextlib.contextmanager
def job_folder(temp_dir: Path, job_id: str) -> Iterator[Path]:
    """Create a folder `geojob_<id>_…` (mode 0700), hold it open, and always remove it on exit.

    Raises:
        JobError: `worker_trouble`: the disk is full or `TEMP_DIR` is not writable.
    """
    try:
        with opened(temp_dir) as above, searching(above):
            folder = own(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{job_id}_", dir=above)))
    except OSError as error:
        # The job has no files yet, so it is not the cause.
        raise worker_trouble("disk", reason=error.strerror or str(error)) from error
    try:
        yield folder.path
    finally:
        folder.remove()


def no_room(error: OSError) -> JobError:
    """Return the error of a job for a full disk or an unwritable `TEMP_DIR`."""
    return JobError(
        "workspace_unavailable",
        "The worker has no room on its disk. Try again later.",
        ErrorClass.TRANSIENT,
        {"reason": error.strerror or str(error)},
    )


def sweep(temp_dir: Path) -> int:
    """Remove the folders of dead workers' jobs, and return their number."""
    # Removed without the lock, so that new folders need not wait for it.
    with opened(temp_dir) as above, searching(above):
        own_folders = [path for path in above.glob(f"{PREFIX}*") if _is_own_folder(path)]
        dead = [folder for path in own_folders if (folder := take_over(path)) is not None]
    for folder in dead:
        folder.remove()
    return len(dead)


def own(folder: Path, how: int = fcntl.LOCK_EX) -> OwnedFolder:
    """Open and lock a new folder, under `searching`."""
    with contextlib.ExitStack() as descriptors:
        path = descriptors.enter_context(held(folder))
        descriptors.callback(os.close, _lock(path / OWNER_LOCK, how))
        return OwnedFolder(path, descriptors.pop_all())


def take_over(folder: Path) -> OwnedFolder | None:
    """Open and lock a folder of a dead owner, under `searching`. Return None if the owner lives."""
    try:
        return own(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        log.warning("workspace_not_removed", folder=folder.name, reason=str(error))
        return None


def _is_own_folder(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def remove(folder: Path) -> None:
    """Remove a folder with its content. Log a failure."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.error("workspace_not_removed", folder=folder.name, reason=str(error))


@contextlib.contextmanager
def searching(temp_dir: Path) -> Iterator[None]:
    """Keep other processes from creating or taking over folders below `temp_dir`."""
    descriptor = _lock(temp_dir / SEARCH_LOCK, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, how: int) -> int:
    descriptor = open_regular(str(path), os.O_RDWR | os.O_CREAT)
    try:
        if not is_trusted(os.fstat(descriptor)):
            raise PermissionError(errno.EPERM, f"another user owns {path}: remove it or set TEMP_DIR")
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
