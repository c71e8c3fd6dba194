"""Folders of jobs: private, and never left behind."""

import multiprocessing
import os
import signal
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from geo_jobs_api.config import ensure_secrets
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.jobs.workspace import job_folder, sweep
from geoprocessing_worker.own_folder import prepare


def hold(temp_dir: Path, ready: Connection) -> None:
    with job_folder(temp_dir, "held") as folder:
        ready.send(str(folder.resolve()))
        signal.pause()


def test_a_folder_is_its_owners_only_and_gone_after_an_error(tmp_path: Path) -> None:
    def work() -> None:
        with job_folder(tmp_path / "new", "j1") as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.resolve().name.startswith("geojob_j1_")
            (folder / "deep").mkdir()
            (folder / "deep" / "file").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert list((tmp_path / "new").glob("geojob_*")) == []


def test_sweeping_removes_the_folders_of_the_dead_and_leaves_those_of_the_living(tmp_path: Path) -> None:
    here, there = multiprocessing.get_context("spawn").Pipe()
    other = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, there))
    other.start()
    folder = Path(here.recv())
    assert sweep(tmp_path) == 0
    assert folder.exists()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert sweep(tmp_path) == 1
    assert not folder.exists()


def folder(path: Path, mode: int, owner: int = 0) -> Path:
    path.mkdir()
    os.chown(path, owner or os.geteuid(), -1)
    path.chmod(mode)
    return path


def test_a_folder_that_others_can_write_to_is_not_worked_in(tmp_path: Path) -> None:
    """Neither itself nor a folder above it, unless it is sticky: there only owners may rename."""
    with pytest.raises(PermissionError, match="another user"):
        prepare(folder(tmp_path / "open", 0o777))
    with pytest.raises(PermissionError, match="another user could replace"):
        prepare(tmp_path / "open" / "mine")
    prepare(folder(tmp_path / "sticky", 0o1777))
    prepare(tmp_path / "sticky" / "mine")


def test_folders_above_a_new_one_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Else a first start with a umask of 002 would leave a folder that every later start refuses."""
    before = os.umask(0o002)
    try:
        ensure_secrets(tmp_path / "stack" / "state" / "data")
        prepare(tmp_path / "stack" / "state" / "jobs")
        prepare(tmp_path / "home" / "state" / "jobs")
    finally:
        os.umask(before)
    prepare(tmp_path / "home" / "state" / "jobs")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give folders away")
def test_a_folder_of_another_user_is_not_worked_in_even_if_it_is_sticky(tmp_path: Path) -> None:
    """Its owner could rename the folders of jobs. The same holds for a folder or link above it in a sticky one."""
    common = folder(tmp_path / "common", 0o1777)
    with pytest.raises(PermissionError, match="another user owns it"):
        prepare(folder(tmp_path / "sticky", 0o1777, owner=65534))
    with pytest.raises(PermissionError, match="another user could replace"):
        prepare(folder(common / "private", 0o700, owner=65534) / "jobs")
    mine = folder(tmp_path / "mine", 0o700)
    (common / "link").symlink_to(mine)
    os.chown(common / "link", 65534, -1, follow_symlinks=False)
    with pytest.raises(PermissionError, match="another user could replace"):
        prepare(common / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give folders away")
def test_nothing_that_another_user_put_into_a_common_folder_is_used(tmp_path: Path) -> None:
    """Neither a folder or link with the name of a job's, nor a lock, which its owner could hold for ever."""
    common = folder(tmp_path / "common", 0o1777)
    folder(common / "geojob_theirs", 0o777, owner=65534)
    mine = folder(tmp_path / "mine", 0o700)
    (common / "geojob_link").symlink_to(mine)
    assert sweep(common) == 0
    assert list(mine.iterdir()) == list((common / "geojob_theirs").iterdir()) == []
    os.chown(common / ".geojobs.lock", 65534, -1)
    with pytest.raises(PermissionError, match="another user owns"):
        sweep(common)


def test_no_room_to_work_is_a_trouble_that_passes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError) as caught, job_folder(tmp_path / "file", "j1"):
        pass
    assert (caught.value.code, caught.value.error_class) == ("worker_trouble", "interrupted")
