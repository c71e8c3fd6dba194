"""Reports that are ready wait here, on disk, until the API has taken or refused them.

A report is written before it is sent for the first time, so that a killed worker's results are handed in by the next
process that uses the same `TEMP_DIR`. One folder holds one report:

    outbox/<job id>_…/.owner        locked by the process that sends it; the system lets go however that process ends
                      outputs/      results that are still to be uploaded
                      report.json   appears last, and whole; a folder without one is rubbish
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer

from geoprocessing_worker import own_folder
from geoprocessing_worker.jobs import workspace
from geoprocessing_worker.outputs import OutputFile
from geoprocessing_worker.wire.messages import ClaimedJob, Completion, Failure, UploadSlot

log = structlog.get_logger(__name__)

FOLDER = "outbox"
OUTPUTS = "outputs"
REPORT = "report.json"


class PendingReport(BaseModel):
    """What is to be said of a job, to whom, and with which lease.

    Args:
        api: base URL of the API that leased the job; another one would not know it.
        id: the job's.
        attempt: for the log.
        lease_token: the API decides by it whether the report still counts.
        kept_since: seconds of the wall clock; only how long a report may wait hangs on it.
        body: a completion or a failure. It is not changed once it was sent: only the same content is seen as a repeat.
        to_upload: whether the results beside it are still to be uploaded.
        uploads: the slots for them.
        uploaded: the names of those that are there already.
    """

    model_config = ConfigDict(frozen=True)

    api: str
    id: str
    attempt: int
    lease_token: SecretStr
    kept_since: float
    body: Completion | Failure
    to_upload: bool = False
    uploads: tuple[UploadSlot, ...] = Field((), repr=False)
    uploaded: tuple[str, ...] = ()

    @field_serializer("lease_token", when_used="json")
    def _bare(self, token: SecretStr) -> str:
        return token.get_secret_value()

    @property
    def kind(self) -> str:
        """`complete` or `fail`, as the call is named."""
        return "complete" if isinstance(self.body, Completion) else "fail"

    @property
    def lease_seconds(self) -> float:
        """A lease that was written down is trusted only once the API has renewed it."""
        return 0.0


@dataclass
class OutboxEntry:
    """A report in the outbox, in the hands of this process.

    Args:
        folder: where it stands.
        report: as written to `report.json`.
    """

    folder: Path
    report: PendingReport
    _owner: int

    @property
    def is_held(self) -> bool:
        """Whether it is still this process's."""
        return self._owner >= 0

    def outputs(self) -> list[OutputFile]:
        """The results that are still to be uploaded."""
        body = self.report.body
        if not isinstance(body, Completion) or not self.report.to_upload:
            return []
        return [
            OutputFile(
                name=output.name,
                path=self.folder / OUTPUTS / Path(output.name).name,
                content_type=output.content_type,
                size_bytes=output.size_bytes,
                sha256=output.sha256,
            )
            for output in body.outputs
            if output.name not in self.report.uploaded
        ]

    def rewrite(self, body: Completion | Failure) -> None:
        """Put the body that is to be sent in place of what was planned; nothing is left to be uploaded.

        Raises:
            OSError: the disk takes no more; what stood there before still does.
        """
        self.report = self.report.model_copy(update={"body": body, "to_upload": False, "uploads": (), "uploaded": ()})
        _write(self.folder, self.report)
        if (self.folder / OUTPUTS).exists():
            workspace.remove(self.folder / OUTPUTS)

    def advance(self, body: Completion, uploaded: Iterable[str]) -> None:
        """Put the body that is to be sent in place of what was planned; these results have been uploaded.

        Raises:
            OSError: as `rewrite`.
        """
        there = (*self.report.uploaded, *uploaded)
        if len(there) == len(body.outputs):
            self.rewrite(body)
            return
        self.report = self.report.model_copy(update={"body": body, "uploaded": there})
        _write(self.folder, self.report)

    def settle(self) -> None:
        """Make the entry survive a power cut."""
        for path in (*self.folder.glob(f"{OUTPUTS}/*"), self.folder / OUTPUTS, self.folder / REPORT, self.folder):
            with contextlib.suppress(FileNotFoundError):
                _sync(path)
        _sync(self.folder.parent)

    def remove(self) -> None:
        """The report was taken, or refused for good."""
        # First what makes it one: a crash in between must not leave half of it to be sent.
        (self.folder / REPORT).unlink(missing_ok=True)
        workspace.remove(self.folder)
        self.release()

    def release(self) -> None:
        """Leave it to the next process."""
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1


