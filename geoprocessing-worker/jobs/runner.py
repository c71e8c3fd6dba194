"""One job from its claim to its report: claim → download → the handler's stages → upload → complete.

`JobRunner._work` has the stages, `JobRunner.run` the endings. Every ending becomes one report.
"""

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import httpx
import structlog

from geoprocessing_worker import host
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import (
    WORKER_TROUBLE,
    ApiError,
    CancelRequested,
    ErrorClass,
    JobError,
    Rejected,
    invalid_input,
    worker_trouble,
)
from geoprocessing_worker.handlers import InputRule, OutputFile, Payload, TaskHandler, TaskRequest, TaskResult
from geoprocessing_worker.host import Trouble
from geoprocessing_worker.jobs import readiness
from geoprocessing_worker.jobs.deadline import Deadline
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper
from geoprocessing_worker.jobs.report import JobReport, Verdict, as_job_error, verdict
from geoprocessing_worker.jobs.report_sender import Hold, ReportSender
from geoprocessing_worker.jobs.watch import Stopped, stop_when, watched
from geoprocessing_worker.jobs.workspace import job_folder
from geoprocessing_worker.own_folder import open_regular
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.plugins.registry import BoundHandler, Tasks, advised
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.wire import retry
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.download import Downloaded, download
from geoprocessing_worker.wire.messages import (
    ClaimedJob,
    Completion,
    Failure,
    JobInput,
    Progress,
    ReportedOutput,
    SourceVersion,
)
from geoprocessing_worker.wire.virus_scan import Scanner

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Ending(StrEnum):
    """The ending of a job for this worker."""

    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    GIVEN_BACK = "given_back"  # the worker's host has trouble
    LEASE_LOST = "lease_lost"
    KEPT = "kept"  # the report waits in the outbox


@dataclass(frozen=True)
class WorkerContext:
    """The settings, clients and processes that all jobs of a worker share."""

    settings: Settings
    tasks: Tasks
    api: JobApi
    sender: ReportSender
    storage: httpx.AsyncClient
    sources: httpx.AsyncClient
    sandbox: Sandbox[Call, TaskResult]
    clock: Callable[[], float] = time.monotonic
    scanner: Scanner | None = None

    async def look(self, *, thorough: bool = False) -> tuple[Trouble, ...]:
        """Return the trouble of this host that prevents jobs."""
        return await readiness.look(self.settings, self.sandbox, self.api.contact, self.scanner, thorough=thorough)


