"""The waiting room: who is woken, and for what."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from geo_jobs_api.claims.waiting_room import WaitingRoom

PNG, COG = frozenset({"png"}), frozenset({"cog"})


async def test_as_many_are_woken_as_there_are_jobs_the_first_ones_who_can_do_them() -> None:
    """In the order they came; who is woken already, or offers other types, is passed over."""
    room = WaitingRoom()
    with (
        room.enter(uuid4(), PNG) as first,
        room.enter(uuid4(), COG) as other,
        room.enter(uuid4(), PNG | COG) as second,
        room.enter(uuid4(), PNG) as third,
    ):
        room.wake("png")
        room.wake("png")
        assert [ticket.is_woken for ticket in (first, other, second, third)] == [True, False, True, False]
        room.wake("cog", 5)
        assert [ticket.is_woken for ticket in (first, other, second, third)] == [True, True, True, False]


async def test_a_wake_up_that_nobody_answered_goes_to_the_next_in_line() -> None:
    """A claim that leaves with another job, or hangs up, must not take the notification with it."""
    room = WaitingRoom()
    with room.enter(uuid4(), PNG) as waiting:
        with room.enter(uuid4(), COG), room.enter(uuid4(), PNG):
            waiting.wake("png")
            room.wake("png")
            waiting.reset()
            assert not waiting.is_woken
        assert waiting.is_woken


async def test_who_comes_later_waits_behind_those_who_were_woken() -> None:
    """One more look for each job would be in vain; but nobody waits for what is left over, or unknown."""
    room = WaitingRoom()
    room.set_listening(True)
    room.mark_empty(PNG, 0)
    with room.enter(uuid4(), PNG), room.enter(uuid4(), PNG):
        room.wake("png", 2)
        assert room.is_known_empty(PNG)
        room.wake("png", 1)
        assert not room.is_known_empty(PNG)
    room.mark_empty(PNG, room.count_notifications(PNG))
    room.wake("png", 0)
    assert not room.is_known_empty(PNG)


async def test_what_happens_while_a_claim_looks_is_not_missed() -> None:
    """A notification between the look and the wait ends the wait at once."""
    room = WaitingRoom()
    with room.enter(uuid4(), PNG) as ticket:
        ticket.reset()
        room.wake("png")
        async with asyncio.timeout(5):
            assert await room.park(ticket, 60)


async def test_the_first_to_park_has_the_database_looked_at() -> None:
    """A job may be due in a moment; while others wait already, the timer knows."""
    room = WaitingRoom()
    with room.enter(uuid4(), PNG) as ticket:
        assert not room.poll_requested.is_set()
        assert not await room.park(ticket, 0)
        assert room.poll_requested.is_set()
    assert len(room) == 0


async def test_a_repeated_claim_sends_the_earlier_request_away() -> None:
    """One claim id, one place."""
    room, claim_id = WaitingRoom(), UUID(int=1)
    with room.enter(claim_id, PNG) as first, room.enter(claim_id, PNG) as second:
        assert (first.superseded, second.superseded) == (True, False)
