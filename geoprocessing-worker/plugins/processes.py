"""The processes that jobs are done in, as the settings want them."""

from __future__ import annotations

import os
from typing import TypeVar

from pydantic import BaseModel

from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import WORKER_TROUBLE, ConfigurationError, JobError
from geoprocessing_worker.handlers import Payload
from geoprocessing_worker.plugins.calls import CHECK, Checked
from geoprocessing_worker.plugins.registry import Tasks
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import ChildFunction, Sandbox

Asked = TypeVar("Asked")
Made = TypeVar("Made", bound=BaseModel)


def make_sandbox(
    settings: Settings,
    tasks: Tasks,
    work: ChildFunction[Asked, Made],
    result: type[Made],
    *,
    umask: int = Limits.umask,
) -> Sandbox[Asked, Made]:
    """A sandbox for the work of any of the tasks' handlers.

    Args:
        settings: their limits.
        tasks: what they want to have in memory.
        work: what a child does.
        result: what it must give.
        umask: for whom the files are that it makes.
    """
    limits = Limits(
        memory_bytes=settings.max_memory_mb * 1024**2,
        # Two threads decode and warp; beyond that the time a job may take is the limit that counts.
        cpu_seconds=max(1, round(2 * settings.max_processing_time)) if settings.enable_job_timeouts else None,
        umask=umask,
    )
    # The last one freezes what was imported before it.
    return Sandbox(
        work,
        result,
        preload=(*tasks.preload, "geoprocessing_worker.tasks.preload"),
        limits=limits,
        most=settings.concurrent_jobs,
    )


async def check_defaults(settings: Settings, tasks: Tasks) -> None:
    """Check the settings that are defaults of payloads, in child processes: PROJ parses some of them.

    Settings that equal a payload's own default are not checked, so most workers start without such a process.

    Raises:
        ConfigurationError: a setting is no default for a payload.
    """
    box: Sandbox[Payload, Checked] = make_sandbox(settings, tasks, CHECK, Checked)
    for task in tasks:
        plain = task.handler.payload()
        for name, setting in task.handler.settings.items():
            value = getattr(task.defaults, name)
            if value == getattr(plain, name):
                continue
            try:
                await box.run(
                    plain.model_copy(update={name: value}),
                    lambda *_: None,
                    AllowedPaths(task.libraries, (), task.import_roots),
                )
            except JobError as error:
                if error.code != WORKER_TROUBLE:  # the host's trouble keeps the worker from claims, not from its start
                    raise ConfigurationError(f"{setting.upper()}: {error.message}") from None


def own_umask() -> int:
    """The process's own, for files that a person asked for."""
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