class JobRunner:
    """Runs one claimed job.

    Args:
        job: as claimed.
        context: shared with the other jobs.
        interrupt: set when the worker must give its jobs back now.
        nearly_done: called at the start of a short last stage, and again when the child has ended.
    """

    def __init__(
        self,
        job: ClaimedJob,
        context: WorkerContext,
        interrupt: asyncio.Event,
        nearly_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._context = context
        self._interrupt = interrupt
        self._nearly_done = nearly_done
        self._lease = Lease(job, context.clock)
        interval = min(job.heartbeat_seconds, context.settings.heartbeat_interval)
        self._deadline = Deadline(context.settings, job.timeout_seconds)
        self._keeper = LeaseKeeper(
            context.api, self._lease, interval=interval, clock=context.clock, on_timeout=self._deadline.change
        )
        upload_progress = self._reporter("upload")
        self._hold = Hold(self._lease, retry.REPORT, self._keeper, self._guard, job.inline_bytes, upload_progress)
        self._timings: dict[str, float] = {}
        self._stage = ""
        self._spans: Mapping[str, tuple[float, float]] = {}
        self._closing: str | None = None
        self._handler: TaskHandler | None = None
        self._begun = False
        self._outbox = context.sender.outbox
        self._report: JobReport | None = None  # posted, and neither closed nor left to the sender

    async def run(self) -> Ending:
        """Run the job and report it once. Raises only when it is cancelled itself."""
        structlog.contextvars.bind_contextvars(job_id=self._job.id, attempt=self._job.attempt)
        log.info("job_claimed", message=f"Job {self._job.id} claimed", task_type=self._job.task_type)
        try:
            return await self._run()
        finally:
            if self._report is not None:
                self._report.release()  # to the next process
            # Not sooner, since a fork delays the report.
            self._context.sandbox.fork_ahead()

    async def _run(self) -> Ending:
        started = self._context.clock()
        try:
            await self._keeper.take_up()
            self._begun = True
            report = await self._guard(self._work)
            answer = await self._context.sender.deliver(report, self._hold)
        except Stopped:
            return await self._interrupted()
        except (ApiError, CancelRequested, JobError) as error:
            return await self._ended(error)
        except Exception:
            # A bug costs the job an attempt, and the worker goes on.
            log.exception("job_crashed_the_runner")
            message = "The job met an error in this program. The error is in the worker's log."
            return await self._failed(JobError("internal_error", message, ErrorClass.INTERNAL))
        seconds = round(self._context.clock() - started, 3)
        log.info(
            "job_completed",
            message=f"Job {self._job.id} completed in {seconds} s",
            seconds=seconds,
            timings=report.timings,
            replayed=answer.replayed,
        )
        return Ending.COMPLETED

    async def _work(self) -> JobReport:
        """Make the results, and post their report."""
        job, context = self._job, self._context
        if host.clock(context.api.contact.clock_offset) is not None:
            raise worker_trouble("clock")  # only the answer to the first claim shows it
        task = self._task()
        options = task.options(job.input_payload)
        with job_folder(context.settings.temp_dir, job.id) as folder:
            outputs = folder / "outputs"
            outputs.mkdir(mode=0o700)
            file = await self._timed("download", self._download(job.input, folder)) if job.input else None
            version = _version(file) if file is not None and job.input and job.input.is_remote else None
            if file is not None and file.unchanged:
                report = self._post(self._completion([], {"unchanged": True}, version), outputs)
            else:
                real = folder.resolve()  # the child cannot use this process's descriptor
                source = None if file is None else real / file.path.name
                call = Call.of(task.handler, self._request(source, real / outputs.name, options))
                result = await context.sandbox.run(call, self._progress, task.reach(source, real / outputs.name))
                self._timings |= result.timings
                files = [_in_folder(output, outputs) for output in result.outputs]
                report = self._post(self._completion(files, result.metadata, version), outputs)
        self._nearly_done()
        self._progress("upload", 0, "Started: upload")
        return report

    def _request(self, source: Path | None, outputs: Path, options: Payload) -> TaskRequest[Payload]:
        file = self._job.input
        return TaskRequest(
            source=source,
            output_folder=outputs,
            stem=self._job.task_type if file is None else Path(file.file_name).stem,
            options=options,
            source_name="" if file is None else file.file_name,
            validate_headers=self._context.settings.validate_file_headers,
        )

    def _completion(
        self, files: list[OutputFile], metadata: dict[str, Any], source: SourceVersion | None
    ) -> Completion:
        outputs = tuple(ReportedOutput.model_validate(file.model_dump(exclude={"path"})) for file in files)
        timings = {stage: round(seconds, 4) for stage, seconds in self._timings.items()}
        return Completion(outputs=outputs, metadata=metadata, timings=timings, source=source)

    def _task(self) -> BoundHandler:
        task = self._context.tasks.usable.get(self._job.task_type)
        if task is None:
            raise invalid_input(
                "unknown_task_type", f"This worker does not have the task type {self._job.task_type!r}."
            )
        if self._job.input is None and task.handler.task_type.input is InputRule.REQUIRED:
            raise invalid_input("no_input", f"Jobs of type {self._job.task_type} need a file, and this one has none.")
        self._spans, self._closing, self._handler = task.spans, task.closing, task.handler
        return task

    async def _download(self, file: JobInput, folder: Path) -> Downloaded:
        downloaded = await download(
            file,
            folder / "source.tif",
            # Neither client has credentials. Files named by a person may come from other hosts.
            http=self._context.sources if file.is_remote else self._context.storage,
            max_bytes=self._context.settings.max_file_size,
            report=self._reporter("download"),
        )
        if self._context.scanner is not None and not downloaded.unchanged:
            await self._context.scanner.scan(downloaded.path)
        return downloaded

    # -- while the job runs -----------------------------------------------------------------------------------------

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a part of the job until it ends, its time is up, the lease is lost, or the worker stops."""
        return await watched(self._limited(work()), self._keeper.keep(), stop_when(self._interrupt))

    async def _limited(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with self._deadline:
                return await work
        except TimeoutError:
            limit = self._deadline.limit or 0.0
            raise JobError(
                "timed_out",
                f"The job took longer than its limit of {limit:g} seconds (it was at: {self._stage}).",
                ErrorClass.TIMEOUT,
                {"limit_seconds": limit, "stage": self._stage},
            ) from None

    async def _timed(self, stage: str, work: Coroutine[Any, Any, T]) -> T:
        started = self._context.clock()
        self._progress(stage, 0, f"Started: {stage}")
        result = await work
        self._timings[stage] = self._context.clock() - started
        return result

    def _reporter(self, stage: str) -> Callable[[float, str], None]:
        return lambda percent, text: self._progress(stage, percent, text)

    def _progress(self, stage: str, percent: float, text: str) -> None:
        if stage not in self._spans:
            return  # not a stage of the handler: a compromised child may send any
        if stage != self._stage:
            self._stage = stage
            log.info("stage_started", stage=stage)
            if stage == self._closing:
                self._nearly_done()
        begin, end = self._spans[stage]
        whole = round(begin + (end - begin) * min(percent, 100.0) / 100, 1)
        self._keeper.report(Progress(percent=whole, stage=stage, message=text[:500]))

    # -- the report -------------------------------------------------------------------------------------------------

    def _post(self, body: Completion, outputs: Path) -> JobReport:
        report = self._outbox.build(self._job, body, tuple(self._lease.uploads.values()))
        self._outbox.post(report, outputs)
        self._report = report
        return report

    def _failure(self, error: JobError) -> JobReport:
        """Build the report of a failure, and post it unless results are posted."""
        report = self._outbox.build(self._job, Failure.of(error))
        if self._report is None:
            with contextlib.suppress(JobError):  # no room: it is sent all the same
                self._outbox.post(report)
                self._report = report
        return report

    async def _give_back(self, error: JobError, *, parting: bool = False) -> None:
        """Report a failure, with little patience when `parting`. Posted results stay until the API has answered."""
        report = self._failure(error)
        hold = dataclasses.replace(self._hold, policy=retry.PARTING) if parting else self._hold
        try:
            await self._context.sender.deliver(report, hold)
        except (ApiError, JobError) as refusal:
            log.warning("report_not_taken", reason=str(refusal))
            if verdict(refusal, report) is Verdict.RETRY:
                await self._deliver_later()
        self._close()

    async def _deliver_later(self) -> None:
        report, self._report = self._report, None
        if report is not None:  # else no room: the lease expires without a report
            await self._context.sender.deliver_later(report)

    def _close(self) -> None:
        if self._report is not None:
            self._outbox.close(self._report)
            self._report = None

    # -- the endings ------------------------------------------------------------------------------------------------

    async def _interrupted(self) -> Ending:
        log.info("job_interrupted", message=f"Job {self._job.id} goes back: the worker is stopping")
        error = JobError("worker_shutdown", "The worker was stopped; another goes on.", ErrorClass.INTERRUPTED)
        await self._give_back(error, parting=True)
        return Ending.INTERRUPTED

    async def _ended(self, error: ApiError | CancelRequested | JobError) -> Ending:
        consequence = verdict(error)
        if consequence is Verdict.RETRY:
            return await self._unanswered(error)
        self._close()
        if consequence is Verdict.CLOSE:
            cancelled = isinstance(error, ApiError) and error.code == "job_cancelled"
            event = "job_cancelled" if cancelled else "lease_lost"
            log.warning(event, message=f"Job {self._job.id} is no longer this worker's", reason=str(error))
            return Ending.CANCELLED if cancelled else Ending.LEASE_LOST
        if isinstance(error, CancelRequested):
            log.info("job_cancelled", message=f"Job {self._job.id} was cancelled", reason=error.reason)
            await self._give_back(as_job_error(error), parting=True)
            return Ending.CANCELLED
        return await (self._failed if isinstance(error, Rejected) else self._failed_or_given_back)(as_job_error(error))

    async def _unanswered(self, error: Exception) -> Ending:
        log.warning("lease_lost", message=f"Job {self._job.id} can be kept no longer", reason=str(error))
        if not self._begun:
            return Ending.LEASE_LOST  # nothing was done yet, and the short first lease costs nothing
        # Not the fault of the job. The API counts such returns, so a job that starves its worker of heartbeats ends.
        self._failure(worker_trouble("api unreachable", instead_of="lease_expired"))
        await self._deliver_later()
        return Ending.KEPT

    async def _failed_or_given_back(self, error: JobError) -> Ending:
        """Fail a job, or give it back whatever its error while this host has trouble.

        Its folder, results and processes are gone, so trouble that persists is not caused by the job.
        """
        if error.code != WORKER_TROUBLE:
            troubles = await self._context.look(thorough=True)
            if not troubles:
                return await self._failed(advised(error, self._handler))
            error = worker_trouble(", ".join(trouble.code for trouble in troubles), instead_of=error.code)
        log.warning("job_given_back", message=f"Job {self._job.id} goes back: {error.message}", detail=error.detail)
        await self._give_back(error)
        return Ending.GIVEN_BACK

    async def _failed(self, error: JobError) -> Ending:
        log.warning(
            "job_failed",
            message=f"Job {self._job.id} failed: {error.message}",
            code=error.code,
            error_class=error.error_class,
            detail=error.detail,
        )
        self._close()
        await self._give_back(error)
        return Ending.FAILED


def _in_folder(output: OutputFile, folder: Path) -> OutputFile:
    """Return an output with its path in the job's folder: a compromised child may name any file.

    Raises:
        JobError: `crashed`: it is not a regular file there.
    """
    path = folder / output.name
    try:
        if path.parent != folder:
            raise ValueError("another folder")  # noqa: TRY301 - handled below with the others
        with open(path, "rb", opener=open_regular) as file:
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        raise JobError(
            "crashed",
            "The program that reads such files reported results that it did not make. The file may be hostile.",
            ErrorClass.INTERNAL,
            {"output": output.name},
        ) from None
    return output.model_copy(update={"path": path, "size_bytes": size})


def _version(file: Downloaded) -> SourceVersion:
    known = {} if file.unchanged else {"size_bytes": file.size_bytes, "sha256": file.sha256}
    return SourceVersion(etag=file.etag, last_modified=file.last_modified, unchanged=file.unchanged, **known)
