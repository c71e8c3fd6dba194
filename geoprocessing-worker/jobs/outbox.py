"""The outbox: reports on disk until the API has accepted or rejected them.

A report is written before it is first sent, so the next process with the same `TEMP_DIR` delivers the results of a
killed one. Each report has one folder:

    outbox/<job id>_…/.owner        locked by the process that delivers it, until that ends
                      outputs/      results, also uploaded ones, since a proxy may have lost them
                      report.json   written last and atomically, so a folder without it is garbage
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import ValidationError

from geoprocessing_worker.jobs import workspace
from geoprocessing_worker.jobs.report import REPORT, JobReport, ReportRecord
from geoprocessing_worker.jobs.workspace import OwnedFolder
from geoprocessing_worker.own_folder import held, open_regular, opened
from geoprocessing_worker.wire.messages import ClaimedJob, Completion, Failure, UploadSlot

log = structlog.get_logger(__name__)

FOLDER = "outbox"


@dataclass
class Outbox:
    """The reports below one `TEMP_DIR` for one API.

    Args:
        temp_dir: may be shared by several workers, since each report has one owner.
        api: base URL of the API.
        max_age: seconds, after which a report is dropped.
        max_reports: limit for waiting reports of this process, beyond which the oldest is dropped.
        wall_clock: seconds since the epoch, since ages count across processes.
    """

    temp_dir: Path
    api: str
    max_age: float
    max_reports: int
    wall_clock: Callable[[], float] = time.time
    _waiting: list[JobReport] = field(default_factory=list)

    def build(self, job: ClaimedJob, body: Completion | Failure, uploads: tuple[UploadSlot, ...] = ()) -> JobReport:
        """Return a report in memory."""
        return self._report(
            ReportRecord(
                api=self.api,
                id=job.id,
                attempt=job.attempt,
                lease_token=job.lease_token,
                created_at=self.wall_clock(),
                body=body,
                uploads=uploads,
            )
        )

    def post(self, report: JobReport, outputs: Path | None = None) -> None:
        """Write a report to the disk. `outputs`, a folder on the same file system, moves to it.

        Raises:
            JobError: `workspace_unavailable`: the disk is full, or `TEMP_DIR` is not writable.
        """
        try:
            with opened(self.temp_dir) as above, workspace.searching(above), _opened(above) as outbox:
                folder = workspace.own(Path(tempfile.mkdtemp(prefix=f"{report.job_id}_", dir=outbox)))
            report.post(folder, outputs)
        except OSError as error:
            report.discard()
            raise workspace.no_room(error) from error

    def add(self, report: JobReport) -> list[JobReport]:
        """Let a report wait, safe from a power cut. Return the reports beyond `max_reports`, oldest first."""
        report.sync()
        self._waiting.append(report)
        surplus = max(0, len(self._waiting) - self.max_reports)
        return sorted(self._waiting, key=lambda one: one.record.created_at)[:surplus]

    def close(self, report: JobReport, *, dropped: str | None = None) -> None:
        """Remove a report: the API has decided or, with a reason, it is dropped."""
        if report in self._waiting:
            self._waiting.remove(report)
        if dropped is not None:
            log.warning(
                "report_dropped",
                message=f"The {report.kind} report of job {report.job_id} was dropped",
                job_id=report.job_id,
                attempt=report.record.attempt,
                reason=dropped,
            )
        report.close()

    def take_over(self) -> list[JobReport]:
        """Lock and return the reports for this API that a dead process has left."""
        if not (self.temp_dir / FOLDER).is_dir():
            return []
        with opened(self.temp_dir) as above, workspace.searching(above), _opened(above) as outbox:
            orphans = [folder for path in outbox.iterdir() if (folder := workspace.take_over(path)) is not None]
        reports = []
        for folder in orphans:
            record = _read(folder.path)
            if record is None:
                folder.remove()
                continue
            report = self._report(record, folder)
            if record.api != self.api and report.remaining() > 0:
                report.release()  # for a worker of that API
            else:
                reports.append(report)
        return reports

    def release(self) -> None:
        """Leave all waiting reports to the next process."""
        for report in self._waiting:
            report.release()

    def _report(self, record: ReportRecord, owned: OwnedFolder | None = None) -> JobReport:
        return JobReport(record, lambda: self.max_age - (self.wall_clock() - record.created_at), owned)


def _opened(temp_dir: Path) -> AbstractContextManager[Path]:
    (temp_dir / FOLDER).mkdir(mode=0o700, exist_ok=True)
    return held(temp_dir / FOLDER)


def _read(folder: Path) -> ReportRecord | None:
    try:
        with open(folder / REPORT, "rb", opener=open_regular) as file:
            return ReportRecord.model_validate_json(file.read())
    except (OSError, ValidationError):
        return None
