"""Two ways of the conformance kit to queue a job: the API's public endpoints, or a command of the server's author."""

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

TASK_TYPE = "geotiff_to_png"
FILE_NAME = "map.tif"
TIFF = b"II*\0" + bytes(range(100))
# Seconds for one run of a command.
COMMAND_PATIENCE = 60.0


class NotPossible(Exception):  # noqa: N818 - not an error
    """This way of making jobs lacks the call."""


class MakingFailed(Exception):  # noqa: N818 - not the server's error
    """A job could not be queued or cancelled. The message has the answer."""


class Maker(Protocol):
    """The calls beyond the five endpoints that the kit can make."""

    def make(self) -> str:
        """Queue a job of `TASK_TYPE` with the file `TIFF` and an empty payload. Return its id."""

    def cancel(self, job_id: str, reason: str) -> None:
        """Request the cancellation of a job. Raise `NotPossible` if this maker has no such call."""

    def results(self, job_id: str) -> dict[str, str]:
        """Return the download URL of each published result by name. Raise `NotPossible` like `cancel`."""


@dataclass(frozen=True)
class PublicEndpoints:
    """The public endpoints of README, with a caller's token."""

    http: httpx.Client

    def make(self) -> str:
        """Create a job and upload its file."""
        made = _answer(self.http.post("/api/geo-jobs", json={"taskType": TASK_TYPE, "inputPayload": {}}))
        job_id = str(made["id"])
        body = {"fileName": FILE_NAME, "fileSize": len(TIFF), "fileType": "image/tiff"}
        target = _answer(self.http.post(f"/api/geo-jobs/{job_id}/upload", json=body))
        put = httpx.put(str(target["uploadUrl"]), content=TIFF, timeout=60)
        if not put.is_success:
            raise MakingFailed(f"the upload of a file was answered with {put.status_code}")
        return job_id

    def cancel(self, job_id: str, reason: str) -> None:
        """POST …/cancel."""
        _answer(self.http.post(f"/api/geo-jobs/{job_id}/cancel", json={"reason": reason}))

    def results(self, job_id: str) -> dict[str, str]:
        """GET …/download/output."""
        outputs = self.http.get(f"/api/geo-jobs/{job_id}/download/output").raise_for_status().json()["outputs"]
        return {output["name"]: output["url"] for output in outputs}


@dataclass(frozen=True)
class Commands:
    """Shell commands of the server's author. They get the job in variables that begin with CONFORMANCE_.

    Args:
        make_job: queues one job and prints its id as its last line.
        cancel_job: cancels the job CONFORMANCE_JOB_ID. Empty if there is no such command.
        file: the path of `TIFF`, named `FILE_NAME`.
    """

    make_job: str
    file: Path
    cancel_job: str = ""

    def make(self) -> str:
        """Run the command that makes a job."""
        variables = {
            "CONFORMANCE_TASK_TYPE": TASK_TYPE,
            "CONFORMANCE_PAYLOAD": json.dumps({}),
            "CONFORMANCE_FILE": str(self.file),
        }
        lines = _run(self.make_job, variables).split()
        if not lines:
            raise MakingFailed(f"--make-job printed no id: {self.make_job}")
        return lines[-1]

    def cancel(self, job_id: str, reason: str) -> None:
        """Run the command that cancels a job, if there is one."""
        if not self.cancel_job:
            raise NotPossible("cancelling needs --cancel-job or --jwt")
        _run(self.cancel_job, {"CONFORMANCE_JOB_ID": job_id, "CONFORMANCE_REASON": reason})

    def results(self, job_id: str) -> dict[str, str]:
        """Raise `NotPossible`, since no command shows results."""
        raise NotPossible("reading published results needs --jwt")


@contextmanager
def commands(make_job: str, cancel_job: str = "") -> Iterator[Commands]:
    """Yield commands, with their file on disk."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE_NAME)
        file.write_bytes(TIFF)
        yield Commands(make_job, file, cancel_job)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT and SIGTERM to the end of the block, so that each made job has a known id."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda came, _frame: held.append(came))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            raise KeyboardInterrupt


def _run(command: str, variables: dict[str, str]) -> str:
    try:
        ran = subprocess.run(
            ["sh", "-c", command],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=COMMAND_PATIENCE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C stops the kit only.
        )
    except subprocess.TimeoutExpired:
        raise MakingFailed(f"it did not end within {COMMAND_PATIENCE:g} s: {command}") from None
    if ran.returncode != 0:
        raise MakingFailed(f"exit code {ran.returncode} of {command}: {ran.stderr.strip()[-500:]}")
    return ran.stdout


def _answer(answer: httpx.Response) -> dict[str, object]:
    if answer.status_code not in (200, 201):
        raise MakingFailed(f"{answer.request.url.path} was answered with {answer.status_code}")
    body: dict[str, object] = answer.json()
    return body
