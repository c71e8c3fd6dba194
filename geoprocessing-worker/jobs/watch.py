"""Work that other tasks may stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error
    """The worker is stopping."""


async def stop_when(event: asyncio.Event) -> NoReturn:
    """Raise `Stopped` once the event is set."""
    await event.wait()
    raise Stopped


async def watched(work: Coroutine[Any, Any, T], *watchers: Coroutine[Any, Any, NoReturn]) -> T:
    """Run `work` until it ends or a watcher raises. Then stop the others, and wait for them.

    Not a task group: a result that is ready wins over a watcher's error, and errors come as they are, not in a group.
    """
    working = asyncio.create_task(work)
    tasks = [working, *map(asyncio.create_task, watchers)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working not in done:
            done.pop().result()
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
