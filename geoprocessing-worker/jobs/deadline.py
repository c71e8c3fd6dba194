"""How long one job may take: the operator's limit, and the API's, which may change while the job runs."""

from __future__ import annotations

import asyncio
from types import TracebackType

from geoprocessing_worker.config import Settings


class Deadline:
    """A timeout round a job's work, counted from when the work began.

    Args:
        settings: `MAX_PROCESSING_TIME`, and `ENABLE_JOB_TIMEOUTS`, without which there is no limit at all.
        seconds: the API's own limit; None where it has none.
    """

    def __init__(self, settings: Settings, seconds: float | None) -> None:
        self._settings = settings
        self._began: float | None = None
        self.limit = self._lesser(seconds)
        self._timeout = asyncio.timeout(None)

    def change(self, seconds: float | None) -> None:
        """The API's limit is another one now; a job that has taken longer already ends at once."""
        limit = self._lesser(seconds)
        if limit == self.limit:
            return
        self.limit = limit
        if self._began is not None and not self._timeout.expired():
            self._timeout.reschedule(self._ends())

    async def __aenter__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        await self._timeout.__aenter__()
        self._timeout.reschedule(self._ends())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._began = None
        await self._timeout.__aexit__(kind, error, trace)

    def _ends(self) -> float | None:
        return None if self.limit is None or self._began is None else self._began + self.limit

    def _lesser(self, seconds: float | None) -> float | None:
        if not self._settings.enable_job_timeouts:
            return None
        own = self._settings.max_processing_time
        return own if seconds is None else min(own, seconds)
