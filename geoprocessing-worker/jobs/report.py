"""The report of one job: its states, its copy on disk, and the consequence of each error on its way to the API.

`built → posted → uploading → sent → closed`. A failure has no results, so it skips `uploading`.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

from geoprocessing_worker.errors import (
    ApiError,
    CancelRequested,
    ErrorClass,
    JobError,
    LeaseExpired,
    LeaseLost,
    Rejected,
    TokenRefused,
    Unavailable,
)
from geoprocessing_worker.jobs import workspace
from geoprocessing_worker.outputs import OutputFile
from geoprocessing_worker.own_folder import open_regular
from geoprocessing_worker.wire.messages import Completion, Failure, UploadSlot

OUTPUTS = "outputs"
REPORT = "report.json"


class ReportState(StrEnum):
    """The states of a report."""

    BUILT = "built"  # in memory only
    POSTED = "posted"  # on disk, beside its results
    UPLOADING = "uploading"  # the body is final, some results are in storage
    SENT = "sent"  # all results are in storage, or none is left: only the call is repeated
    CLOSED = "closed"  # accepted, rejected or dropped: removed from the disk


class Verdict(StrEnum):
    """The consequence of an error during a delivery."""

    RETRY = "retry"  # no decision of the API: deliver again later
    RESEND = "resend"  # an earlier call may have been accepted: repeat it without uploads
    FAIL = "fail"  # report a failure instead
    CLOSE = "close"  # the job has ended, or another worker has it


class ReportRecord(BaseModel):
    """The content of `report.json`.

    Args:
        api: base URL of the API that leased the job.
        id: of the job.
        attempt: for the log.
        lease_token: the fencing token is in it, so the API decides whether the report still counts.
        created_at: seconds of the wall clock, for the age of the report.
        state: of the report.
        body: not changed once it was sent, since the API accepts only the same content as a repeat.
        uploads: upload slots, while the results are on disk.
        uploaded: names of the results in storage.
    """

    model_config = ConfigDict(frozen=True)

    api: str
    id: str
    attempt: int
    lease_token: SecretStr
    created_at: float
    state: ReportState = ReportState.BUILT
    body: Completion | Failure
    uploads: tuple[UploadSlot, ...] = Field((), repr=False)
    uploaded: tuple[str, ...] = ()

    @field_serializer("lease_token", when_used="json")
    def _unmasked(self, token: SecretStr) -> str:
        return token.get_secret_value()

    @property
    def lease_seconds(self) -> float:
        """A lease read from the disk is trusted only after the API has renewed it."""
        return 0.0


class JobReport:
    """The one report of a job. It is a `HeldJob` for calls without a lease, until it is too old.

    Args:
        record: its content.
        remaining: returns the seconds until it is too old.
        owned: its folder in the outbox, None before it is posted.
    """

    def __init__(
        self, record: ReportRecord, remaining: Callable[[], float], owned: workspace.OwnedFolder | None = None
    ) -> None:
        self.record = record
        self.remaining = remaining
        self._owned = owned

    @property
    def folder(self) -> Path | None:
        """Its folder in the outbox, by descriptor. None before it is posted and after its release."""
        return None if self._owned is None else self._owned.path

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.record.id

    @property
    def token(self) -> SecretStr:
        """The lease token."""
        return self.record.lease_token

    @property
    def kind(self) -> str:
        """`complete` or `fail`, as the call is named."""
        return "complete" if isinstance(self.record.body, Completion) else "fail"

    @property
    def timings(self) -> dict[str, float]:
        """Seconds per stage."""
        return self.record.body.timings if isinstance(self.record.body, Completion) else {}

    @property
    def has_uploads(self) -> bool:
        """Whether results may still have to be uploaded."""
        return self.kind == "complete" and self.record.state in {ReportState.POSTED, ReportState.UPLOADING}

    @property
    def has_results(self) -> bool:
        """Whether the results are on disk, uploaded or not."""
        return self.kind == "complete" and self.folder is not None and bool(self.record.uploads)

    def outputs(self) -> list[OutputFile]:
        """Return the results that are not in storage yet."""
        body = self.record.body
        if not isinstance(body, Completion) or not self.has_uploads or self.folder is None:
            return []
        return [
            OutputFile(path=self.folder / OUTPUTS / Path(output.name).name, **output.model_dump(exclude={"content"}))
            for output in body.outputs
            if output.name not in self.record.uploaded
        ]

    def post(self, owned: workspace.OwnedFolder, outputs: Path | None) -> None:
        """Write the report into its folder, and move its results there.

        Raises:
            OSError: the report must be discarded.
        """
        self._owned = owned
        if outputs is not None:
            outputs.rename(owned.path / OUTPUTS)
        self._advance(ReportState.POSTED)

    def mark_uploaded(self, body: Completion, names: Iterable[str]) -> None:
        """Record the final body and the names of further results in storage.

        Raises:
            OSError: the report on disk is as before.
        """
        uploaded = (*self.record.uploaded, *names)
        state = ReportState.SENT if len(uploaded) == len(body.outputs) else ReportState.UPLOADING
        self._advance(state, body=body, uploaded=uploaded)

    def forget_uploads(self) -> None:
        """Let all results be uploaded again, since storage lacks some of them.

        Raises:
            OSError: the report on disk is as before.
        """
        self._advance(ReportState.UPLOADING, uploaded=())

    def replace(self, body: Completion | Failure) -> None:
        """Set the body to send, and delete the results: nothing is left to upload.

        Raises:
            OSError: the report on disk is as before.
        """
        self._advance(ReportState.SENT, body=body, uploads=(), uploaded=())
        if self.folder is not None and (self.folder / OUTPUTS).exists():
            workspace.remove(self.folder / OUTPUTS)

    def sync(self) -> None:
        """Make the report survive a power cut."""
        if self.folder is None:
            return
        names = (OUTPUTS, REPORT, "..")
        for path in (*self.folder.glob(f"{OUTPUTS}/*"), *(self.folder / name for name in names)):
            with contextlib.suppress(OSError):  # not there, or a link or pipe of a hostile child
                _sync(path)
        os.fsync(int(self.folder.name))

    def close(self) -> None:
        """Remove the report for good."""
        self.record = self.record.model_copy(update={"state": ReportState.CLOSED})
        self.discard()

    def release(self) -> None:
        """Unlock the folder, for the next process."""
        if self._owned is not None:
            self._owned.release()
            self._owned = None

    def discard(self) -> None:
        """Remove the report from the disk."""
        if self._owned is not None:
            # Without this file the folder is no report, so a crash in between cannot leave half of one.
            (self._owned.path / REPORT).unlink(missing_ok=True)
            self._owned.remove()
            self._owned = None

    def _advance(self, state: ReportState, **changes: object) -> None:
        record = self.record.model_copy(update={"state": state, **changes})
        if self.folder is not None:
            _write(self.folder, record)
        self.record = record


def verdict(error: ApiError | CancelRequested | JobError, report: JobReport | None = None) -> Verdict:
    """Return the consequence of an error for a report, or for a job that has none yet."""
    match error:
        case LeaseExpired() | TokenRefused() | Unavailable():
            return Verdict.RETRY
        case LeaseLost(code="already_finalized") if report is not None and report.has_uploads:
            # Small results went with an earlier call, whose answer may have been lost.
            return Verdict.RESEND
        case LeaseLost():
            return Verdict.CLOSE
        case Rejected() if report is not None and report.kind == "fail":
            return Verdict.CLOSE
    return Verdict.FAIL


def as_job_error(error: ApiError | CancelRequested | JobError) -> JobError:
    """Return the failure to report for an error whose verdict is `FAIL`."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, CancelRequested):
        return JobError("job_cancelled", "The job was cancelled.", ErrorClass.CANCELLED, {"reason": error.reason})
    # A proxy may have confirmed an upload without storing it. The next attempt can succeed.
    passing = error.code in {"output_mismatch", "storage_full"}
    return JobError(
        error.code,
        f"The job server rejected the report: {error.message}",
        ErrorClass.TRANSIENT if passing else ErrorClass.INVALID_INPUT,
    )


def _write(folder: Path, record: ReportRecord) -> None:
    unfinished = folder / f"{REPORT}.part"
    with open(unfinished, "w", opener=open_regular) as file:
        file.write(record.model_dump_json(by_alias=True))
    unfinished.replace(folder / REPORT)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
