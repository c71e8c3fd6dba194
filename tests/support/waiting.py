"""Wait for conditions instead of time."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Return as soon as the condition holds. TimeoutError if it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes cannot set an event here
            await asyncio.sleep(0.01)


async def in_thread(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Return the result of a blocking call, while the test's own server continues to answer."""
    return await asyncio.to_thread(call, *arguments, **named)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 15, *, pause: float = 0.005) -> None:
    """Check a condition after each pause until it holds. AssertionError if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for: {what}"
        time.sleep(pause)
