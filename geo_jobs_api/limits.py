"""Limits per caller on rate and concurrency, in the memory of this process."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from contextvars import ContextVar

from geo_jobs_api.errors import Problem

# Remembered callers. A forgotten caller starts with a full bucket.
_MAX_KEYS = 10_000


# The caller of the current request, for its share of the connections. None: the service itself, or a worker.
CALLER: ContextVar[str | None] = ContextVar("caller", default=None)


class KeyedSemaphore:
    """A semaphore per key, so that no key holds everything.

    Args:
        each: limit per key.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._places: dict[Hashable, asyncio.Semaphore] = {}
        self._users: Counter[Hashable] = Counter()

    @asynccontextmanager
    async def hold(self, key: Hashable, seconds: float) -> AsyncIterator[None]:
        """Hold one for the block. Problem `rate_limited` when the key's limit stayed reached for `seconds`."""
        place = self._places.setdefault(key, asyncio.Semaphore(self._each))
        self._users[key] += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    await place.acquire()
            except TimeoutError:
                detail = "Your other requests hold your share of the connections to the database. Send fewer at once."
                raise Problem("rate_limited", detail, headers={"Retry-After": "1"}) from None
            try:
                yield
            finally:
                place.release()
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._places[key]


class RateLimit:
    """A token bucket per key.

    Args:
        per_second: refill rate.
        burst: capacity.
        clock: monotonic seconds.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable) -> None:
        """Count one request. Problem `rate_limited` when the bucket is empty."""
        self.check(key)
        self._buckets[key] = (self._level(key) - 1, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MAX_KEYS:
            self._buckets.popitem(last=False)

    def check(self, key: Hashable) -> None:
        """Raise Problem `rate_limited` when the bucket is empty, without counting."""
        level = self._level(key)
        if level < 1:
            seconds = max(1, math.ceil((1 - level) / self._per_second))
            detail = f"Too many requests. Try again in {seconds} s."
            raise Problem("rate_limited", detail, headers={"Retry-After": str(seconds)})

    def _level(self, key: Hashable) -> float:
        level, then = self._buckets.get(key, (float(self._burst), self._clock()))
        return min(float(self._burst), level + (self._clock() - then) * self._per_second)
