"""The checks of the worker's host before claims. Trouble stops claiming and costs no job an attempt."""

import asyncio
from collections.abc import Callable
from typing import Any

from geoprocessing_worker import host
from geoprocessing_worker.config import Settings
from geoprocessing_worker.host import Trouble
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.wire.contact import Contact
from geoprocessing_worker.wire.virus_scan import Scanner

# A child that ended normally within these seconds proves the sandbox.
PROVED_FOR = 20.0

HOST_CHECKS: tuple[Callable[[Settings], Trouble | None], ...] = (host.disk, host.memory)


async def look(
    settings: Settings,
    sandbox: Sandbox[Any, Any],
    contact: Contact,
    scanner: Scanner | None,
    *,
    thorough: bool = False,
) -> tuple[Trouble, ...]:
    """Return local trouble.

    Args:
        settings: of the worker.
        sandbox: runs the jobs.
        contact: has the clock difference.
        scanner: clamd, if files are scanned.
        thorough: try the sandbox even if a child has just proved it.
    """
    troubles = await asyncio.to_thread(_check_host, settings, scanner)
    troubles += [
        trouble
        for trouble in (await _sandbox(sandbox, 0.0 if thorough else PROVED_FOR), host.clock(contact.clock_offset))
        if trouble is not None
    ]
    return tuple(troubles)


def _check_host(settings: Settings, scanner: Scanner | None) -> list[Trouble]:
    troubles = [trouble for check in HOST_CHECKS if (trouble := check(settings)) is not None]
    if scanner is not None:
        try:
            scanner.ping()
        except OSError as error:
            troubles.append(
                Trouble("scanner", f"{error}; start clamd, correct CLAMD_ADDRESS or unset SCAN_FOR_MALWARE")
            )
    return troubles


async def _sandbox(sandbox: Sandbox[Any, Any], proved_for: float) -> Trouble | None:
    if sandbox.is_proved(proved_for):
        return None
    try:
        await sandbox.warm_up()
    except (RuntimeError, TimeoutError) as error:
        return host.no_process(str(error) or "it did not end")
    return None
