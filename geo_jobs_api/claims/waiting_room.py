"""Claims that wait: parked in the order they came, and woken one for each job that can be claimed.

A claim for task types that are known to be empty is parked without a look of its own: a notification would have said
so if that had changed. What only the database can tell about such claims (do they repeat one whose answer was lost?)
is asked for all of them at once, seldom.
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

# Claims that were parked unseen wait for company: 500 of them then cost one statement in this time. A repeated claim
# whose answer was lost is answered after it at the latest, well within the first lease.
COMPANY_SECONDS = 2.5
# A claim that found only jobs for other workers looks again after this time, or when it hears of a new job.
VAIN_SECONDS = 5.0
# The database's clock and ours agree no better than this about when a job may go to the worker that failed it.
_EARLY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Asker:
    """The worker behind a claim, and what decides which jobs it takes."""

    worker_id: str = ""
    admission: tuple[object, ...] = ()


ANYBODY = Asker()


@dataclass(eq=False, slots=True)
class Ticket:
    """The place of one waiting claim. Until `vain_until`, a poll need not wake it: what there is, is not for it."""

    task_types: frozenset[str]
    claim_id: UUID
    asker: Asker = ANYBODY
    vain_until: float = 0.0
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    woken_for: str | None = None
    superseded: bool = False

    def wake(self, task_type: str) -> None:
        """Tell the claim to look; `task_type` is what there is to be had."""
        self.woken_for = task_type
        self._event.set()

    def look_again(self) -> str | None:
        """To be called before each look, so that what happens during it is not missed; what the claim was woken for."""
        woken_for, self.woken_for = self.woken_for, None
        self._event.clear()
        return woken_for

    def look_now(self) -> None:
        """Tell the claim to look, for a reason that is its own."""
        self._event.set()

    def supersede(self) -> None:
        """A later request with the same claim id has taken over."""
        self.superseded = True
        self._event.set()

    @property
    def is_woken(self) -> bool:
        """Whether there is a reason to look."""
        return self._event.is_set()

    async def wait(self, seconds: float) -> bool:
        """Wait to be woken; False when the time ran out."""
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
        self._tickets: dict[Ticket, None] = {}
        self._by_claim: dict[UUID, Ticket] = {}
        self._unseen: set[Ticket] = set()
        self._parked = 0
        self._is_listening = False
        self._empty_types: set[str] = set()
        self._news: Counter[str] = Counter()
        self.is_draining = False
        # Set when it is worth while to look what there is, and for when.
        self.look = asyncio.Event()
        # Set when a claim was parked unseen: worth a look, but it can wait for company.
        self.unseen_came = asyncio.Event()

    def __len__(self) -> int:
        """How many claims wait."""
        return self._parked

    async def park(self, ticket: Ticket, seconds: float, *, unseen: bool = False) -> bool:
        """Wait to be woken; False when the time ran out. `unseen`: the database was not asked for this claim yet."""
        if self._parked == 0:
            # Nobody has looked for a while: a job may be due in a moment.
            self.look.set()
        if unseen:
            self._unseen.add(ticket)
            self.unseen_came.set()
        self._parked += 1
        PARKED_CLAIMS.inc()
        try:
            return await ticket.wait(seconds)
        finally:
            self._parked -= 1
            PARKED_CLAIMS.dec()
            self._unseen.discard(ticket)

    def list_unseen(self) -> list[Ticket]:
        """The claims that the database was not asked for yet."""
        return list(self._unseen)

    def note_seen(self, tickets: Iterable[Ticket]) -> None:
        """The database was asked for these."""
        self._unseen.difference_update(tickets)

    def wake_claims(self, claim_ids: Iterable[UUID]) -> None:
        """Have these claims look: there is something for them and for nobody else."""
        for claim_id in claim_ids:
            if (ticket := self._by_claim.get(claim_id)) is not None:
                ticket.look_now()

    def wanted_types(self) -> list[str]:
        """The task types that somebody waits for."""
        return sorted({name for ticket in self._tickets for name in ticket.task_types})

    def count_news(self, task_types: Iterable[str]) -> int:
        """Rises with everything that is heard of these types; to be read before a look, for `note_empty`."""
        return sum(self._news[name] for name in task_types)

    def note_empty(self, task_types: Iterable[str], news_before: int) -> None:
        """A look found less than it wanted; nothing is known any more if there was news of these types meanwhile."""
        types = frozenset(task_types)
        if self._is_listening and self.count_news(types) == news_before:
            self._empty_types |= types

    def is_known_empty(self, task_types: Iterable[str]) -> bool:
        """Whether a look would be in vain: nothing was there, and nothing was heard since."""
        return self._empty_types.issuperset(task_types)

    def set_listening(self, is_listening: bool) -> None:
        """Without somebody who listens, nothing can be known to be empty."""
        self._is_listening = is_listening
        self._empty_types.clear()

    def note_vain(self, ticket: Ticket, seconds: float | None) -> None:
        """A look found jobs, but for other workers. For `seconds` at most, polls need not wake this claim for them."""
        wait = VAIN_SECONDS if seconds is None else min(VAIN_SECONDS, seconds - _EARLY_SECONDS)
        ticket.vain_until = self._clock() + wait

    def pass_on(self, ticket: Ticket, task_type: str, *, is_unfit: bool) -> None:
        """Wake another claim for the job that a woken one does not take.

        Only claims behind it are asked, so that two cannot wake each other forever. The next one must belong to another
        worker and, if the job is unfit for such workers, to one that takes other jobs.
        """
        behind = itertools.dropwhile(lambda other: other is not ticket, self._tickets)
        for other in itertools.islice(behind, 1, None):
            if other.is_woken or task_type not in other.task_types or other.asker.worker_id == ticket.asker.worker_id:
                continue
            if not is_unfit or other.asker.admission != ticket.asker.admission:
                other.wake(task_type)
                return
        # The job waits for a worker that has yet to come.
        self._empty_types.discard(task_type)

    @contextlib.contextmanager
    def enter(self, claim_id: UUID, task_types: frozenset[str], asker: Asker = ANYBODY) -> Iterator[Ticket]:
        """Take a place before the first look, so that no notification falls in between.

        A second request with the same claim id takes the place of the first: its client has given that one up.
        A wake-up that the leaving claim has not answered goes to the next in line.
        """
        earlier = self._by_claim.get(claim_id)
        if earlier is not None:
            earlier.supersede()
        ticket = Ticket(task_types, claim_id, asker)
        self._tickets[ticket] = None
        self._by_claim[claim_id] = ticket
        try:
            yield ticket
        finally:
            del self._tickets[ticket]
            if self._by_claim.get(claim_id) is ticket:
                del self._by_claim[claim_id]
            if ticket.woken_for is not None:
                self.wake(ticket.woken_for)

    def wake(self, task_type: str, count: int = 1, *, is_news: bool = True) -> None:
        """Wake the first `count` waiting claims that can do this type and have not been woken yet.

        What all goes to those who wait is nothing for who comes later: the type stays empty for them, and they wait
        behind the others. With 0 nothing is known of how much there is. Without news, claims that have just looked at
        the same jobs in vain are left alone.
        """
        self._news[task_type] += 1
        left, now = count, self._clock()
        for ticket in self._tickets:
            if left <= 0:
                break
            is_vain = not is_news and ticket.vain_until > now
            if not ticket.is_woken and not is_vain and task_type in ticket.task_types:
                ticket.wake(task_type)
                left -= 1
        if left or not count:
            self._empty_types.discard(task_type)

    def drain(self) -> None:
        """Send everybody away, now and from now on."""
        self.is_draining = True
        for ticket in list(self._tickets):
            ticket.look_now()
