"""Delivery of reports: upload the results, then make the one call that ends the job."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import structlog

from geoprocessing_worker.errors import ApiError, CancelRequested, JobError, Rejected, Unavailable
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper
from geoprocessing_worker.jobs.outbox import Outbox
from geoprocessing_worker.jobs.report import JobReport, ReportState, Verdict, as_job_error, verdict
from geoprocessing_worker.jobs.watch import watched
from geoprocessing_worker.jobs.workspace import no_room
from geoprocessing_worker.outputs import OutputFile
from geoprocessing_worker.wire import inline, retry
from geoprocessing_worker.wire.client import HeldJob, JobApi
from geoprocessing_worker.wire.messages import CompleteAnswer, Completion, FailAnswer, Failure
from geoprocessing_worker.wire.transfer import MAX_MISMATCHES
from geoprocessing_worker.wire.upload import fitting_slot, upload

log = structlog.get_logger(__name__)

# Seconds between heartbeats while results from the outbox are uploaded.
HEARTBEAT_SECONDS = 10.0
# Concurrent uploads from the outbox. They share the link with the running jobs.
MAX_UPLOADS = 2
REPORT_REJECTED = "report_rejected"

Upload = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Hold:
    """The hold on a job during a delivery: a kept lease at once, a regained one from the outbox.

    Args:
        job: limits the time for the final call.
        policy: of the final call.
        keeper: of the lease.
        guard: runs the upload, and stops it when the job is lost.
        inline_bytes: results of this size in all may go with the final call.
        progress: receives percent and a sentence.
    """

    job: HeldJob
    policy: retry.Policy
    keeper: LeaseKeeper
    guard: Callable[[Upload], Awaitable[None]]
    inline_bytes: int = 0
    progress: Callable[[float, str], None] = lambda _percent, _text: None


class ReportSender:
    """Delivers reports, at once for running jobs and later from the outbox.

    Args:
        outbox: where reports wait.
        api: receives the reports.
        storage: a client without the API's credentials.
        clock: monotonic seconds.
    """

    def __init__(
        self, outbox: Outbox, api: JobApi, storage: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.outbox = outbox
        self._api = api
        self._storage = storage
        self._clock = clock
        self._gate = asyncio.Semaphore(MAX_UPLOADS)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Deliver the reports of dead processes."""
        for report in await asyncio.to_thread(self.outbox.take_over):
            await self.deliver_later(report)

    async def stop(self) -> None:
        """Leave the waiting reports to the next process."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.outbox.release()

    async def deliver(self, report: JobReport, hold: Hold) -> CompleteAnswer | FailAnswer:
        """Upload the results of a report, send it, and close it.

        Raises:
            ApiError, CancelRequested, JobError: `verdict` returns the consequence.
        """
        try:
            small = await self._upload(report, hold, hold.inline_bytes)
            for _ in range(MAX_MISMATCHES - 1):
                try:
                    answer = await hold.keeper.during(self._send(report, hold, small))
                    break
                except Rejected as refusal:
                    await self._correct(report, hold, small, refusal)
                    small = []
            else:
                answer = await hold.keeper.during(self._send(report, hold))
        except OSError as error:
            raise no_room(error) from error
        self.outbox.close(report)
        return answer

    async def deliver_later(self, report: JobReport) -> None:
        """Deliver a posted report in the background, as soon as the API answers."""
        log.warning(
            "report_kept",
            message=f"The {report.kind} report of job {report.job_id} waits in the outbox for the API",
            job_id=report.job_id,
            attempt=report.record.attempt,
            results_to_upload=len(report.outputs()),
        )
        for surplus in await asyncio.to_thread(self.outbox.add, report):
            if (task := self._tasks.pop(id(surplus), None)) is not None:
                task.cancel()
            self.outbox.close(surplus, dropped="more reports wait than OUTBOX_MAX_REPORTS")
        if report.record.state is not ReportState.CLOSED:
            task = asyncio.create_task(self._deliver_or_drop(report))
            self._tasks[id(report)] = task
            task.add_done_callback(lambda _: self._tasks.pop(id(report), None))

    async def _upload(self, report: JobReport, hold: Hold, inline_bytes: int) -> list[OutputFile]:
        """Upload all results but those that fit into the final call. Return the latter."""
        body, outputs = report.record.body, report.outputs()
        if not isinstance(body, Completion) or not report.has_uploads:
            return []
        names = inline.choose(outputs, inline_bytes)
        small = [output for output in outputs if output.name in names]
        large = [output for output in outputs if output.name not in names]
        slots = hold.keeper.lease.uploads
        for output in small:
            fitting_slot(output, slots.get(output.name))
        started = self._clock()
        if large:
            await hold.guard(lambda: upload(large, slots.get, http=self._storage, report=hold.progress))
        # An earlier call may have had the timings, so they do not change any more.
        timings = {"upload": round(self._clock() - started, 4)} | body.timings
        report.mark_uploaded(body.model_copy(update={"timings": timings}), [output.name for output in large])
        return small

    async def _send(
        self, report: JobReport, hold: Hold, small: Sequence[OutputFile] = ()
    ) -> CompleteAnswer | FailAnswer:
        body = report.record.body
        if isinstance(body, Completion):
            return await self._api.complete(hold.job, inline.attach(body, small), policy=hold.policy)
        answer = await self._api.fail(hold.job, body, policy=hold.policy)
        _log_failure(report.job_id, body, answer)
        return answer

    async def _correct(self, report: JobReport, hold: Hold, small: Sequence[OutputFile], refusal: Rejected) -> None:
        """Remove the possible cause of a rejection, or raise it."""
        body = report.record.body
        if isinstance(body, Failure) and body.error.code != REPORT_REJECTED:
            log.warning("report_not_taken", reason=str(refusal))
            error = JobError(REPORT_REJECTED, body.error.message[:200], body.error.error_class)
            report.replace(Failure.of(error))
        elif report.has_results and (small or refusal.code == "output_mismatch"):
            # An older API, a proxy's limit or a full disk: upload the small results too. Or storage lacks some, since a
            # proxy may have confirmed an upload without storing it.
            log.info("results_not_taken", reason=str(refusal))
            if refusal.code == "output_mismatch":
                report.forget_uploads()
            await self._upload(report, hold, 0)
        else:
            raise refusal

    # -- from the outbox --------------------------------------------------------------------------------------------

    async def _deliver_or_drop(self, report: JobReport) -> None:
        structlog.contextvars.bind_contextvars(job_id=report.job_id, attempt=report.record.attempt)
        started = self._clock()
        try:
            await self._deliver_patiently(report)
        except (ApiError, JobError, OSError) as error:
            self.outbox.close(report, dropped=str(error))
        except Exception:
            log.exception("report_broke", message="A report in the outbox cannot be sent")
            self.outbox.close(report, dropped="an error in this program")
        else:
            log.info(
                "report_delivered",
                message=f"The {report.kind} report of job {report.job_id} was delivered from the outbox",
                waited_seconds=round(self._clock() - started, 1),
            )

    async def _deliver_patiently(self, report: JobReport) -> None:
        while report.remaining() > 0:
            try:
                await self.deliver(report, self._hold(report))
            except (ApiError, CancelRequested, JobError) as error:
                match verdict(error, report):
                    case Verdict.RETRY:
                        log.debug("report_waits_on", reason=str(error))
                    case Verdict.RESEND:
                        report.replace(report.record.body)
                    case Verdict.FAIL if report.kind == "complete":
                        report.replace(Failure.of(as_job_error(error)))
                    case _:
                        raise
            else:
                return
        raise Unavailable("report_too_old", "it waited longer than OUTBOX_MAX_AGE")

    def _hold(self, report: JobReport) -> Hold:
        lease = Lease(report.record, self._clock)
        keeper = LeaseKeeper(self._api, lease, interval=HEARTBEAT_SECONDS, clock=self._clock)

        async def regain() -> None:
            sent = self._clock()
            keeper.accept(sent, await self._api.heartbeat(report, policy=retry.ONCE))

        async def in_turn(work: Upload) -> None:
            async with self._gate:
                await work()

        async def guard(work: Upload) -> None:
            # Before its turn, so that no other worker gets the job while its results wait.
            await retry.persist(retry.OUTBOX, regain, remaining=report.remaining)
            await watched(in_turn(work), keeper.keep())

        return Hold(report, retry.OUTBOX, keeper, guard)


def _log_failure(job_id: str, failure: Failure, answer: FailAnswer) -> None:
    """Log a failure without another attempt as an error: `grep ERROR worker.log` finds the jobs that failed."""
    if answer.state == "failed":
        log.error(
            "job_failed_for_good",
            message=f"Job {job_id} failed for good: {failure.error.message}",
            code=failure.error.code,
            error_class=failure.error.error_class,
        )
    elif answer.state == "queued" and answer.next_attempt_at is not None:
        log.info("job_retry_scheduled", next_attempt_at=answer.next_attempt_at.isoformat())
