"""Background loops: a step, then a pause that a wake-up may end. An outage of the database is logged once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import psycopg

from geo_jobs_api.log import OutageLog, get_logger

_log = get_logger(__name__)
_RESTART_SECONDS = 1.0


class Periodic:
    """Runs a step again and again.

    Args:
        step: one round. Returns the seconds until the next.
        outage: log event of the first round that fails for an outage.
        retry_seconds: mean pause after a failed round, which no wake-up ends.
        first_seconds: pause before the first round.
        jitter_seconds: upper bound of a random addition to each pause, so that processes do not run in step.
        wake: ends a pause when set.
    """

    def __init__(  # noqa: PLR0913  # the parts of a loop
        self,
        step: Callable[[], Awaitable[float]],
        outage: str,
        *,
        retry_seconds: float = 2.0,
        first_seconds: float = 0.0,
        jitter_seconds: float = 0.0,
        wake: asyncio.Event | None = None,
    ) -> None:
        self._step = step
        self._outage = OutageLog(_log, outage)
        self._retry_seconds = retry_seconds
        self._first_seconds = first_seconds
        self._jitter_seconds = jitter_seconds
        self._wake = wake or asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        await self._pause(self._first_seconds)
        while True:
            self._wake.clear()
            try:
                pause = await self._step()
            except (psycopg.Error, OSError) as error:
                self._outage.failed(error)
                await asyncio.sleep(self._retry_seconds * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
            else:
                self.worked()
                await self._pause(pause)

    def worked(self) -> None:
        """Note the end of an outage. Only steps that do not return call this."""
        self._outage.worked()

    async def _pause(self, seconds: float) -> None:
        seconds += random.uniform(0, self._jitter_seconds)  # noqa: S311  # no secret
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()


@contextlib.asynccontextmanager
async def background(loops: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Run loops beside the body, by their names. One that crashes is logged and started again."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_keep_running(name, run), name=name) for name, run in loops.items()]
        yield
        for task in tasks:
            task.cancel()


async def _keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001  # a queue without its rescuer is worse
            _log.exception("background_task_failed", task=name)
        await asyncio.sleep(_RESTART_SECONDS)
