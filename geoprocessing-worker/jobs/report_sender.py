"""Says what waits in the outbox, for as long as it takes: results are uploaded first, then one call ends the job."""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import httpx
import structlog
from pydantic import SecretStr

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
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper, watched
from geoprocessing_worker.jobs.outbox import Outbox, OutboxEntry
from geoprocessing_worker.wire import retry
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import CompleteAnswer, Completion, FailAnswer, Failure
from geoprocessing_worker.wire.upload import fitting_slot, upload

log = structlog.get_logger(__name__)

# Seconds between two signs of life while waiting results are uploaded at last.
HEARTBEAT_SECONDS = 10.0
# Uploads of waiting results at once, however many wait: they share one link with the running jobs.
AT_ONCE = 2


def rejected(error: Rejected) -> JobError:
    """What the API will not take, as the end of its job or of this attempt."""
    # An upload that a proxy said yes to and nobody stored: made again, the same results will be taken.
    passing = error.code in {"output_mismatch", "storage_full"}
    return JobError(
        error.code,
        f"The job server did not take it: {error.message}",
        ErrorClass.TRANSIENT if passing else ErrorClass.INVALID_INPUT,
    )


def cancelled(order: CancelRequested) -> JobError:
    """A job that somebody does not want any more."""
    return JobError("job_cancelled", "The job was cancelled.", ErrorClass.CANCELLED, {"reason": order.reason})


def log_if_final(job_id: str, failure: Failure, answer: FailAnswer) -> None:
    """Log a failure that the API does not retry as an error: `grep ERROR worker.log` finds the jobs that failed."""
    if answer.state == "failed":
        log.error(
            "job_failed_for_good",
            message=f"Job {job_id} failed for good: {failure.error.message}",
            code=failure.error.code,
            error_class=failure.error.error_class,
        )


@dataclass(frozen=True)
class _Unleased:
    """A job whose lease nobody here trusts any more: the API decides whether the call still counts."""

    job_id: str
    token: SecretStr
    remaining: Callable[[], float]


