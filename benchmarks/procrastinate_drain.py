"""Procrastinate's rate for no-op tasks, for comparison."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import procrastinate

CONCURRENCY = 10
app = procrastinate.App(connector=procrastinate.PsycopgConnector())


@app.task(name="noop")
async def noop() -> None:
    """Do nothing."""


async def drain(url: str, count: int) -> float:
    """Return jobs per second, from the start of a worker until the queue is empty."""
    logging.disable(logging.INFO)
    connector = procrastinate.PsycopgConnector(conninfo=url, max_size=CONCURRENCY + 2)
    with app.replace_connector(connector) as ours:
        async with ours.open_async():
            await noop.batch_defer_async(*({} for _ in range(count)))
            began = time.perf_counter()
            await ours.run_worker_async(concurrency=CONCURRENCY, wait=False, install_signal_handlers=False)
            return count / (time.perf_counter() - began)


async def prepare(url: str) -> None:
    """Create its tables."""
    with app.replace_connector(procrastinate.PsycopgConnector(conninfo=url)) as ours:
        async with ours.open_async():
            await ours.schema_manager.apply_schema_async()


if __name__ == "__main__":
    # In its own process, like a worker.
    if sys.argv[1] == "prepare":
        asyncio.run(prepare(sys.argv[2]))
    else:
        print(asyncio.run(drain(sys.argv[2], int(sys.argv[3]))))
