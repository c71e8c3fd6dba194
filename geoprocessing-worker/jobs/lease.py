"""The lease on one job: how long it can be trusted, and the heartbeats and progress reports that renew it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NoReturn, TypeVar

import structlog

from geoprocessing_worker.errors import ApiError, CancelRequested, LeaseExpired, TokenRefused, Unavailable
from geoprocessing_worker.jobs.report import ReportRecord
from geoprocessing_worker.jobs.watch import watched
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import ClaimedJob, LeaseAnswer, Progress, UploadSlot

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Seconds. Progress is for people, so closer reports are merged into the latest.
MIN_PROGRESS_GAP = 0.5
# The next heartbeat is due after this share of a lease. The API may hold it open for the same time, and only its answer
# renews the lease. Two may be lost, and a third of the lease is left for short ones.
LEASE_SHARE = 1 / 6
# Seconds between two attempts with a refused token.
REFUSED_PAUSE = 5.0


class Lease:
    """A lease on a job, trusted on the monotonic clock from the moment the renewing request was *sent*.

    Neither a slow reply nor a wrong wall clock makes it seem longer. Before the first heartbeat its end is a guess from
    the arrival of the claim, and no work begins.

    Args:
        job: as claimed, or as the outbox has it.
        clock: monotonic seconds.
    """

    def __init__(self, job: ClaimedJob | ReportRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self.job_id = job.id
        self.token = job.lease_token
        self.uploads: dict[str, UploadSlot] = {slot.name: slot for slot in job.uploads}
        self._clock = clock
        # A claim may be parked for long, so its send time is no use. The first heartbeat follows at once.
        self.length = job.lease_seconds
        self._ends = clock() + self.length

    def remaining(self) -> float:
        """Return the seconds for which the job is ours, 0 or less when another worker may have it."""
        return self._ends - self._clock()

    def renew(self, sent: float, answer: LeaseAnswer) -> None:
        """Trust the lease for its length from `sent`, in seconds of the monotonic clock."""
        self.length = answer.lease_seconds
        # Of two concurrent calls, the first one may be answered last.
        self._ends = max(self._ends, sent + self.length)
        self.uploads |= {slot.name: slot for slot in answer.uploads or ()}


class LeaseKeeper:
    """Renews a lease during the work, and raises when the work must stop.

    Args:
        api: renews it.
        lease: to renew.
        interval: longest time between two heartbeats, in seconds.
        clock: monotonic seconds.
        on_timeout: receives the job's timeout in seconds, None for no limit, whenever the API sends one.
    """

    def __init__(
        self,
        api: JobApi,
        lease: Lease,
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        on_timeout: Callable[[float | None], None] = lambda _seconds: None,
    ) -> None:
        self.lease = lease
        self._on_timeout = on_timeout
        self._api = api
        self._interval = interval
        self._clock = clock
        self._latest: Progress | None = None
        self._news = asyncio.Event()
        self._finishing = False

    def report(self, progress: Progress) -> None:
        """Send this progress soon."""
        self._latest = progress
        self._news.set()

    def finish(self) -> None:
        """Only keep the lease alive from now on: the answer to the final call decides."""
        self._finishing = True
        self._latest = None

    async def take_up(self) -> None:
        """Send the first heartbeat, from which on the attempt counts.

        Raises:
            CancelRequested, LeaseLost, TokenRefused, Unavailable: the job must not begin.
        """
        await self._renew(lambda: self._api.heartbeat(self.lease))

    async def keep(self) -> NoReturn:
        """Renew the lease forever.

        Raises:
            LeaseLost: the API's decision.
            LeaseExpired: the API did not answer for the length of the lease.
            CancelRequested: the job was cancelled.
        """
        await watched(self._send_heartbeats(), self._send_progress())
        raise AssertionError("unreachable: both loop forever")

    async def during(self, call: Coroutine[Any, Any, T]) -> T:
        """Make the final call while the lease is kept. Nothing but its own answer ends it."""
        self.finish()
        try:
            return await watched(call, self.keep())
        finally:
            self._finishing = False

    def accept(self, sent: float, answer: LeaseAnswer) -> None:
        """Apply the answer to a heartbeat or progress report.

        Raises:
            CancelRequested: the job was cancelled, and no final call is under way.
        """
        self.lease.renew(sent, answer)
        if answer.has_timeout:
            self._on_timeout(answer.timeout_seconds)
        if answer.cancel is not None and not self._finishing:
            raise CancelRequested(answer.cancel.reason or "no reason given", answer.cancel.grace_seconds)

    async def _send_heartbeats(self) -> NoReturn:
        """Send heartbeats, each held open by the API until the next is due or the job is cancelled."""
        # Most jobs are shorter than this, and need no parked connection.
        due = min(MIN_PROGRESS_GAP, self._pause())
        while True:
            await asyncio.sleep(due)
            pause = self._pause()
            sent = self._clock()
            wait = 0.0 if self._finishing else pause
            await self._attempt(partial(self._api.heartbeat, self.lease, wait))
            # An API that does not hold heartbeats open gets no more of them.
            due = max(0.0, min(pause - (self._clock() - sent), self._pause()))

    async def _send_progress(self) -> NoReturn:
        while True:
            await self._news.wait()
            # Wait before the call: small jobs end within the gap and need none.
            await asyncio.sleep(MIN_PROGRESS_GAP)
            self._news.clear()
            progress, self._latest = self._latest, None
            if progress is not None:
                await self._attempt(partial(self._api.progress, self.lease, progress))

    def _pause(self) -> float:
        # At most half of the remaining time, so that a nearly lost lease is renewed at once.
        return min(self._interval, self.lease.length * LEASE_SHARE, max(0.0, self.lease.remaining() / 2))

    async def _attempt(self, ask: Callable[[], Awaitable[LeaseAnswer]]) -> None:
        try:
            await self._renew(ask)
        except TokenRefused as error:
            # Tokens are rotated while jobs run, so the end of the lease decides, not the first refusal.
            log.error("token_refused", reason=str(error))
            await asyncio.sleep(min(REFUSED_PAUSE, max(0.0, self.lease.remaining())))
        except ApiError:
            if not self._finishing:
                raise
            await asyncio.Event().wait()  # until the final call has its answer

    async def _renew(self, ask: Callable[[], Awaitable[LeaseAnswer]]) -> None:
        sent = self._clock()
        try:
            # A hanging request does not prolong the work past the end of the lease.
            async with asyncio.timeout(max(0.0, self.lease.remaining())):
                answer = await ask()
        except (TimeoutError, Unavailable) as error:
            raise LeaseExpired(f"the API could not be reached in time: {error}") from None
        self.accept(sent, answer)
