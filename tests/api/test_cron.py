"""Fire times: across daylight saving changes, by rules, and after outages."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geo_jobs_api.schedules.cron import Due, Timing, check_cron, decide_due, join_cron

BERLIN, NEW_YORK, LORD_HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def first(timing: Timing, after: str, number: int) -> list[str]:
    return [f"{tick:%m-%d %H:%M}" for tick in itertools.islice(timing.ticks(utc(after)), number)]


@pytest.mark.parametrize(
    ("zone", "cron", "after", "ticks"),
    [
        # 2026-03-29 02:00 → 03:00: half past two does not exist, and fires at three (01:00 UTC).
        (BERLIN, "30 2 * * *", "2026-03-28T00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        # 2026-10-25 03:00 → 02:00: half past two occurs twice, and fires the first time.
        (BERLIN, "30 2 * * *", "2026-10-24T00:00", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        # Hourly expressions fire in each hour that passes.
        (BERLIN, "0 * * * *", "2026-10-24T23:30", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        (BERLIN, "0 * * * *", "2026-03-28T23:30", ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        (NEW_YORK, "30 2 * * *", "2026-03-07T00:00", ["03-07 07:30", "03-08 07:00", "03-09 06:30"]),
        (NEW_YORK, "30 1 * * *", "2026-10-31T00:00", ["10-31 05:30", "11-01 05:30", "11-02 06:30"]),
        # Half an hour: 2026-10-04 02:00 → 02:30, and 2026-04-05 02:00 → 01:30.
        (LORD_HOWE, "15 2 * * *", "2026-10-02T18:00", ["10-03 15:30", "10-04 15:15", "10-05 15:15"]),
        (LORD_HOWE, "45 1 * * *", "2026-04-03T18:00", ["04-04 14:45", "04-05 15:15", "04-06 15:15"]),
    ],
)
def test_a_change_of_daylight_saving_neither_loses_nor_doubles_a_fire(
    zone: ZoneInfo, cron: str, after: str, ticks: list[str]
) -> None:
    """Skipped times fire right after the change, repeated ones once."""
    assert first(Timing((cron,), zone), after, len(ticks)) == ticks


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, LORD_HOWE])
@pytest.mark.parametrize("cron", ["30 2 * * *", "45 1 * * *", "15 2 * * 0", "*/15 * * * *", "0 * * * *"])
def test_ticks_are_the_same_from_wherever_one_begins(zone: ZoneInfo, cron: str) -> None:
    """Through a year with both changes, the successor of each tick is the next in the list."""
    timing = Timing((cron,), zone)
    ticks = list(itertools.islice(timing.ticks(utc("2026-01-01T00:00")), 400 if "/" not in cron else 3000))
    around = [tick for tick in ticks if tick.month in {3, 4, 10, 11}]
    for tick in around:
        assert timing.next_after(tick - timedelta(microseconds=1)) == tick
        assert (timing.next_after(tick) or tick) > tick


def test_rules_are_times_on_days_and_may_overlap() -> None:
    """A moment in two rules fires once."""
    timing = Timing((join_cron(6, 0, []), join_cron(6, 0, [1]), join_cron(18, 30, [1, 5])), BERLIN)
    assert first(timing, "2026-06-07T10:00", 4) == ["06-08 04:00", "06-08 16:30", "06-09 04:00", "06-10 04:00"]


def test_a_single_moment_and_the_bounds() -> None:
    """A single moment fires once. Nothing fires before the start or after the end."""
    assert first(Timing((), BERLIN, at=utc("2026-05-01T10:00")), "2026-01-01T00:00", 5) == ["05-01 10:00"]
    assert Timing((), BERLIN, at=utc("2026-05-01T10:00")).next_after(utc("2026-05-01T10:00")) is None
    bounded = Timing(("0 0 * * *",), ZoneInfo("UTC"), None, utc("2026-05-01T00:00"), utc("2026-05-02T00:00"))
    assert first(bounded, "2020-01-01T00:00", 5) == ["05-01 00:00", "05-02 00:00"]


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "* * * * * *", "a b c d e", "0 0 31 2 *", "*/0 * * * *"])
def test_an_impossible_cron_expression_is_rejected(cron: str) -> None:
    """The message contains the reason."""
    with pytest.raises(ValueError, match=r"fields|is not a cron expression"):
        check_cron(cron)


HOURLY = Timing(("0 * * * *",), ZoneInfo("UTC"))
DUE, NOW = utc("2026-06-01T03:00"), utc("2026-06-01T07:20")


@pytest.mark.parametrize(
    ("catch_up", "now", "fires", "missed", "upcoming"),
    [
        (0, NOW, [], 7, 8),
        (0, utc("2026-06-01T07:00:59"), [7], None, 8),
        (1, NOW, [7], None, 8),
        (3, NOW, [5, 6], None, 7),
        (0, DUE, [3], None, 4),
    ],
)
def test_missed_fires_follow_catch_up(
    catch_up: int, now: datetime, fires: list[int], missed: int | None, upcoming: int
) -> None:
    """None, one for all, or the latest few, some of them in the next round."""
    due = decide_due(HOURLY, DUE, now, catch_up=catch_up, max_fires=2)
    assert [tick.hour for tick in due.fires] == fires
    assert (due.missed and due.missed.hour, due.next_run_at and due.next_run_at.hour) == (missed, upcoming)


@given(minutes=st.integers(0, 60 * 24 * 400), wanted=st.integers(1, 50))
def test_the_latest_fires_are_the_last_of_all(minutes: int, wanted: int) -> None:
    """Equal to the end of a full count, for an outage of any length."""
    timing = Timing(("7 */5 * * *",), BERLIN)
    start = utc("2026-01-01T00:00")
    now = start + timedelta(minutes=minutes)
    everything = list(itertools.takewhile(lambda tick: tick <= now, timing.ticks(start - timedelta(microseconds=1))))
    assert timing.latest(start, now, wanted) == everything[-wanted:]


def test_a_schedule_that_is_over_has_no_next_moment() -> None:
    """After its end, and after its only moment."""
    once = Timing((), BERLIN, at=DUE)
    assert decide_due(once, DUE, NOW, catch_up=1, max_fires=20) == Due((DUE,), None, None)
    assert decide_due(once, DUE, NOW, catch_up=0, max_fires=20) == Due((), DUE, None)