class ReportSender:
    """Reports what waits in the outbox, each on its own, until the API has taken or refused it.

    Args:
        outbox: where reports wait.
        api: who is to be told.
        storage: a client without the API's credentials.
        clock: monotonic seconds.
    """

    def __init__(
        self, outbox: Outbox, api: JobApi, storage: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.outbox = outbox
        self.api = api
        self._storage = storage
        self._clock = clock
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Go on with what dead processes left behind."""
        for entry in await asyncio.to_thread(self.outbox.take_over):
            await self.take(entry)

    async def take(self, entry: OutboxEntry) -> None:
        """Report an entry as soon as the API can be reached."""
        log.warning(
            "report_kept",
            message=f"The {entry.report.kind} report of job {entry.report.id} waits in the outbox for the API",
            job_id=entry.report.id,
            attempt=entry.report.attempt,
            results_to_upload=len(entry.outputs()),
        )
        for surplus in await asyncio.to_thread(self.outbox.keep, entry):
            if (task := self._tasks.pop(id(surplus), None)) is not None:
                task.cancel()
            self.outbox.done(surplus, reason="more reports wait than OUTBOX_MAX_REPORTS")
        if entry.is_held:
            task = asyncio.create_task(self._deliver(entry))
            self._tasks[id(entry)] = task
            task.add_done_callback(lambda _: self._tasks.pop(id(entry), None))

    async def upload_results(
        self,
        entry: OutboxEntry,
        lease: Lease,
        report: Callable[[float, str], None],
        held_back: Collection[str] = (),
    ) -> dict[str, float]:
        """Upload what an entry holds, but for what is held back, and write down that this was done.

        Returns:
            Seconds per stage, as the completion will tell them.

        Raises:
            JobError: as `upload`.
            OSError: the outbox cannot be written.
        """
        body = entry.report.body
        assert isinstance(body, Completion)  # noqa: S101 - failures have nothing to upload
        started = self._clock()
        outputs = entry.outputs()
        for output in outputs:
            fitting_slot(output, lease.uploads.get(output.name))
        wanted = [output for output in outputs if output.name not in held_back]
        await upload(wanted, lease.uploads.get, http=self._storage, report=report)
        # What may have been sent already is not changed.
        timings = {"upload": round(self._clock() - started, 4)} | body.timings
        entry.advance(body.model_copy(update={"timings": timings}), [output.name for output in wanted])
        return timings

    async def stop(self) -> None:
        """Leave what still waits to the next process."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.outbox.release()

    async def _deliver(self, entry: OutboxEntry) -> None:
        structlog.contextvars.bind_contextvars(job_id=entry.report.id, attempt=entry.report.attempt)
        kept_seconds = self._clock()
        try:
            await self._until_heard(entry)
        except (ApiError, OSError) as error:
            # Unavailable for as long as a report may wait, or refused in the API's own words.
            self.outbox.done(entry, reason=str(error))
        except Exception:
            log.exception("report_broke", message="A report in the outbox cannot be sent")
            self.outbox.done(entry, reason="a mistake in this program")
        else:
            self.outbox.done(entry)
            log.info(
                "report_delivered",
                message=f"The {entry.report.kind} report of job {entry.report.id} was taken from the outbox",
                waited_seconds=round(self._clock() - kept_seconds, 1),
            )

    async def _until_heard(self, entry: OutboxEntry) -> None:
        while self.outbox.seconds_left(entry) > 0:
            try:
                if entry.report.to_upload:
                    await self._upload(entry)
                await self._report(entry)
            except (LeaseExpired, TokenRefused, Unavailable) as error:
                # The API went away again, in the middle of it.
                log.debug("report_waits_on", reason=str(error))
            except LeaseLost as error:
                # What went along with the report was taken, perhaps, and only the answer was lost.
                if error.code != "already_finalized" or not entry.report.to_upload:
                    raise
                entry.rewrite(entry.report.body)
            except CancelRequested as order:
                entry.rewrite(Failure.of(cancelled(order)))
            except (JobError, Rejected) as error:
                if entry.report.kind == "fail":
                    raise
                entry.rewrite(Failure.of(rejected(error) if isinstance(error, Rejected) else error))
            else:
                return
        raise Unavailable("report_too_old", "it waited longer than OUTBOX_MAX_AGE")

    async def _upload(self, entry: OutboxEntry) -> None:
        """Upload under a lease that the API has renewed just now: a stranger's job gets no more files."""
        lease = Lease(entry.report, self._clock)
        keeper = LeaseKeeper(self.api, lease, interval=HEARTBEAT_SECONDS, clock=self._clock)
        # Each lease is renewed at once, so that nobody else gets the job while its results wait for their turn.
        await self._regain(entry, lease)
        await watched(self._upload_in_turn(entry, lease), keeper.keep())

    async def _upload_in_turn(self, entry: OutboxEntry, lease: Lease) -> None:
        async with self._gate:
            await self.upload_results(entry, lease, lambda _percent, _text: None)

    async def _regain(self, entry: OutboxEntry, lease: Lease) -> None:
        unleased = self._unleased(entry)

        async def once() -> None:
            sent = self._clock()
            answer = await self.api.heartbeat(unleased, policy=retry.ONCE)
            lease.renew(sent, answer)
            if answer.cancel is not None:
                raise CancelRequested(answer.cancel.reason or "no reason given", answer.cancel.grace_seconds)

        await retry.persist(retry.OUTBOX, once, remaining=unleased.remaining)

    async def _report(self, entry: OutboxEntry) -> CompleteAnswer | FailAnswer:
        body, unleased = entry.report.body, self._unleased(entry)
        if isinstance(body, Completion):
            return await self.api.complete(unleased, body, policy=retry.OUTBOX)
        answer = await self.api.fail(unleased, body, policy=retry.OUTBOX)
        log_if_final(entry.report.id, body, answer)
        return answer

    def _unleased(self, entry: OutboxEntry) -> _Unleased:
        report = entry.report
        return _Unleased(report.id, report.lease_token, lambda: self.outbox.seconds_left(entry))
