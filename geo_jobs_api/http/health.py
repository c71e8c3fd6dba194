"""The state of database and storage for `/health`, within two seconds even if the network hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import psycopg

from geo_jobs_api.database.sessions import ReadOnlyError
from geo_jobs_api.log import get_logger
from geo_jobs_api.maintenance.store import MaintenanceStore
from geo_jobs_api.queue.records import VacuumBlocker
from geo_jobs_api.storage.storage import Storage

_log = get_logger(__name__)
PATIENCE_SECONDS = 2.0
_LATE = f"no answer within {PATIENCE_SECONDS:.0f} s"
# Free space for this many of the largest uploads and their results leaves an operator time to act.
_MIN_FREE_FILES = 10

T = TypeVar("T")


class SharedCheck(Generic[T]):
    """A check shared by all callers while it runs, so that any number of them cost one. For one event loop.

    Args:
        check: the check. At most one runs at a time, even if it hangs.
        is_cancelled: whether to cancel a slow check. A thread cannot be cancelled, so retries would add threads.
    """

    def __init__(self, check: Callable[[], Awaitable[T]], *, is_cancelled: bool) -> None:
        self._check = check
        self._is_cancelled = is_cancelled
        self._task: asyncio.Task[T] | None = None

    async def result(self, seconds: float) -> T:
        """Return the result or raise the check's error. TimeoutError after `seconds`."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(_retrieve)
        task = self._task
        await asyncio.wait({task}, timeout=seconds)
        if not task.done() or task.cancelled():
            if self._is_cancelled:
                task.cancel()
            raise TimeoutError
        return task.result()

    async def _run(self) -> T:
        return await self._check()


def _retrieve(task: asyncio.Task[T]) -> None:
    # All callers have left before this error.
    if not task.cancelled():
        task.exception()


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """Database and storage: `ok`, or the error. `warnings` are sentences."""

    database: str
    storage: str
    warnings: Sequence[str] = ()

    @property
    def is_healthy(self) -> bool:
        """Return whether both work."""
        return self.database == self.storage == "ok"


class HealthMonitor:
    """Checks database and storage.

    Args:
        maintenance: the database.
        storage: the object store.
        vacuum_warning_seconds: age at which a transaction that holds back vacuum becomes a warning.
        max_file_size: the largest upload, in bytes.
    """

    def __init__(
        self, maintenance: MaintenanceStore, storage: Storage, *, vacuum_warning_seconds: float, max_file_size: int
    ) -> None:
        self._maintenance = maintenance
        self._store = storage
        self._vacuum_warning_seconds = vacuum_warning_seconds
        self._max_file_size = max_file_size
        self._named: set[str] = set()
        self._database = SharedCheck(self._check_database, is_cancelled=True)
        self._storage = SharedCheck(self._check_storage, is_cancelled=False)

    async def read(self) -> HealthStatus:
        """Check both concurrently."""
        (database, blockers), (storage, free) = await asyncio.gather(self._read_database(), self._read_storage())
        return HealthStatus(database, storage, [*self._vacuum_warnings(blockers), *self._disk_warnings(free)])

    async def _check_database(self) -> list[VacuumBlocker]:
        await self._maintenance.check_writable()
        return await self._maintenance.list_vacuum_blockers(self._vacuum_warning_seconds)

    async def _read_database(self) -> tuple[str, list[VacuumBlocker]]:
        try:
            return "ok", await self._database.result(PATIENCE_SECONDS)
        except TimeoutError:
            return _LATE, []
        except ReadOnlyError:
            return "read-only", []
        except psycopg.Error:
            return "unreachable", []

    async def _check_storage(self) -> int | None:
        await self._store.check()
        return await self._store.free_bytes()

    async def _read_storage(self) -> tuple[str, int | None]:
        try:
            return "ok", await self._storage.result(PATIENCE_SECONDS)
        except TimeoutError:
            return _LATE, None
        except OSError:
            return "not writable", None

    def _disk_warnings(self, free_bytes: int | None) -> list[str]:
        if free_bytes is None or free_bytes >= _MIN_FREE_FILES * self._max_file_size:
            return []
        trouble = f"The storage has {free_bytes / 1e6:.0f} MB free, less than {_MIN_FREE_FILES} times MAX_FILE_SIZE"
        advice = "Free space with `python -m geo_jobs_api cleanup DAYS`, or move DATA_DIR to a larger disk."
        return [f"{trouble}: uploads will soon be rejected (507). {advice}"]

    def _vacuum_warnings(self, blockers: Sequence[VacuumBlocker]) -> list[str]:
        """Return their number only, since `/health` is public. Names of sessions and programs go to the log."""
        names = {blocker.who for blocker in blockers}
        if names - self._named:
            _log.warning("vacuum_held_back", by=sorted(names))
        self._named = names
        if not blockers:
            return []
        longest = max((blocker.seconds for blocker in blockers if blocker.seconds is not None), default=None)
        since = "" if longest is None else f", the longest for {longest:.0f} s"
        return [
            f"Vacuum is held back by {len(blockers)}{since}: claims slow down. The log names them (vacuum_held_back)."
        ]
