"""The lease on one job: how long it can be trusted, and the heartbeats and progress reports that renew it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import structlog
from pydantic import SecretStr

from geoprocessing_worker.errors import ApiError, CancelRequested, LeaseExpired, LeaseLost, TokenRefused, Unavailable
from geoprocessing_worker.wire.client import JobApi
from geoprocessing_worker.wire.messages import LeaseAnswer, Progress, UploadSlot

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Progress is for people: reports closer together than this are folded into the last one.
LEAST_REPORT_GAP = 0.5
# At this share of a lease the next heartbeat is due at the latest. It is held open for as long, and only its answer
# shows that the lease is renewed: two may be lost, and then there is a third of the lease left for short ones.
LEASE_SHARE = 1 / 6
# Between two tries with a token that was refused.
REFUSED_PAUSE = 5.0


class LeasedJob(Protocol):
    """What a lease has to know of its job."""

    @property
    def id(self) -> str:
        """The job's id."""

    @property
    def lease_token(self) -> SecretStr:
        """The lease token."""

    @property
    def lease_seconds(self) -> float:
        """For how long the lease can be trusted from now on."""

    @property
    def uploads(self) -> tuple[UploadSlot, ...]:
        """Where results may be put."""


class Lease:
    """A claim on a job, trusted on the monotonic clock from when the request that renewed it was *sent*.

    So neither a slow reply nor a wrong wall clock makes it seem longer than it is.

    Args:
        job: as claimed, or as the outbox has it.
        clock: monotonic seconds.
    """

    def __init__(self, job: LeasedJob, clock: Callable[[], float] = time.monotonic) -> None:
        self.job_id = job.id
        self.token = job.lease_token
        self.uploads: dict[str, UploadSlot] = {slot.name: slot for slot in job.uploads}
        self._clock = clock
        # The claim may have been parked for long before it was answered, so the moment it was sent says nothing; the
        # first heartbeat, which goes out at once, puts the trust on firm ground.
        self.length = job.lease_seconds
        self._ends = clock() + self.length

    def remaining(self) -> float:
        """Seconds for which the job is still ours for certain; not more than 0 when it may be somebody else's."""
        return self._ends - self._clock()

    def renew(self, sent: float, answer: LeaseAnswer) -> None:
        """Trust the lease for its length from `sent` on, a time of the monotonic clock."""
        self.length = answer.lease_seconds
        # Of two calls under way at once, the one that was sent first may be answered last.
        self._ends = max(self._ends, sent + self.length)
        self.uploads |= {slot.name: slot for slot in answer.uploads or ()}


class LeaseKeeper:
    """Renews a lease beside the work, and raises when the work must stop.

    Args:
        api: where to.
        lease: whose.
        interval: seconds between two signs of life, at most.
        clock: monotonic seconds.
        timeout_told: told the seconds that the job may take, or None for no limit, whenever the API says them.
    """

    def __init__(
        self,
        api: JobApi,
        lease: Lease,
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        timeout_told: Callable[[float | None], None] = lambda _seconds: None,
    ) -> None:
        self._timeout_told = timeout_told
        self._api = api
        self._lease = lease
        self._interval = interval
        self._clock = clock
        self._latest: Progress | None = None
        self._news = asyncio.Event()
        self._finishing = False

    def report(self, progress: Progress) -> None:
        """Send this with the next sign of life, which is due soon."""
        self._latest = progress
        self._news.set()

    def finish(self) -> None:
        """The result is being handed in: only keep the lease alive, and let the answer to *that* call decide."""
        self._finishing = True
        self._latest = None

    async def take_up(self) -> None:
        """The first heartbeat: from here on the attempt counts.

        Raises:
            CancelRequested, LeaseLost, TokenRefused, Unavailable: the job is not to be begun.
        """
        await self._renew(lambda: self._api.heartbeat(self._lease))

    async def keep(self) -> NoReturn:
        """Renew for ever.

        Raises:
            LeaseLost: the API said so.
            LeaseExpired: it could not be reached for as long as the lease lasts.
            CancelRequested: somebody does not want the job any more.
        """
        await watched(self._beat(), self._tell())
        raise AssertionError("unreachable: both go on for ever")

    async def _beat(self) -> NoReturn:
        """Heartbeats, each held open by the API until the next is due or the job is cancelled."""
        # Most jobs are short: their connection is not worth parking anything on.
        due = min(LEAST_REPORT_GAP, self._pause())
        while True:
            await asyncio.sleep(due)
            pause = self._pause()
            sent = self._clock()
            wait = 0.0 if self._finishing else pause
            await self._attempt(partial(self._api.heartbeat, self._lease, wait))
            # An API that does not hold heartbeats open is not asked more often for that.
            due = max(0.0, min(pause - (self._clock() - sent), self._pause()))

    async def _tell(self) -> NoReturn:
        """Progress, as it comes."""
        while True:
            await self._news.wait()
            # Before and not after: small jobs are over by then, and need no call for what nobody could have seen.
            await asyncio.sleep(LEAST_REPORT_GAP)
            self._news.clear()
            progress, self._latest = self._latest, None
            if progress is not None:
                await self._attempt(partial(self._api.progress, self._lease, progress))

    def _pause(self) -> float:
        # Half of what is left, so that a lease that was nearly lost is made safe at once.
        return min(self._interval, self._lease.length * LEASE_SHARE, max(0.0, self._lease.remaining() / 2))

    async def _attempt(self, ask: Callable[[], Awaitable[LeaseAnswer]]) -> None:
        try:
            await self._renew(ask)
        except TokenRefused as error:
            # Tokens are rotated while jobs run: the lease, not the first refusal, says when to give up.
            log.error("token_refused", reason=str(error))
            await asyncio.sleep(min(REFUSED_PAUSE, max(0.0, self._lease.remaining())))
        except LeaseLost:
            if not self._finishing:
                raise
            await asyncio.Event().wait()  # until the one who hands the result in has its answer

    async def during(self, report: Coroutine[Any, Any, T]) -> T:
        """Send a final report while the lease is kept, and let nothing but the report's own answer end it."""
        self.finish()
        keeping = asyncio.create_task(self.keep())
        try:
            return await report
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await keeping

    async def _renew(self, ask: Callable[[], Awaitable[LeaseAnswer]]) -> None:
        sent = self._clock()
        try:
            # However the request hangs, nobody works on past the end of the lease.
            async with asyncio.timeout(max(0.0, self._lease.remaining())):
                answer = await ask()
        except (TimeoutError, Unavailable) as error:
            raise LeaseExpired(f"the API could not be reached in time: {error}") from None
        self._lease.renew(sent, answer)
        if answer.tells_timeout:
            self._timeout_told(answer.timeout_seconds)
        if answer.cancel is not None and not self._finishing:
            raise CancelRequested(answer.cancel.reason or "no reason given", answer.cancel.grace_seconds)


async def watched(work: Coroutine[Any, Any, T], *watchers: Coroutine[Any, Any, NoReturn]) -> T:
    """Do `work` until it ends, or until a watcher raises: then the work is stopped first, and waited for."""
    working = asyncio.create_task(work)
    watching = [asyncio.create_task(watcher) for watcher in watchers]
    try:
        await asyncio.wait([working, *watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        for watcher in watching:
            if watcher.done():
                watcher.result()
        raise AssertionError("unreachable: watchers end by raising")
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)
