"""The waiting room: the order and the reasons of wake-ups."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from geo_jobs_api.claims.waiting_room import WaitingRoom

PNG, COG = frozenset({"png"}), frozenset({"cog"})


async def test_each_job_wakes_the_first_suitable_claim() -> None:
    """In arrival order, skipping claims that are woken already or offer other types."""
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


async def test_an_unused_wake_up_goes_to_the_next_claim() -> None:
    """A claim that leaves with another job, or disconnects, must not take the notification with it."""
    room = WaitingRoom()
    with room.enter(uuid4(), PNG) as waiting:
        with room.enter(uuid4(), COG), room.enter(uuid4(), PNG):
            waiting.wake("png")
            room.wake("png")
            waiting.reset()
            assert not waiting.is_woken
        assert waiting.is_woken


async def test_later_claims_wait_behind_woken_ones() -> None:
    """Another query per job would find nothing. Surplus or unknown jobs keep no claim waiting."""
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


async def test_a_notification_during_a_query_is_not_missed() -> None:
    """A notification between the query and the wait ends the wait at once."""
    room = WaitingRoom()
    with room.enter(uuid4(), PNG) as ticket:
        ticket.reset()
        room.wake("png")
        async with asyncio.timeout(5):
            assert await room.park(ticket, 60)


async def test_the_first_parked_claim_requests_a_poll() -> None:
    """A job may be due soon. With other claims waiting, the timer is set already."""
    room = WaitingRoom()
    with room.enter(uuid4(), PNG) as ticket:
        assert not room.poll_requested.is_set()
        assert not await room.park(ticket, 0)
        assert room.poll_requested.is_set()
    assert len(room) == 0


async def test_a_repeated_claim_releases_the_earlier_request() -> None:
    """One claim id has one place."""
    room, claim_id = WaitingRoom(), UUID(int=1)
    with room.enter(claim_id, PNG) as first, room.enter(claim_id, PNG) as second:
        assert (first.superseded, second.superseded) == (True, False)
