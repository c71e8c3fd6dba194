"""The sandbox of jobs, as configured."""

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

Request = TypeVar("Request")
Result = TypeVar("Result", bound=BaseModel)


def make_sandbox(
    settings: Settings,
    tasks: Tasks,
    work: ChildFunction[Request, Result],
    result: type[Result],
    *,
    umask: int = Limits.umask,
) -> Sandbox[Request, Result]:
    """Return a sandbox for the handlers of all tasks.

    Args:
        settings: have the limits.
        tasks: have the modules to preload.
        work: runs in the child.
        result: model of its result.
        umask: of its output files.
    """
    limits = Limits(
        memory_bytes=settings.max_memory_mb * 1024**2,
        # Two threads decode and warp. The time limit of the job applies before this one.
        cpu_seconds=max(1, round(2 * settings.max_processing_time)) if settings.enable_job_timeouts else None,
        umask=umask,
    )
    # Last, since it freezes all objects made before.
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
        ConfigurationError: a setting is not valid in a payload.
    """
    sandbox: Sandbox[Payload, Checked] = make_sandbox(settings, tasks, CHECK, Checked)
    for task in tasks:
        plain = task.handler.payload()
        for name, setting in task.handler.settings.items():
            value = getattr(task.defaults, name)
            if value == getattr(plain, name):
                continue
            try:
                await sandbox.run(
                    plain.model_copy(update={name: value}),
                    lambda *_: None,
                    AllowedPaths(task.libraries, (), task.import_roots),
                )
            except JobError as error:
                if error.code != WORKER_TROUBLE:  # trouble of the host prevents claims, not the start
                    raise ConfigurationError(f"{setting.upper()}: {error.message}") from None


def own_umask() -> int:
    """Return the umask of this process, for files that a person requests."""
    mask = os.umask(0)  # it can be read only by setting it
    os.umask(mask)
    return mask
