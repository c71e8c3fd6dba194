"""One job from its claim to its report: claim → download → inspect → render → package → upload → complete.

Read `JobRunner._work` for the stages and `JobRunner.run` for the endings: one place turns whatever happened into one
report, sent once, last.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import httpx
import structlog

from geoprocessing_worker.client import JobApi
from geoprocessing_worker.config import Settings
from geoprocessing_worker.conversion import ConversionRequest, ConversionResult, OutputFile
from geoprocessing_worker.download import download
from geoprocessing_worker.errors import (
    ApiError,
    CancelRequested,
    ErrorClass,
    JobError,
    LeaseLost,
    Rejected,
    TokenRefused,
    Unavailable,
    refused,
)
from geoprocessing_worker.lease import Lease, LeaseKeeper
from geoprocessing_worker.models import ClaimedJob, Completion, Failure, Progress
from geoprocessing_worker.options import RenderOptions
from geoprocessing_worker.sandbox import Sandbox
from geoprocessing_worker.upload import upload
from geoprocessing_worker.workspace import job_folder

T = TypeVar("T")
log = structlog.get_logger(__name__)

TASK_TYPE = "geotiff_to_png"

# Where in the whole each stage begins and ends, in percent: about its share of the time of a 100 MB mosaic.
STAGES = {
    "download": (0.0, 25.0),
    "inspect": (25.0, 30.0),
    "render": (30.0, 75.0),
    "package": (75.0, 85.0),
    "upload": (85.0, 99.0),
}


class Ending(StrEnum):
    """How a job ended for this worker."""

    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    LEASE_LOST = "lease_lost"


@dataclass(frozen=True)
class Tools:
    """What every job is done with."""

    settings: Settings
    defaults: RenderOptions
    api: JobApi
    storage: httpx.AsyncClient
    sandbox: Sandbox[ConversionRequest, ConversionResult]
    clock: Callable[[], float] = time.monotonic


class JobRunner:
    """Does one claimed job.

    Args:
        job: as claimed.
        tools: shared with the other jobs.
        interrupt: set when the worker must give its jobs back now.
    """

    def __init__(self, job: ClaimedJob, tools: Tools, interrupt: asyncio.Event) -> None:
        self._job = job
        self._tools = tools
        self._interrupt = interrupt
        self._lease = Lease(job, tools.clock)
        interval = min(job.heartbeat_seconds, tools.settings.heartbeat_interval)
        self._keeper = LeaseKeeper(tools.api, self._lease, interval=interval, clock=tools.clock)
        self._timings: dict[str, float] = {}
        self._stage = ""

    async def run(self) -> Ending:
        """Do the job and report once; never raises but when it is cancelled itself."""
        structlog.contextvars.bind_contextvars(job_id=self._job.id, attempt=self._job.attempt)
        started = self._tools.clock()
        log.info("job_claimed", message=f"Job {self._job.id} claimed", task_type=self._job.task_type)
        try:
            await self._keeper.take_up()
            completion = await self._watched(self._limited(self._work()))
            self._keeper.finish()
            replayed = await self._kept(self._complete(completion))
        except (LeaseLost, TokenRefused, Unavailable) as error:
            return self._lost(error)
        except CancelRequested as order:
            return await self._cancelled(order)
        except _Interrupted:
            return await self._interrupted()
        except (JobError, Rejected) as error:
            return await self._failed(error if isinstance(error, JobError) else _rejected(error))
        except Exception:
            # The one place where a mistake of ours ends: it costs this job an attempt, not the worker its life.
            log.exception("job_crashed_the_runner")
            message = "The job met a mistake in this program. The mistake is in the log; the job will be tried again."
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

    async def _work(self) -> Completion:
        job, tools = self._job, self._tools
        options = self._options()
        with job_folder(tools.settings.temp_dir, job.id) as folder:
            source = await self._timed("download", self._download(folder))
            outputs = folder / "outputs"
            outputs.mkdir(mode=0o700)
            request = ConversionRequest(
                source=source,
                output_folder=outputs,
                stem=Path(job.input.file_name).stem,
                options=options,
                source_name=job.input.file_name,
            )
            result = await tools.sandbox.run(request, self._report)
            self._timings |= result.timings
            made = [_in_folder(output, outputs) for output in result.outputs]
            uploaded = await self._timed(
                "upload",
                upload(made, self._lease.uploads.get, http=tools.storage, report=self._reporter("upload")),
            )
        timings = {stage: round(seconds, 4) for stage, seconds in self._timings.items()}
        return Completion(outputs=uploaded, metadata=result.metadata, timings=timings)

    def _options(self) -> RenderOptions:
        if self._job.task_type != TASK_TYPE:
            raise refused("unknown_task_type", f"This worker does not know the task type {self._job.task_type!r}.")
        return RenderOptions.from_payload(self._job.input_payload, self._tools.defaults)

    async def _download(self, folder: Path) -> Path:
        got = await download(
            self._job.input,
            folder / "source.tif",
            http=self._tools.storage,
            max_bytes=self._tools.settings.max_file_size,
            report=self._reporter("download"),
        )
        return got.path

    async def _complete(self, completion: Completion) -> bool:
        try:
            answer = await self._tools.api.complete(self._lease, completion)
        except Rejected as error:
            raise _rejected(error) from None
        return answer.replayed

    # -- the watch over the work ------------------------------------------------------------------------------------

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` while the lease is kept, and stop it when the lease or the worker ends."""
        working = asyncio.create_task(work)
        watchers: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._keeper.keep()),
            asyncio.create_task(_raise_when(self._interrupt)),
        ]
        try:
            await asyncio.wait([working, *watchers], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            for watcher in watchers:
                if watcher.done():
                    watcher.result()
            raise AssertionError("unreachable: watchers end by raising")
        finally:
            for task in (working, *watchers):
                task.cancel()
            await asyncio.gather(working, *watchers, return_exceptions=True)

    async def _limited(self, work: Coroutine[Any, Any, T]) -> T:
        settings = self._tools.settings
        limit = min(settings.max_processing_time, self._job.timeout_seconds or settings.max_processing_time)
        try:
            async with asyncio.timeout(limit if settings.enable_job_timeouts else None):
                return await work
        except TimeoutError:
            raise JobError(
                "timed_out",
                f"The job took longer than the {limit:g} seconds it may take (it was at: {self._stage}). "
                "Try a smaller maxSize, or add overviews to the file.",
                ErrorClass.TIMEOUT,
                {"limit_seconds": limit, "stage": self._stage},
            ) from None

    async def _timed(self, stage: str, work: Coroutine[Any, Any, T]) -> T:
        started = self._tools.clock()
        self._report(stage, 0, f"Started: {stage}")
        result = await work
        self._timings[stage] = self._tools.clock() - started
        return result

    def _reporter(self, stage: str) -> Callable[[float, str], None]:
        return lambda percent, text: self._report(stage, percent, text)

    def _report(self, stage: str, percent: float, text: str) -> None:
        if stage not in STAGES:
            return  # not one of ours, so the word of a child that was taken over
        if stage != self._stage:
            self._stage = stage
            log.info("stage_started", stage=stage)
        begin, end = STAGES.get(stage, (0.0, 0.0))
        whole = round(begin + (end - begin) * min(percent, 100.0) / 100, 1)
        self._keeper.report(Progress(percent=whole, stage=stage, message=text[:500]))

    # -- the endings ------------------------------------------------------------------------------------------------

    def _lost(self, error: ApiError) -> Ending:
        event = "job_cancelled" if error.code == "job-cancelled" else "lease_lost"
        log.warning(event, message=f"Job {self._job.id} is no longer this worker's", reason=str(error))
        return Ending.CANCELLED if event == "job_cancelled" else Ending.LEASE_LOST

    async def _cancelled(self, order: CancelRequested) -> Ending:
        log.info("job_cancelled", message=f"Job {self._job.id} was cancelled", reason=order.reason)
        error = JobError("job_cancelled", "The job was cancelled.", ErrorClass.CANCELLED, {"reason": order.reason})
        await self._give_back(error, parting=True)
        return Ending.CANCELLED

    async def _interrupted(self) -> Ending:
        log.info("job_interrupted", message=f"Job {self._job.id} goes back: the worker is stopping")
        error = JobError("worker_shutdown", "The worker was stopped; another goes on.", ErrorClass.INTERRUPTED)
        await self._give_back(error, parting=True)
        return Ending.INTERRUPTED

    async def _failed(self, error: JobError) -> Ending:
        log.warning(
            "job_failed",
            message=f"Job {self._job.id} failed: {error.message}",
            code=error.code,
            error_class=error.error_class,
            detail=error.detail,
        )
        await self._give_back(error)
        return Ending.FAILED

    async def _give_back(self, error: JobError, *, parting: bool = False) -> None:
        self._keeper.finish()
        report = self._tools.api.fail(self._lease, Failure.of(error), parting=parting)
        try:
            answer = await (report if parting else self._kept(report))
        except Rejected as refusal:
            log.warning("report_not_taken", reason=str(refusal))
            if error.code != "report_rejected":
                await self._give_back(JobError("report_rejected", error.message[:200], error.error_class))
            return
        except ApiError as refusal:
            log.warning("report_not_taken", reason=str(refusal))
            return
        if answer.state == "queued" and answer.next_attempt_at is not None:
            log.info("job_retry_scheduled", next_attempt_at=answer.next_attempt_at.isoformat())

    async def _kept(self, report: Coroutine[Any, Any, T]) -> T:
        """Send a final report while the lease is kept: not even a stopping worker throws a finished result away."""
        keeping = asyncio.create_task(self._keeper.keep())
        try:
            return await report
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await keeping


def _rejected(error: Rejected) -> JobError:
    return JobError(
        error.code.replace("-", "_"), f"The job server did not take it: {error.message}", ErrorClass.INVALID_INPUT
    )


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


class _Interrupted(Exception):  # noqa: N818 - not an error
    """The worker is leaving."""


async def _raise_when(event: asyncio.Event) -> None:
    await event.wait()
    raise _Interrupted
