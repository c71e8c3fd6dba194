"""Background loops: pauses, wake-ups, outages, restarts."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from structlog.testing import capture_logs

from geo_jobs_api import periodic
from geo_jobs_api.periodic import Periodic, background


async def test_an_outage_is_logged_at_its_start_and_its_end() -> None:
    """After any number of failed rounds, the loop continues."""
    done = asyncio.Event()
    rounds: list[Exception] = [psycopg.OperationalError(), OSError(), psycopg.OperationalError()]

    async def step() -> float:
        if rounds:
            raise rounds.pop()
        if done.is_set():
            return 3600.0
        done.set()
        return 0.0

    with capture_logs() as logged:
        async with background({"loop": Periodic(step, "step_failed", retry_seconds=0.001).run}):
            await asyncio.wait_for(done.wait(), 10)
            await asyncio.sleep(0)
    assert [record["event"] for record in logged] == ["step_failed", "outage_over"]


async def test_a_wake_up_ends_a_pause_also_when_it_comes_during_the_step() -> None:
    """A notification that arrives during the query would otherwise be lost."""
    wake, rounds, done = asyncio.Event(), [0], asyncio.Event()

    async def step() -> float:
        rounds[0] += 1
        if rounds[0] == 1:
            wake.set()
        else:
            done.set()
        return 3600.0

    async with background({"loop": Periodic(step, "step_failed", wake=wake).run}):
        await asyncio.wait_for(done.wait(), 10)
        done.clear()
        wake.set()
        await asyncio.wait_for(done.wait(), 10)


async def test_a_crashed_loop_is_restarted_and_the_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue without its rescuer is worse than a loop that crashes repeatedly."""
    monkeypatch.setattr(periodic, "_RESTART_SECONDS", 0.0)
    rounds, done, other = [0], asyncio.Event(), asyncio.Event()

    async def crash() -> None:
        rounds[0] += 1
        if rounds[0] == 3:
            done.set()
        raise ValueError("a mistake")

    async def work() -> None:
        await done.wait()
        other.set()
        await asyncio.sleep(3600)

    with capture_logs() as logged:
        async with background({"crash": crash, "work": work}):
            await asyncio.wait_for(other.wait(), 10)
    assert {record["event"] for record in logged} == {"background_task_failed"}
