"""The end of a running job: its one report, as safe from a lost connection as from a lost process."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import structlog

from geoprocessing_worker.errors import (
    JobError,
    LeaseExpired,
    LeaseLost,
    Rejected,
    TokenRefused,
    Unavailable,
)
from geoprocessing_worker.jobs.lease import Lease, LeaseKeeper, watched
from geoprocessing_worker.jobs.outbox import OutboxEntry
from geoprocessing_worker.jobs.report_sender import ReportSender, log_if_final
from geoprocessing_worker.jobs.workspace import no_room
from geoprocessing_worker.outputs import OutputFile
from geoprocessing_worker.wire import inline, retry
from geoprocessing_worker.wire.messages import ClaimedJob, CompleteAnswer, Completion, Failure

log = structlog.get_logger(__name__)


class JobReport:
    """The one report of a running job: written down first, then sent while the lease is kept, then forgotten.

    What could not be said goes to the courier; what is there when the process dies is said by the next one.

    Args:
        job: as claimed.
        lease: on it.
        keeper: of that lease.
        courier: says what could not be said in time.
    """

    def __init__(self, job: ClaimedJob, lease: Lease, keeper: LeaseKeeper, courier: ReportSender) -> None:
        self._job = job
        self._lease = lease
        self._keeper = keeper
        self._courier = courier
        self._api = courier.api
        self._entry: OutboxEntry | None = None

    def post(self, body: Completion | Failure, outputs: Path | None = None) -> None:
        """Write the report down; `outputs` moves to it.

        Raises:
            JobError: `workspace_unavailable`.
        """
        slots = tuple(self._lease.uploads.values()) if outputs is not None else ()
        try:
            self._entry = self._courier.outbox.post(self._job, body, outputs, slots)
        except OSError as error:
            raise no_room(error) from error

    async def upload(self, report: Callable[[float, str], None]) -> dict[str, float]:
        """Upload the results that were posted, but for the small ones; the timings that will be reported.

        Raises:
            JobError: as `upload`, or `workspace_unavailable`.
        """
        assert self._entry is not None  # noqa: S101 - posted before
        try:
            small = inline.choose(self._entry.outputs(), self._job.inline_bytes)
            return await self._courier.upload_results(self._entry, self._lease, report, small)
        except OSError as error:
            raise no_room(error) from error

    async def complete(self) -> bool:
        """Hand the results in, the small ones with the report; whether the API had heard of them before.

        Raises:
            ApiError: any.
            JobError: as `upload`.
        """
        assert self._entry is not None  # noqa: S101 - posted before
        small = self._entry.outputs()
        try:
            answer = await self._keeper.during(self._send(small))
        except Rejected as refusal:
            if not small:
                raise
            # An API of another version, a proxy's limit, a full disk: what did not come in this way is uploaded.
            log.info("results_not_taken_with_report", reason=str(refusal))
            answer = await self._keeper.during(watched(self._upload_and_send(), self._expiry()))
        self.forget()
        return answer.replayed

    async def _send(self, small: Sequence[OutputFile] = ()) -> CompleteAnswer:
        assert self._entry is not None  # noqa: S101 - posted before
        body = self._entry.report.body
        assert isinstance(body, Completion)  # noqa: S101 - by the same caller
        try:
            body = inline.attach(body, small)
        except OSError as error:
            raise no_room(error) from error
        return await self._api.complete(self._lease, body)

    async def _upload_and_send(self) -> CompleteAnswer:
        assert self._entry is not None  # noqa: S101 - posted before
        try:
            await self._courier.upload_results(self._entry, self._lease, lambda _percent, _text: None)
        except OSError as error:
            raise no_room(error) from error
        return await self._send()

    async def _expiry(self) -> NoReturn:
        while (seconds := self._lease.remaining()) > 0:  # noqa: ASYNC110 - it may be renewed meanwhile
            await asyncio.sleep(seconds)
        raise LeaseExpired("the lease ran out while results were uploaded")

    async def give_back(self, error: JobError, *, parting: bool = False) -> None:
        """Report a failure, with little patience when `parting`. Results that wait stay until that was heard."""
        failure = Failure.of(error)
        if self._entry is None:
            with contextlib.suppress(JobError):  # no room: it is sent all the same
                self.post(failure)
        try:
            if parting:
                answer = await self._api.fail(self._lease, failure, policy=retry.PARTING)
            else:
                answer = await self._keeper.during(self._api.fail(self._lease, failure))
        except (LeaseExpired, TokenRefused, Unavailable) as refusal:
            log.warning("report_not_taken", reason=str(refusal))
            await self.keep(error)
            return
        except (LeaseLost, Rejected) as refusal:
            log.warning("report_not_taken", reason=str(refusal))
            self.forget()
            if isinstance(refusal, Rejected) and error.code != "report_rejected":
                await self.give_back(
                    JobError("report_rejected", error.message[:200], error.error_class), parting=parting
                )
            return
        self.forget()
        log_if_final(self._job.id, failure, answer)
        if answer.state == "queued" and answer.next_attempt_at is not None:
            log.info("job_retry_scheduled", next_attempt_at=answer.next_attempt_at.isoformat())

    async def keep(self, error: JobError) -> None:
        """Let the courier report the results that are ready or, if there are none, the error."""
        if self._entry is None:
            with contextlib.suppress(JobError):  # no room: the lease runs out without a word
                self.post(Failure.of(error))
        if self._entry is not None:
            entry, self._entry = self._entry, None
            await self._courier.take(entry)

    def forget(self) -> None:
        """The API has spoken: what was posted is over."""
        if self._entry is not None:
            self._courier.outbox.done(self._entry)
            self._entry = None

    def release(self) -> None:
        """Leave what was posted and not forgotten to the next process."""
        if self._entry is not None:
            self._entry.release()
