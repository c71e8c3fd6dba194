"""Whatever a child does, the worker continues and reports the cause. Real processes, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import Sandbox
from tests.support.child_work import ChildReply, Deed, do
from tests.support.processes import ROOT
from tests.support.waiting import until, wait_until

Box = Sandbox[Deed, ChildReply]


@pytest.fixture
def box() -> Box:
    return Sandbox(do, ChildReply, preload=("tests.support.child_work",), limits=Limits(cpu_seconds=1), confine=False)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_work_runs_in_a_child_process_that_reports_progress(box: Box) -> None:
    heard: list[tuple[str, float, str]] = []
    told = await box.run(Deed(name="well"), lambda *words: heard.append(words))
    assert told.text.split()[1] != str(os.getpid())
    assert heard == [("render", 50.0, "half way")]


async def test_each_job_gets_a_fresh_process(box: Box) -> None:
    first, second = [(await box.run(Deed(name="well"), lambda *_: None)).text for _ in range(2)]
    assert first != second


@pytest.mark.parametrize(
    ("deed", "code", "error_class"),
    [
        ("refuse", "not_a_tiff", "invalid_input"),
        ("break", "internal_error", "internal"),
        ("crash", "crashed", "internal"),
        ("kill", "out_of_memory", "resource"),
        ("memory", "out_of_memory", "resource"),
        ("burn", "timed_out", "timeout"),
        ("lie", "crashed", "internal"),
        ("flood", "crashed", "internal"),
        ("nest", "crashed", "internal"),
        ("say no letters", "crashed", "internal"),
        ("say half a letter", "crashed", "internal"),
        ("say a long number", "crashed", "internal"),
        ("say no number", "crashed", "internal"),
        ("say no object", "crashed", "internal"),
        ("interrupt", "crashed", "internal"),
    ],
)
async def test_however_a_child_ends_it_has_a_name_and_the_next_job_runs(
    box: Box, deed: str, code: str, error_class: str
) -> None:
    with pytest.raises(JobError) as caught:
        await box.run(Deed(name=deed), lambda *_: None)
    assert (caught.value.code, caught.value.error_class) == (code, error_class)
    assert (await box.run(Deed(name="well"), lambda *_: None)).text


async def test_endless_reports_of_a_child_are_cut_off_at_the_limit() -> None:
    """It would keep the worker from its heartbeats and its other jobs for as long as its job may take."""
    box = Sandbox(do, ChildReply, preload=("tests.support.child_work",), limits=Limits(lines=20_000), confine=False)
    heard: list[str] = []
    with pytest.raises(JobError, match="broke down"):
        await box.run(Deed(name="chatter"), lambda stage, *_: heard.append(stage))
    assert len(heard) == 20_000


async def test_of_a_child_one_long_line_is_read_as_its_result_must_be() -> None:
    """To parse 4 MB of brackets took the event loop a second, a quarter of a million times."""
    box = Sandbox(do, ChildReply, preload=("tests.support.child_work",), confine=False)
    heard: list[str] = []
    with pytest.raises(JobError, match="broke down"):
        await box.run(Deed(name="long reports"), lambda _stage, _percent, text: heard.append(text))
    assert heard == ["half way", "x" * 500]


async def test_a_child_inherits_no_pipe_or_socket_but_its_own(box: Box) -> None:
    told = await box.run(Deed(name="descriptors"), lambda *_: None)
    assert [lead.partition(":")[0] for lead in told.text.split()] == ["pipe"], told.text


async def test_a_cancelled_job_leaves_no_processes(box: Box, tmp_path: Path) -> None:
    running = asyncio.create_task(box.run(Deed(name="loop", path=tmp_path), lambda *_: None))
    files = [tmp_path / "child", tmp_path / "grandchild"]
    await until(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(alive(pid) for pid in pids)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_three_children_run_at_once_and_the_worker_goes_on_meanwhile(box: Box, tmp_path: Path) -> None:
    running = []
    for name in "abc":
        (tmp_path / name).mkdir()
        deed = Deed(name="loop", path=tmp_path / name)
        running.append(asyncio.create_task(box.run(deed, lambda *_: None)))
    await until(lambda: all((tmp_path / name / "child").exists() for name in "abc"))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_child_forked_ahead_does_the_next_job_and_no_other(box: Box) -> None:
    box.fork_ahead()
    (waiting,) = [spare.process.pid for spare in box._spares]
    first, second = [(await box.run(Deed(name="well"), lambda *_: None)).text for _ in range(2)]
    assert first.split()[1] == str(waiting)
    assert second != first


async def test_a_child_that_dies_while_it_waits_costs_no_job(box: Box) -> None:
    box.fork_ahead()
    (waiting,) = [spare.process.pid for spare in box._spares]
    assert waiting is not None
    os.kill(waiting, signal.SIGKILL)
    await until(lambda: not alive(waiting))
    assert (await box.run(Deed(name="well"), lambda *_: None)).text.split()[1] != str(waiting)


WAITS = """
import os, signal, sys
from geoprocessing_worker.sandbox.process import Sandbox
from tests.support.child_work import ChildReply, do
box = Sandbox(do, ChildReply, preload=("geoprocessing_worker.tasks.preload",))  # whose children ignore SIGTERM
box.fork_ahead()
print(box._spares[0].process.pid, flush=True)
if "killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["exits", "killed"])
def test_a_waiting_child_ends_with_its_worker_and_does_not_delay_it(end: str) -> None:
    command = [sys.executable, "-c", WAITS, end]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == (-signal.SIGKILL if end == "killed" else 0), ran.stderr
    wait_until(lambda: not alive(int(ran.stdout)), "the waiting child to end")


async def test_no_more_children_run_at_once_than_there_may_be(tmp_path: Path) -> None:
    box = Sandbox(do, ChildReply, preload=("tests.support.child_work",), confine=False, most=1)
    first = asyncio.create_task(box.run(Deed(name="loop", path=tmp_path), lambda *_: None))
    await until((tmp_path / "child").exists)
    second = asyncio.create_task(box.run(Deed(name="well"), lambda *_: None))
    done, _ = await asyncio.wait({second}, timeout=1)  # fifty times as long as it takes
    assert not done
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await second).text


async def test_a_signal_meant_for_the_worker_does_not_take_a_job_with_it(box: Box) -> None:
    assert (await box.run(Deed(name="term"), lambda *_: None)).text == "still here"
