"""Workers of the limits benchmark, which may die with a job, and a count of running jobs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from benchmarks.queue_load import TASK_TYPE, ApiProcess, BareClient, execute

# Counted at each commit, under a lock held until then, without sampling.
WATCH = """
    CREATE TABLE seen_running (running bigint);
    CREATE FUNCTION watch_running() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(1);
        INSERT INTO seen_running SELECT count(*) FROM jobs WHERE state = 'running' AND task_type = 'noop';
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER watch_running AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'running') EXECUTE FUNCTION watch_running();
"""


UNWATCH = ("DROP TRIGGER watch_running ON jobs", "DROP FUNCTION watch_running", "DROP TABLE seen_running")
# Seconds for which a dead worker's job counts towards a limit.
FIRST_LEASE = 1.0


@dataclass
class Fleet:
    """Workers that complete each job at once, spread over the APIs, until stopped.

    Args:
        apis: the APIs, used in turn.
        size: number of workers.
        at_once: number of workers that may have a job, if the API does not limit it, else None.
    """

    apis: Sequence[ApiProcess]
    size: int
    at_once: int | None = None
    completed: int = 0
    _places: asyncio.Semaphore | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Start them."""
        self._places = None if self.at_once is None else asyncio.Semaphore(self.at_once)
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(self.size)]

    async def _work(self, number: int) -> None:
        client = BareClient(self.apis[number % len(self.apis)].port)
        try:
            while True:
                try:
                    async with self._place():
                        status, answer = await client.claim(20)
                        if status == 200:
                            status, _ = await client.on_job("complete", answer["jobs"][0], {"outputs": []})
                            self.completed += status == 200
                except OSError:
                    # Its API was killed. Connect again once it is back.
                    client.close()
                    await asyncio.sleep(0.05)
        finally:
            client.close()

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold one of the places for workers with a job. A dead worker keeps its place for the length of a lease."""
        if self._places is None:
            yield
            return
        await self._places.acquire()
        try:
            yield
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(FIRST_LEASE, self._places.release)
            raise
        except BaseException:
            self._places.release()
            raise
        self._places.release()

    def kill_one(self, chance: random.Random) -> None:
        """Kill one worker at any point, and replace it."""
        number = chance.randrange(self.size)
        self._tasks[number].cancel()
        self._tasks[number] = asyncio.create_task(self._work(number))

    async def stop(self) -> None:
        """Stop all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_drained(self, url: str, seconds: float) -> bool:
        """Wait until no job is left. Return False if that takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not await asyncio.to_thread(open_jobs, url):
                return True
            await asyncio.sleep(0.2)
        return False


def open_jobs(url: str) -> int:
    """Return the number of open no-op jobs."""
    ((count,),) = execute(
        url, "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running') AND task_type = %s", TASK_TYPE
    )
    return int(count)


def rate(url: str) -> float:
    """Return jobs per second, by the database's clock and count."""
    ((count, span),) = execute(
        url,
        "SELECT count(*), extract(epoch FROM max(finished_at) - min(finished_at))::float8 FROM jobs"
        " WHERE state = 'succeeded' AND task_type = %s",
        TASK_TYPE,
    )
    return float(count / span) if span else float("nan")


async def kill_at_random(fleet: Fleet, seed: int) -> None:
    """Kill a worker or, one time in five, an API and restart it, two or three times a second, until cancelled."""
    chance = random.Random(seed)  # noqa: S311  # no secret
    while True:
        await asyncio.sleep(chance.uniform(0.2, 0.5))
        if chance.random() < 0.8:
            fleet.kill_one(chance)
            continue
        api = chance.choice(fleet.apis)
        if api.process is not None:
            api.process.kill()
            await asyncio.to_thread(api.process.wait)
            await asyncio.to_thread(api.start)
