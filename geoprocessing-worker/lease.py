"""The lease on one job: how long it can be trusted, and the heartbeats and progress reports that renew it."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from geoprocessing_worker.client import JobApi
from geoprocessing_worker.errors import CancelRequested, LeaseLost, TokenRefused, Unavailable
from geoprocessing_worker.models import ClaimedJob, LeaseAnswer, Progress, UploadSlot

log = structlog.get_logger(__name__)

# Progress is for people: reports closer together than this are folded into the last one.
LEAST_REPORT_GAP = 0.5
# At this share of a lease the next heartbeat is due at the latest, so that two may be lost.
LEASE_SHARE = 1 / 3
# Between two tries with a token that was refused.
REFUSED_PAUSE = 5.0


class Lease:
    """A claim on a job, trusted on the monotonic clock from when the request that renewed it was *sent*.

    So neither a slow reply nor a wrong wall clock makes it seem longer than it is.

    Args:
        job: as claimed.
        clock: monotonic seconds.
    """

    def __init__(self, job: ClaimedJob, clock: Callable[[], float] = time.monotonic) -> None:
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
        self._ends = sent + self.length
        self.uploads |= {slot.name: slot for slot in answer.uploads or ()}


class LeaseKeeper:
    """Renews a lease beside the work, and raises when the work must stop.

    Args:
        api: where to.
        lease: whose.
        interval: seconds between two signs of life, at most.
        clock: monotonic seconds.
    """

    def __init__(
        self, api: JobApi, lease: Lease, *, interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
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
        await self._renew()

    async def keep(self) -> NoReturn:
        """Renew for ever.

        Raises:
            LeaseLost: the API said so, or could not be reached for as long as the lease lasts.
            CancelRequested: somebody does not want the job any more.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the news.
                pause = min(self._interval, self._lease.length * LEASE_SHARE, max(0.0, self._lease.remaining()))
                async with asyncio.timeout(pause):
                    await self._news.wait()
            try:
                await self._renew()
            except TokenRefused as error:
                # Tokens are rotated while jobs run: the lease, not the first refusal, says when to give up.
                log.error("token_refused", reason=str(error))
                await asyncio.sleep(min(REFUSED_PAUSE, max(0.0, self._lease.remaining())))
            except LeaseLost:
                if not self._finishing:
                    raise
                await asyncio.Event().wait()  # until the one who hands the result in has its answer
            await asyncio.sleep(LEAST_REPORT_GAP)

    async def _renew(self) -> None:
        self._news.clear()
        sent = self._clock()
        try:
            # However the request hangs, nobody works on past the end of the lease.
            async with asyncio.timeout(max(0.0, self._lease.remaining())):
                answer = await self._ask()
        except (TimeoutError, Unavailable) as error:
            raise LeaseLost("lease-expired", f"the API could not be reached in time: {error}") from None
        self._lease.renew(sent, answer)
        if answer.cancel is not None and not self._finishing:
            raise CancelRequested(answer.cancel.reason or "no reason given", answer.cancel.grace_seconds)

    async def _ask(self) -> LeaseAnswer:
        progress, self._latest = self._latest, None
        if progress is None:
            return await self._api.heartbeat(self._lease)
        return await self._api.progress(self._lease, progress)