@dataclass
class Outbox:
    """The reports that wait below one `TEMP_DIR` for one API.

    Args:
        temp_dir: shared by workers as they like; each report has one owner.
        api: base URL of the API.
        max_age: seconds, after which a report is thrown away.
        max_reports: how many may wait in this process; of more, the oldest is thrown away.
        wall_clock: seconds since the epoch, since ages are counted across processes.
    """

    temp_dir: Path
    api: str
    max_age: float
    max_reports: int
    wall_clock: Callable[[], float] = time.time
    _waiting: list[OutboxEntry] = field(default_factory=list)

    def post(
        self,
        job: ClaimedJob,
        body: Completion | Failure,
        outputs: Path | None = None,
        uploads: tuple[UploadSlot, ...] = (),
    ) -> OutboxEntry:
        """Write a report down before it is sent; `outputs`, a folder on the same file system, moves in.

        Raises:
            OSError: there is no room, or no right to write.
        """
        report = PendingReport(
            api=self.api,
            id=job.id,
            attempt=job.attempt,
            lease_token=job.lease_token,
            kept_since=self.wall_clock(),
            body=body,
            to_upload=outputs is not None,
            uploads=uploads,
        )
        place = self.temp_dir / FOLDER
        own_folder.prepare(place)
        with workspace.searching(self.temp_dir):
            folder = Path(tempfile.mkdtemp(prefix=f"{job.id}_", dir=place))
            owner = workspace.own(folder)
        entry = OutboxEntry(folder, report, owner)
        try:
            if outputs is not None:
                outputs.rename(folder / OUTPUTS)
            _write(folder, report)
        except OSError:
            entry.remove()
            raise
        return entry

    def keep(self, entry: OutboxEntry) -> list[OutboxEntry]:
        """Let a report wait, safe from a power cut; returns those that had to make room for it."""
        entry.settle()
        self._waiting.append(entry)
        surplus = max(0, len(self._waiting) - self.max_reports)
        return sorted(self._waiting, key=lambda one: one.report.kept_since)[:surplus]

    def done(self, entry: OutboxEntry, *, reason: str | None = None) -> None:
        """Forget a report: it was taken or, with a `reason`, thrown away."""
        if entry in self._waiting:
            self._waiting.remove(entry)
        if reason is not None:
            log.warning(
                "report_dropped",
                message=f"The {entry.report.kind} report of job {entry.report.id} was thrown away",
                job_id=entry.report.id,
                attempt=entry.report.attempt,
                reason=reason,
            )
        entry.remove()

    def seconds_left(self, entry: OutboxEntry) -> float:
        """For how long a report may still wait."""
        return self.max_age - (self.wall_clock() - entry.report.kept_since)

    def take_over(self) -> list[OutboxEntry]:
        """The reports for this API whose owner is dead; they are this process's from now on."""
        place = self.temp_dir / FOLDER
        if not place.is_dir():
            return []
        with workspace.searching(self.temp_dir):
            found = [
                (folder, owner) for folder in place.iterdir() if (owner := workspace.take_over(folder)) is not None
            ]
        taken = []
        for folder, owner in found:
            report = _read(folder)
            if report is None:
                workspace.remove(folder)
                os.close(owner)
            elif report.api != self.api and self.max_age > self.wall_clock() - report.kept_since:
                os.close(owner)  # for a worker of that API
            else:
                taken.append(OutboxEntry(folder, report, owner))
        return taken

    def release(self) -> None:
        """Leave all that waits to the next process."""
        for entry in self._waiting:
            entry.release()


def _write(folder: Path, report: PendingReport) -> None:
    unfinished = folder / f"{REPORT}.part"
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(report.model_dump_json(by_alias=True))
    unfinished.replace(folder / REPORT)


def _read(folder: Path) -> PendingReport | None:
    try:
        return PendingReport.model_validate_json((folder / REPORT).read_bytes())
    except (OSError, ValidationError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
