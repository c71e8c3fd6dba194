"""Fire times: cron expressions, single moments and rules, in a time zone, and the decision after an outage.

Daylight saving is cronsim's, which follows Debian's cron. A fixed time that a change skips fires right after it. A
repeated one fires the first time. Hourly and minutely expressions fire in each hour that passes.
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

# A fire later than this is missed: the service was down.
GRACE = timedelta(seconds=60)
# First guess of the span of the latest fires.
_FIRST_SPAN = timedelta(hours=1)
_TICK = timedelta(microseconds=1)
# Stored fire times of a schedule, which are also shown.
_MAX_UPCOMING = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """The fire times: ticks of cron expressions, or one moment.

    Attributes:
        crons: expressions of five fields. Empty for a single moment.
        zone: time zone of the expressions.
        at: the single moment.
        start_at: no fire before.
        end_at: no fire after.
    """

    crons: tuple[str, ...]
    zone: ZoneInfo
    at: datetime | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Yield all fire times after `after`, in order, in UTC."""
        if self.start_at is not None and self.start_at > after:
            after = self.start_at - _TICK
        last = after
        for tick in self._raw_ticks(after):
            if self.end_at is not None and tick > self.end_at:
                return
            # Two rules may contain the same moment, and in a repeated hour cronsim starts with the first one.
            if tick > last:
                yield tick
                last = tick

    def _raw_ticks(self, after: datetime) -> Iterator[datetime]:
        if self.at is not None:
            return iter((self.at.astimezone(UTC),))
        start = after.astimezone(self.zone)
        return heapq.merge(*(_utc(CronSim(cron, start)) for cron in self.crons))

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first fire time after `moment`. None: there is none."""
        return next(self.ticks(moment), None)

    def upcoming(self, moment: datetime) -> tuple[datetime, ...]:
        """Return the first few fire times after `moment`."""
        return tuple(itertools.islice(self.ticks(moment), _MAX_UPCOMING))

    def latest(self, first: datetime, now: datetime, limit: int) -> list[datetime]:
        """Return the latest fire times from `first` to `now`, inclusive, up to `limit`."""
        span = _FIRST_SPAN
        while True:
            start = max(first, now - span)
            due = itertools.takewhile(lambda tick: tick <= now, self.ticks(start - _TICK))
            found = deque(due, maxlen=limit)
            if len(found) == limit or start == first:
                return list(found)
            # From a guess instead of `first`, since a year of minutes would take seconds to count.
            span *= 4


def _utc(ticks: Iterator[datetime]) -> Iterator[datetime]:
    return (tick.astimezone(UTC) for tick in ticks)


def check_cron(expression: str) -> str:
    """Return the normalized expression.

    Raises:
        ValueError: it is invalid, or has not five fields. The message names the invalid one.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"has {len(fields)} fields. A cron expression has five: minute hour day month weekday")
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {str(error).lower()}") from error
    return " ".join(fields)


@dataclass(frozen=True, slots=True)
class Due:
    """The due work of a schedule.

    Attributes:
        fires: fire times, oldest first.
        missed: the latest fire time that is skipped. None: none is.
        next_run_at: the next fire time. None: the schedule is over.
    """

    fires: tuple[datetime, ...]
    missed: datetime | None
    next_run_at: datetime | None


def decide_due(timing: Timing, next_run_at: datetime, now: datetime, *, catch_up: int, max_fires: int) -> Due:
    """Decide about the due fires of a schedule at `now`.

    Args:
        timing: the fire times.
        next_run_at: the first undecided fire time.
        now: the time of the decision.
        catch_up: maximum number of missed fires to make up for, the latest ones.
        max_fires: fires in one round. The others follow in the next.
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
    """Return the cron expression of a time on some days of the week (0: Sunday). No days: all."""
    days = ",".join(str(day) for day in sorted(set(days_of_week))) or "*"
    return f"{minute} {hour} * * {days}"
