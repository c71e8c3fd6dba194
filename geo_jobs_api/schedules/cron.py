"""When a schedule fires: cron expressions, single moments and rules, in a time zone; and what is due after an outage.

Daylight saving is cronsim's, which does as Debian's cron does: a fixed time that a change skips fires right after it,
one that comes twice fires the first time, and what fires by the hour or the minute fires in each hour that passes.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

# A fire that is later than this was missed: the service was away.
GRACE = timedelta(seconds=60)
# The first guess of how far back the latest fires lie.
_FIRST_SPAN = timedelta(hours=1)
_TICK = timedelta(microseconds=1)
# Moments of a schedule that are stored and shown.
_MAX_UPCOMING = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """When to fire: at each tick of some cron expressions, or at one moment.

    Attributes:
        crons: expressions of five fields; empty for a single moment.
        zone: where they are meant.
        at: the single moment.
        start_at: not before.
        end_at: not after.
    """

    crons: tuple[str, ...]
    zone: ZoneInfo
    at: datetime | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """All moments to fire later than `after`, in order, in UTC."""
        if self.start_at is not None and self.start_at > after:
            after = self.start_at - _TICK
        last = after
        for tick in self._raw_ticks(after):
            if self.end_at is not None and tick > self.end_at:
                return
            # Two rules may mean the same moment, and of an hour that comes twice cronsim starts in the first.
            if tick > last:
                yield tick
                last = tick

    def _raw_ticks(self, after: datetime) -> Iterator[datetime]:
        if self.at is not None:
            return iter((self.at.astimezone(UTC),))
        start = after.astimezone(self.zone)
        return heapq.merge(*(_utc(CronSim(cron, start)) for cron in self.crons))

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment to fire later than `moment`; None when there is none."""
        return next(self.ticks(moment), None)

    def upcoming(self, moment: datetime) -> tuple[datetime, ...]:
        """The first few moments to fire later than `moment`."""
        return tuple(itertools.islice(self.ticks(moment), _MAX_UPCOMING))

    def latest(self, first: datetime, now: datetime, limit: int) -> list[datetime]:
        """The latest moments to fire, at most so many, from `first` to `now`, both included."""
        span = _FIRST_SPAN
        while True:
            start = max(first, now - span)
            due = itertools.takewhile(lambda tick: tick <= now, self.ticks(start - _TICK))
            found = deque(due, maxlen=limit)
            if len(found) == limit or start == first:
                return list(found)
            # From a guess and not from the beginning: a year of minutes would take seconds to count.
            span *= 4


def _utc(ticks: Iterator[datetime]) -> Iterator[datetime]:
    return (tick.astimezone(UTC) for tick in ticks)


def check_cron(expression: str) -> str:
    """The expression, in one spelling.

    Raises:
        ValueError: it cannot be read, or has not five fields; the message says which is wrong.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"has {len(fields)} fields; a cron expression has five: minute hour day month weekday")
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"cannot be read as a cron expression: {str(error).lower()}") from error
    return " ".join(fields)


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done for a schedule now.

    Attributes:
        fires: moments to fire for, the oldest first.
        missed: the latest moment that is given up; None: none is.
        next_run_at: the moment to look again; None: the schedule is over.
    """

    fires: tuple[datetime, ...]
    missed: datetime | None
    next_run_at: datetime | None


def decide_due(timing: Timing, next_run_at: datetime, now: datetime, *, catch_up: int, max_fires: int) -> Due:
    """Decide what to do at `now` for a schedule that is due.

    Args:
        timing: when it fires.
        next_run_at: the first undecided fire time.
        now: the time of the decision.
        catch_up: fire at most so many of the latest due times; 0: none that was missed.
        max_fires: fires in one round. The others come next.
    """
    latest = timing.latest(next_run_at, now, max(1, catch_up))
    if not latest:
        return Due((), None, timing.next_after(now))
    if not catch_up and now - latest[-1] > GRACE:
        return Due((), latest[-1], timing.next_after(now))
    if len(latest) > max_fires:
        return Due(tuple(latest[:max_fires]), None, latest[max_fires])
    return Due(tuple(latest), None, timing.next_after(now))


def join_cron(hour: int, minute: int, days_of_week: Sequence[int]) -> str:
    """The cron expression of a time on some days of the week (0: Sunday); no days mean all."""
    days = ",".join(str(day) for day in sorted(set(days_of_week))) or "*"
    return f"{minute} {hour} * * {days}"
