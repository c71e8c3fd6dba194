"""Releases dependents that exceeded the limit of the statement that ended their parent."""

from __future__ import annotations

from typing import Protocol

from geo_jobs_api.maintenance.periodic import Periodic


class PendingReleases(Protocol):
    """Store of ended jobs with dependents left over."""

    async def release_pending(self) -> int:
        """Release one batch. Return the number of ended jobs processed."""


def release_periodically(source: PendingReleases, *, interval_seconds: float, rest_seconds: float) -> Periodic:
    """Return the loop that releases them: one batch per interval, and one query per rest while there are none."""

    async def release() -> float:
        return interval_seconds if await source.release_pending() else rest_seconds

    return Periodic(
        release,
        "release_failed",
        retry_seconds=rest_seconds,
        first_seconds=interval_seconds,
        jitter_seconds=interval_seconds / 5,
    )
