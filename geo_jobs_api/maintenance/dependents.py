"""Releases dependents that exceeded the limit of the statement that ended their parent."""

from __future__ import annotations

from geo_jobs_api.maintenance.store import MaintenanceStore
from geo_jobs_api.periodic import Periodic


def release_periodically(store: MaintenanceStore, *, interval_seconds: float, rest_seconds: float) -> Periodic:
    """Return the loop that releases them: one batch per interval, and one query per rest while there are none."""

    async def release() -> float:
        return interval_seconds if await store.release_pending() else rest_seconds

    return Periodic(
        release,
        "release_failed",
        retry_seconds=rest_seconds,
        first_seconds=interval_seconds,
        jitter_seconds=interval_seconds / 5,
    )
