"""Workers for the benchmark of limits: some work, some die with what they hold, some hang for ever."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
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


@dataclass
class Fleet:
    """Workers that complete what they claim at once, spread over the APIs, until they are stopped.

    Args:
        apis: where they ask, in turn.
        size: how many there are.
    """

    apis: Sequence[ApiProcess]
    size: int
    completed: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Let them begin."""
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(self.size)]

    async def _work(self, number: int) -> None:
        client = BareClient(self.apis[number % len(self.apis)].port)
        try:
            while True:
                try:
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

    def kill_one(self) -> None:
        """One dies wherever it stands, and another one takes its place."""
        number = random.randrange(self.size)  # noqa: S311  # no secret
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


async def hang(api: ApiProcess, task_type: str, pause: float = 0.3) -> None:
    """A worker whose jobs never end, and whose heartbeats never stop until it hears that the lease is lost."""
    client = BareClient(api.port)
    try:
        while True:
            status, answer = await client.claim(20, task_type=task_type)
            while status == 200:
                status, _ = await client.on_job("heartbeat", answer["jobs"][0], {})
                await asyncio.sleep(pause)
    finally:
        client.close()
