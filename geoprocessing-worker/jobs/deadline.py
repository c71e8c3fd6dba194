"""The time limit of one job: the operator's or the API's, which may change while the job runs."""

from __future__ import annotations

import asyncio
from types import TracebackType

from geoprocessing_worker.config import Settings


class Deadline:
    """A timeout around the parts of a job's work, counted from the beginning of the first part.

    Args:
        settings: `MAX_PROCESSING_TIME`, and `ENABLE_JOB_TIMEOUTS`, without which there is no limit.
        seconds: the API's limit, None for none.
    """

    def __init__(self, settings: Settings, seconds: float | None) -> None:
        self._settings = settings
        self._began: float | None = None
        self.limit = self._lesser(seconds)
        self._timeout: asyncio.Timeout | None = None

    def change(self, seconds: float | None) -> None:
        """Apply a new limit of the API. A job that has already taken longer ends at once."""
        limit = self._lesser(seconds)
        if limit == self.limit:
            return
        self.limit = limit
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self._ends())

    async def __aenter__(self) -> None:
        if self._began is None:
            self._began = asyncio.get_running_loop().time()
        self._timeout = await asyncio.timeout_at(self._ends()).__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timeout, self._timeout = self._timeout, None
        if timeout is not None:
            await timeout.__aexit__(kind, error, trace)

    def _ends(self) -> float | None:
        return None if self.limit is None or self._began is None else self._began + self.limit

    def _lesser(self, seconds: float | None) -> float | None:
        if not self._settings.enable_job_timeouts:
            return None
        own = self._settings.max_processing_time
        return own if seconds is None else min(own, seconds)
