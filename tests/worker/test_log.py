"""worker.log: greppable, structured, and without secrets."""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from geoprocessing_worker import log


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    logging.raiseExceptions = True
    structlog.reset_defaults()


def configured(folder: Path) -> Path:
    log.configure("INFO", folder / "worker.log", secrets=["s3cret-token"])
    return folder / "worker.log"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_has_an_event_for_programs_a_message_for_people_and_what_is_bound(tmp_path: Path) -> None:
    file = configured(tmp_path)
    with structlog.contextvars.bound_contextvars(job_id="j1", attempt=2):
        structlog.get_logger().info("job_completed", message="Job j1 completed in 3 s", seconds=3)
    (record,) = records(file)
    assert record.pop("timestamp")
    assert record == {
        "level": "INFO",
        "event": "job_completed",
        "message": "Job j1 completed in 3 s",
        "seconds": 3,
        "job_id": "j1",
        "attempt": 2,
    }


def test_grep_finds_errors_and_completed_jobs_and_nothing_else(tmp_path: Path) -> None:
    file = configured(tmp_path)
    logger = structlog.get_logger()
    logger.info("job_claimed", message="Job j1 claimed")
    logger.info("stage_started", stage="render")
    logger.info("job_completed", message="Job j1 completed in 3 s")
    logger.error("token_refused")
    logger.warning("job_failed", message="Job j2 failed: no")
    lines = file.read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines if "ERROR" in line] == ["token_refused"]
    assert len([line for line in lines if "Job" in line and "completed" in line.split("Job", 1)[1]]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "PUT https://host/file?expires=1&signature=abcdef failed",
        "Authorization: Worker abcdefghijkl",
        "sent s3cret-token away",
    ],
)
def test_no_signature_credential_or_known_secret_is_ever_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = configured(tmp_path)
    structlog.get_logger().warning("trouble", reason=text, nested={"deep": [text]})
    logging.getLogger("library").warning("%s", text)
    try:
        raise ValueError(text)  # noqa: TRY301 - its traceback is what is tested
    except ValueError:
        structlog.get_logger().exception("bug")
    for written in (file.read_text(), capsys.readouterr().err):
        assert "trouble" in written.lower()
        for secret in ("abcdef", "s3cret-token", "signature="):
            assert secret not in written


def test_a_log_that_cannot_be_written_does_not_stop_the_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("INFO", tmp_path / "missing" / "worker.log")
    structlog.get_logger().info("worker_started", message="Worker started")
    assert "cannot be written" in (said := capsys.readouterr().err)
    assert "Worker started" in said


WRITER = """
import sys
from pathlib import Path
import structlog
from geoprocessing_worker import log
log.FILE_BYTES, log.FILES_KEPT = 20_000, 100
log.configure("INFO", Path(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
for number in range(1000):
    structlog.get_logger().info("written", writer=sys.argv[2], number=number)
"""


def test_several_processes_share_one_rotating_log_and_lose_no_record(tmp_path: Path) -> None:
    """Three writers rotate one file many times: each record is in exactly one file, whole, and no file grows on."""
    path = tmp_path / "worker.log"
    command = [sys.executable, "-c", WRITER, str(path)]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL))
            for name in "abc"
        ]
        assert [writer.stdout.readline() for writer in writers if writer.stdout] == [b"\n"] * 3
        for writer in writers:  # all at once
            assert writer.stdin
            writer.stdin.close()
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = list(tmp_path.glob("worker.log*"))
    written = [(record["writer"], record["number"]) for file in files for record in records(file)]
    assert sorted(written) == [(name, number) for name in "abc" for number in range(1000)]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 21_000
    assert len(files) <= sum(sizes) / 18_000 + 1


def test_a_log_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As logrotate does it: later records go to a new file at the same path."""
    path = configured(tmp_path)
    structlog.get_logger().info("first")
    path.rename(tmp_path / "worker.log.old")
    structlog.get_logger().info("second")
    assert [record["event"] for record in records(path)] == ["second"]
