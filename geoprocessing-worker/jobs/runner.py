"""One job from its claim to its report: claim → download → the handler's own stages → upload → complete.

Read `JobRunner._work` for the stages and `JobRunner.run` for the endings: one place turns whatever happened into one
report, sent once, last.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

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
    LeaseExpired,
    LeaseLost,
    Rejected,
    TokenRefused,
    Unavailable,
    invalid_input,
    worker_trouble,
)
from geoprocessing_worker.handlers import InputRule, OutputFile, Payload, TaskHandler, TaskRequest, TaskResult
from geoprocessing_worker.host import Trouble
from geoprocessing_worker.jobs import readiness
from geoprocessing_worker.jobs.deadline import Deadline
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper, watched
from geoprocessing_worker.jobs.report import JobReport
from geoprocessing_worker.jobs.report_sender import ReportSender, cancelled, rejected
from geoprocessing_worker.jobs.workspace import job_folder
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.plugins.registry import BoundHandler, Tasks, advised
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.download import Downloaded, download
from geoprocessing_worker.wire.messages import ClaimedJob, Completion, JobInput, Progress, ReportedOutput, SourceVersion
from geoprocessing_worker.wire.virus_scan import Scanner

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Ending(StrEnum):
    """How a job ended for this worker."""

    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    GIVEN_BACK = "given_back"  # the worker's host has trouble
    LEASE_LOST = "lease_lost"
    KEPT = "kept"  # what there is to say of it waits in the outbox


@dataclass(frozen=True)
class WorkerContext:
    """What every job is done with."""

    settings: Settings
    tasks: Tasks
    api: JobApi
    courier: ReportSender
    storage: httpx.AsyncClient
    sources: httpx.AsyncClient
    sandbox: Sandbox[Call, TaskResult]
    clock: Callable[[], float] = time.monotonic
    scanner: Scanner | None = None

    async def look(self, *, thorough: bool = False) -> tuple[Trouble, ...]:
        """The trouble of this host that keeps jobs from being done."""
        return await readiness.look(self.settings, self.sandbox, self.api.contact, self.scanner, thorough=thorough)


class JobRunner:
    """Does one claimed job.

    Args:
        job: as claimed.
        tools: shared with the other jobs.
        interrupt: set when the worker must give its jobs back now.
        nearly_done: told when the job will soon need no process, and when it needs none: its results are handed in.
    """

    def __init__(
        self,
        job: ClaimedJob,
        tools: WorkerContext,
        interrupt: asyncio.Event,
        nearly_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._tools = tools
        self._interrupt = interrupt
        self._nearly_done = nearly_done
        self._lease = Lease(job, tools.clock)
        interval = min(job.heartbeat_seconds, tools.settings.heartbeat_interval)
        self._keeper = LeaseKeeper(
            tools.api, self._lease, interval=interval, clock=tools.clock, timeout_told=self._set_timeout
        )
        self._deadline = Deadline(tools.settings, job.timeout_seconds)
        self._timings: dict[str, float] = {}
        self._stage = ""
        self._spans: Mapping[str, tuple[float, float]] = {}
        self._closing: str | None = None
        self._handler: TaskHandler | None = None
        self._begun = False
        self._final = JobReport(job, self._lease, self._keeper, tools.courier)

    async def run(self) -> Ending:
        """Do the job and report once; never raises but when it is cancelled itself."""
        structlog.contextvars.bind_contextvars(job_id=self._job.id, attempt=self._job.attempt)
        log.info("job_claimed", message=f"Job {self._job.id} claimed", task_type=self._job.task_type)
        try:
            return await self._to_its_end()
        finally:
            self._final.release()

    async def _to_its_end(self) -> Ending:
        started = self._tools.clock()
        try:
            await self._keeper.take_up()
            self._begun = True
            await watched(self._limited(self._work()), self._keeper.keep(), _raise_when(self._interrupt))
            replayed = await self._final.complete()
        except (LeaseExpired, TokenRefused, Unavailable) as error:
            return await self._unheard(error)
        except LeaseLost as error:
            return self._lost(error)
        except (CancelRequested, _Interrupted) as order:
            return await (self._cancelled(order) if isinstance(order, CancelRequested) else self._interrupted())
        except (JobError, Rejected) as error:
            return await self._ended_badly(error)
        except Exception:
            # The one place where a mistake of ours ends: it costs this job an attempt, not the worker its life.
            log.exception("job_crashed_the_runner")
            message = "The job met a mistake in this program. The mistake is in the worker's log."
            return await self._failed(JobError("internal_error", message, ErrorClass.INTERNAL))
        seconds = round(self._tools.clock() - started, 3)
        log.info(
            "job_completed",
            message=f"Job {self._job.id} completed in {seconds} s",
            seconds=seconds,
            timings=self._timings,
            replayed=replayed,
        )
        return Ending.COMPLETED

    async def _work(self) -> None:
        """Everything but the last call: the results are uploaded, and the report is written down."""
        job, tools = self._job, self._tools
        if host.clock(tools.api.contact.clock_offset) is not None:
            raise worker_trouble("clock")  # only the answer to the first claim shows it
        task = self._task()
        options = task.options(job.input_payload)
        with job_folder(tools.settings.temp_dir, job.id) as folder:
            outputs = folder / "outputs"
            outputs.mkdir(mode=0o700)
            got = await self._timed("download", self._download(job.input, folder)) if job.input else None
            version = _version(got) if got is not None and job.input and job.input.is_remote else None
            if got is not None and got.unchanged:
                self._final.post(self._planned([], {"unchanged": True}, version), outputs)
            else:
                source = None if got is None else got.path
                call = Call.of(task.handler, self._request(source, outputs, options))
                result = await tools.sandbox.run(call, self._report, task.reach(source, outputs))
                self._timings |= result.timings
                made = [_in_folder(output, outputs) for output in result.outputs]
                self._final.post(self._planned(made, result.metadata, version), outputs)
        self._nearly_done()
        self._report("upload", 0, "Started: upload")
        self._timings = await self._final.upload(self._reporter("upload"))

    def _request(self, source: Path | None, outputs: Path, options: Payload) -> TaskRequest[Payload]:
        named = self._job.input
        return TaskRequest(
            source=source,
            output_folder=outputs,
            stem=self._job.task_type if named is None else Path(named.file_name).stem,
            options=options,
            source_name="" if named is None else named.file_name,
            validate_headers=self._tools.settings.validate_file_headers,
        )

    def _planned(self, made: list[OutputFile], metadata: dict[str, Any], source: SourceVersion | None) -> Completion:
        told = tuple(ReportedOutput.model_validate(output.model_dump(exclude={"path"})) for output in made)
        timings = {stage: round(seconds, 4) for stage, seconds in self._timings.items()}
        return Completion(outputs=told, metadata=metadata, timings=timings, source=source)

    def _task(self) -> BoundHandler:
        task = self._tools.tasks.usable.get(self._job.task_type)
        if task is None:
            raise invalid_input(
                "unknown_task_type", f"This worker does not know the task type {self._job.task_type!r}."
            )
        if self._job.input is None and task.handler.task_type.input is InputRule.REQUIRED:
            raise invalid_input("no_input", f"Jobs of type {self._job.task_type} need a file, and this one has none.")
        self._spans, self._closing, self._handler = task.spans, task.closing, task.handler
        return task

    async def _download(self, wanted: JobInput, folder: Path) -> Downloaded:
        got = await download(
            wanted,
            folder / "source.tif",
            # Neither has credentials to give away; where a person said to look, other hosts are allowed.
            http=self._tools.sources if wanted.is_remote else self._tools.storage,
            max_bytes=self._tools.settings.max_file_size,
            report=self._reporter("download"),
        )
        if self._tools.scanner is not None and not got.unchanged:
            await self._tools.scanner.scan(got.path)
        return got

    # -- the watch over the work ------------------------------------------------------------------------------------

    async def _limited(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with self._deadline:
                return await work
        except TimeoutError:
            limit = self._deadline.limit or 0.0
            raise JobError(
                "timed_out",
                f"The job took longer than the {limit:g} seconds it may take (it was at: {self._stage}).",
                ErrorClass.TIMEOUT,
                {"limit_seconds": limit, "stage": self._stage},
            ) from None

    def _set_timeout(self, seconds: float | None) -> None:
        self._deadline.change(seconds)

    async def _timed(self, stage: str, work: Coroutine[Any, Any, T]) -> T:
        started = self._tools.clock()
        self._report(stage, 0, f"Started: {stage}")
        result = await work
        self._timings[stage] = self._tools.clock() - started
        return result

    def _reporter(self, stage: str) -> Callable[[float, str], None]:
        return lambda percent, text: self._report(stage, percent, text)

    def _report(self, stage: str, percent: float, text: str) -> None:
        if stage not in self._spans:
            return  # not one of the handler's, so perhaps the word of a child that was taken over
        if stage != self._stage:
            self._stage = stage
            log.info("stage_started", stage=stage)
            if stage == self._closing:
                self._nearly_done()
        begin, end = self._spans[stage]
        whole = round(begin + (end - begin) * min(percent, 100.0) / 100, 1)
        self._keeper.report(Progress(percent=whole, stage=stage, message=text[:500]))

    # -- the endings ------------------------------------------------------------------------------------------------

    def _lost(self, error: ApiError) -> Ending:
        self._final.forget()
        event = "job_cancelled" if error.code == "job_cancelled" else "lease_lost"
        log.warning(event, message=f"Job {self._job.id} is no longer this worker's", reason=str(error))
        return Ending.CANCELLED if event == "job_cancelled" else Ending.LEASE_LOST

    async def _unheard(self, error: ApiError) -> Ending:
        log.warning("lease_lost", message=f"Job {self._job.id} can be kept no longer", reason=str(error))
        if not self._begun:
            return Ending.LEASE_LOST  # nothing was done yet, and the short first lease costs nothing
        message = "The job server could not be reached while the worker worked on the file."
        await self._final.keep(JobError("lease_expired", message, ErrorClass.INTERRUPTED))
        return Ending.KEPT

    async def _cancelled(self, order: CancelRequested) -> Ending:
        log.info("job_cancelled", message=f"Job {self._job.id} was cancelled", reason=order.reason)
        self._final.forget()
        await self._final.give_back(cancelled(order), parting=True)
        return Ending.CANCELLED

    async def _interrupted(self) -> Ending:
        log.info("job_interrupted", message=f"Job {self._job.id} goes back: the worker is stopping")
        error = JobError("worker_shutdown", "The worker was stopped; another goes on.", ErrorClass.INTERRUPTED)
        # Results that are ready are kept until the API has heard that they will not come.
        await self._final.give_back(error, parting=True)
        return Ending.INTERRUPTED

    async def _ended_badly(self, error: JobError | Rejected) -> Ending:
        """A job that failed while this host has trouble goes back, whatever it seems to have failed of.

        Its folder, its results and its processes are gone by now. Trouble that is still there is not the job's doing.
        """
        if isinstance(error, Rejected):
            return await self._failed(rejected(error))
        self._final.forget()
        if error.code != WORKER_TROUBLE:
            found = await self._tools.look(thorough=True)
            if not found:
                return await self._failed(advised(error, self._handler))
            error = worker_trouble(", ".join(trouble.code for trouble in found), instead_of=error.code)
        log.warning(
            "job_given_back",
            message=f"Job {self._job.id} goes back: {error.message}",
            detail=error.detail,
        )
        await self._final.give_back(error)
        return Ending.GIVEN_BACK

    async def _failed(self, error: JobError) -> Ending:
        log.warning(
            "job_failed",
            message=f"Job {self._job.id} failed: {error.message}",
            code=error.code,
            error_class=error.error_class,
            detail=error.detail,
        )
        self._final.forget()
        await self._final.give_back(error)
        return Ending.FAILED


def _in_folder(output: OutputFile, folder: Path) -> OutputFile:
    """An output as the child told of it, but of the job's own folder: a child that was taken over may name any file."""
    path = folder / output.name
    if path.parent != folder or path.is_symlink() or not path.is_file():
        raise JobError(
            "crashed",
            "The program that reads such files told of results that it did not make. The file may be hostile.",
            ErrorClass.INTERNAL,
            {"output": output.name},
        )
    return output.model_copy(update={"path": path, "size_bytes": path.stat().st_size})


def _version(got: Downloaded) -> SourceVersion:
    known = {} if got.unchanged else {"size_bytes": got.size_bytes, "sha256": got.sha256}
    return SourceVersion(etag=got.etag, last_modified=got.last_modified, unchanged=got.unchanged, **known)


class _Interrupted(Exception):  # noqa: N818 - not an error
    """The worker is leaving."""


async def _raise_when(event: asyncio.Event) -> NoReturn:
    await event.wait()
    raise _Interrupted
