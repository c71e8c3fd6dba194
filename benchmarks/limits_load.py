"""Workers for the benchmark of limits, which may die with what they hold, and a watch that counts what runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from benchmarks.queue_load import TASK_TYPE, ApiProcess, BareClient, execute

# Counted when a transaction commits, under a lock that is held until then: no sampling, no luck.
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
# Seconds that a dead worker's job keeps its place under a limit.
FIRST_LEASE = 1.0


@dataclass
class Fleet:
    """Workers that complete what they claim at once, spread over the APIs, until they are stopped.

    Args:
        apis: where they ask, in turn.
        size: how many there are.
        at_once: how many of them may have a job, where the API does not limit that; None where it does.
    """

    apis: Sequence[ApiProcess]
    size: int
    at_once: int | None = None
    completed: int = 0
    _places: asyncio.Semaphore | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Let them begin."""
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
                    # Its API was killed; another connection is made once it is back.
                    client.close()
                    await asyncio.sleep(0.05)
        finally:
            client.close()

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the places for those that have a job; who dies keeps it for as long as the lease would last."""
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
        """One dies wherever it stands, and another one takes its place."""
        number = chance.randrange(self.size)
        self._tasks[number].cancel()
        self._tasks[number] = asyncio.create_task(self._work(number))

    async def stop(self) -> None:
        """Stop all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until_drained(self, url: str, seconds: float) -> bool:
        """Wait until no job is left; False when that takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not await asyncio.to_thread(open_jobs, url):
                return True
            await asyncio.sleep(0.2)
        return False


def open_jobs(url: str) -> int:
    """How many jobs that do nothing have not ended."""
    ((count,),) = execute(
        url, "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running') AND task_type = %s", TASK_TYPE
    )
    return int(count)


def rate(url: str) -> float:
    """Jobs per second, by the database's own clock and count."""
    ((count, span),) = execute(
        url,
        "SELECT count(*), extract(epoch FROM max(finished_at) - min(finished_at))::float8 FROM jobs"
        " WHERE state = 'succeeded' AND task_type = %s",
        TASK_TYPE,
    )
    return float(count / span) if span else float("nan")


async def kill_at_random(fleet: Fleet, seed: int) -> None:
    """Kill a worker or, one time in five, an API, which is started again; two or three times a second, for ever."""
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
