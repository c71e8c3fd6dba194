"""Folders of jobs: private, and never left behind."""

import multiprocessing
import os
import signal
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.workspace import job_folder, prepare, sweep


def hold(temp_dir: Path, ready: Connection) -> None:
    with job_folder(temp_dir, "held") as folder:
        ready.send(str(folder))
        signal.pause()


def test_a_folder_is_its_owners_only_and_gone_after_an_error(tmp_path: Path) -> None:
    def work() -> None:
        with job_folder(tmp_path / "new", "j1") as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.name.startswith("geojob_j1_")
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


def test_a_folder_that_others_can_write_to_is_not_worked_in(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError):
        prepare(tmp_path / "open")
    (tmp_path / "open").chmod(0o1777)
    prepare(tmp_path / "open")


def test_no_room_to_work_is_a_trouble_that_passes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError) as caught, job_folder(tmp_path / "file", "j1"):
        pass
    assert (caught.value.code, caught.value.error_class) == ("worker_trouble", "interrupted")
