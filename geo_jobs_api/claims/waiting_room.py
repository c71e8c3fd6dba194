"""Long polling: claims wait in the order of their arrival, and each claimable job wakes one.

A claim for task types that are known to be empty is parked without a query: a notification would have announced a job.
The poll checks in one query for all such claims whether they repeat a claim with a lost answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from geo_jobs_api.queue.metrics import PARKED_CLAIMS

# The poll collects unchecked claims for this time, so that 500 of them cost one statement. It bounds the delay of a
# repeated claim with a lost answer, well within the first lease.
BATCH_SECONDS = 2.5
# A claim that found only jobs for other workers queries again after this time, or on a notification.
SKIP_POLLS_SECONDS = 5.0
# Maximum clock difference between database and service.
_EARLY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Claimant:
    """The worker behind a claim, and its filter for jobs."""

    worker_id: str = ""
    admission: tuple[object, ...] = ()


ANY_WORKER = Claimant()


@dataclass(eq=False, slots=True)
class WaitingClaim:
    """A claim in the waiting room. Polls before `skip_polls_until` need not wake it: the jobs there do not fit it."""

    task_types: frozenset[str]
    claim_id: UUID
    claimant: Claimant = ANY_WORKER
    skip_polls_until: float = 0.0
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    woken_for: str | None = None
    superseded: bool = False

    def wake(self, task_type: str) -> None:
        """Wake the claim for a job of this type."""
        self.woken_for = task_type
        self._event.set()

    def reset(self) -> str | None:
        """Return the task type that the claim was woken for, and rearm it. Call this before each query."""
        woken_for, self.woken_for = self.woken_for, None
        self._event.clear()
        return woken_for

    def notify(self) -> None:
        """Wake the claim for no particular task type."""
        self._event.set()

    def supersede(self) -> None:
        """Mark that a later request with the same claim id took over."""
        self.superseded = True
        self._event.set()

    @property
    def is_woken(self) -> bool:
        """Return whether the claim should query."""
        return self._event.is_set()

    async def wait(self, seconds: float) -> bool:
        """Wait until woken. Return False on timeout."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class WaitingRoom:
    """All claims that wait in this process. For one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._claims: dict[WaitingClaim, None] = {}
        self._by_claim: dict[UUID, WaitingClaim] = {}
        self._unchecked: set[WaitingClaim] = set()
        self._parked = 0
        self._is_listening = False
        self._empty_types: set[str] = set()
        self._notifications: Counter[str] = Counter()
        self.is_draining = False
        # Makes the listener poll now.
        self.poll_requested = asyncio.Event()

    def __len__(self) -> int:
        """Return the number of parked claims."""
        return self._parked

    async def park(self, claim: WaitingClaim, seconds: float, *, unchecked: bool = False) -> bool:
        """Wait until woken. Return False on timeout. `unchecked`: the claim has sent no query yet."""
        if self._parked == 0:
            # The next due time is unknown while the room is empty.
            self.poll_requested.set()
        if unchecked:
            if not self._unchecked:
                asyncio.get_running_loop().call_later(BATCH_SECONDS, self.poll_requested.set)
            self._unchecked.add(claim)
        self._parked += 1
        PARKED_CLAIMS.inc()
        try:
            return await claim.wait(seconds)
        finally:
            self._parked -= 1
            PARKED_CLAIMS.dec()
            self._unchecked.discard(claim)

    def list_unchecked(self) -> list[WaitingClaim]:
        """Return the claims that have sent no query yet."""
        return list(self._unchecked)

    def mark_checked(self, claims: Iterable[WaitingClaim]) -> None:
        """Mark that the poll covered these claims."""
        self._unchecked.difference_update(claims)

    def notify_claims(self, claim_ids: Iterable[UUID]) -> None:
        """Wake these claims: they hold leases already."""
        for claim_id in claim_ids:
            if (claim := self._by_claim.get(claim_id)) is not None:
                claim.notify()

    def requested_types(self) -> list[str]:
        """Return the task types of all waiting claims."""
        return sorted({name for claim in self._claims for name in claim.task_types})

    def count_notifications(self, task_types: Iterable[str]) -> int:
        """Count the notifications of these types so far. Read it before a query, for `mark_empty`."""
        return sum(self._notifications[name] for name in task_types)

    def mark_empty(self, task_types: Iterable[str], count_before: int) -> None:
        """Mark types as empty after a query got less than it requested, unless there were notifications meanwhile."""
        types = frozenset(task_types)
        if self._is_listening and self.count_notifications(types) == count_before:
            self._empty_types |= types

    def is_known_empty(self, task_types: Iterable[str]) -> bool:
        """Return whether these types were empty and had no notification since."""
        return self._empty_types.issuperset(task_types)

    def set_listening(self, is_listening: bool) -> None:
        """Set whether notifications arrive. Without them, no type is known to be empty."""
        self._is_listening = is_listening
        self._empty_types.clear()

    def skip_polls(self, claim: WaitingClaim, seconds: float | None) -> None:
        """Exempt a claim from polls after it found jobs for other workers only, for `seconds` at most."""
        wait = SKIP_POLLS_SECONDS if seconds is None else min(SKIP_POLLS_SECONDS, seconds - _EARLY_SECONDS)
        claim.skip_polls_until = self._clock() + wait

    def pass_on(self, claim: WaitingClaim, task_type: str, *, is_unfit: bool) -> None:
        """Wake another claim for the job that a woken one does not take.

        Only later claims are considered, so that two cannot wake each other forever. The next one must belong to
        another worker and, if the job is unfit for such workers, have another filter.
        """
        behind = itertools.dropwhile(lambda other: other is not claim, self._claims)
        for other in itertools.islice(behind, 1, None):
            if (
                other.is_woken
                or task_type not in other.task_types
                or other.claimant.worker_id == claim.claimant.worker_id
            ):
                continue
            if not is_unfit or other.claimant.admission != claim.claimant.admission:
                other.wake(task_type)
                return
        # The job waits for a future claim.
        self._empty_types.discard(task_type)

    @contextlib.contextmanager
    def enter(
        self, claim_id: UUID, task_types: frozenset[str], claimant: Claimant = ANY_WORKER
    ) -> Iterator[WaitingClaim]:
        """Enter the room before the first query, so that no notification is missed.

        A second request with the same claim id supersedes the first. A wake-up that the leaving claim has not used goes
        to the next claim.
        """
        earlier = self._by_claim.get(claim_id)
        if earlier is not None:
            earlier.supersede()
        claim = WaitingClaim(task_types, claim_id, claimant)
        self._claims[claim] = None
        self._by_claim[claim_id] = claim
        try:
            yield claim
        finally:
            del self._claims[claim]
            if self._by_claim.get(claim_id) is claim:
                del self._by_claim[claim_id]
            if claim.woken_for is not None:
                self.wake(claim.woken_for)

    def wake(self, task_type: str, count: int = 1, *, is_notification: bool = True) -> None:
        """Wake the first `count` waiting claims of this type that have not been woken yet.

        If waiting claims use all jobs, the type stays empty for later ones. A count of 0 means an unknown number.
        `is_notification` is False for polls, which skip claims by `skip_polls_until`.
        """
        self._notifications[task_type] += 1
        remaining, now = count, self._clock()
        for claim in self._claims:
            if remaining <= 0:
                break
            is_skipped = not is_notification and claim.skip_polls_until > now
            if not claim.is_woken and not is_skipped and task_type in claim.task_types:
                claim.wake(task_type)
                remaining -= 1
        if remaining or not count:
            self._empty_types.discard(task_type)

    def drain(self) -> None:
        """Release all claims, and park no others."""
        self.is_draining = True
        for claim in list(self._claims):
            claim.notify()
