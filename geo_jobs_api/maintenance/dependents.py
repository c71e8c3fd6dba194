"""Releases the jobs that wait for ended ones, where an ending had too many for its own statement."""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

import psycopg

from geo_jobs_api.log import OutageLog, get_logger

_log = get_logger(__name__)


class PendingReleases(Protocol):
    """Who knows which ends have not been followed yet."""

    async def release_pending(self) -> int:
        """Do one statement's work; how many ends were looked at."""


class DependentsReleaser:
    """Has those go on that wait for ended jobs, where they were too many for the statement that ended those.

    Args:
        source: the database.
        interval_seconds: between two statements, so that others have their turn.
        rest_seconds: between two looks when there was nothing.
    """

    def __init__(self, source: PendingReleases, *, interval_seconds: float, rest_seconds: float) -> None:
        self._source = source
        self._outage = OutageLog(_log, "follow_failed")
        self._interval_seconds = interval_seconds
        self._rest_seconds = rest_seconds

    async def run(self) -> None:
        """Work until cancelled."""
        pause = self._interval_seconds
        while True:
            # Jitter, so that several processes do not ask in step.
            await asyncio.sleep(pause * random.uniform(1, 1.2))  # noqa: S311  # no secret
            try:
                endings = await self._source.release_pending()
                self._outage.worked()
            except (psycopg.Error, OSError) as error:
                self._outage.failed(error)
                endings = 0
            pause = self._interval_seconds if endings else self._rest_seconds
