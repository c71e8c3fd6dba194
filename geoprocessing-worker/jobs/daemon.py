"""The loop that claims jobs while there is room for them, and the orderly way out of it."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from geoprocessing_worker import __version__, host
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ApiError, TokenRefused
from geoprocessing_worker.host import Trouble
from geoprocessing_worker.jobs.runner import Ending, JobRunner, WorkerContext
from geoprocessing_worker.jobs.workspace import sweep
from geoprocessing_worker.sandbox import landlock
from geoprocessing_worker.wire.messages import Capabilities, ClaimedJob, ClaimRequest, ReportedTrouble
from geoprocessing_worker.wire.url_guard import as_sent

T = TypeVar("T")
log = structlog.get_logger(__name__)

# How long a claim is parked at the API. Proxies commonly cut a silent connection after 60 s.
CLAIM_WAIT = 25.0
# Between two claims with a token that was refused: somebody has to mend it, and may do so any time.
REFUSED_PAUSE = 30.0
# While the API is away: doubled from the first to the last, with jitter, so that a fleet does not come back at once.
PAUSE_FIRST, PAUSE_LAST = 1.0, 30.0
# Leases held for each of `CONCURRENT_JOBS`: one job is computed while another is fetched or its results are uploaded.
# Without a limit a slow link would heap up results.
HELD_PER_SLOT = 2
# For reports of jobs that go back, after the grace period.
PARTING_SECONDS = 10.0
# A longer list of hosts is not declared; the claim would be refused.
MOST_HOSTS = 1000


def capabilities(settings: Settings) -> Capabilities:
    """What this worker takes, for its claims."""
    hosts = tuple(sorted({as_sent(host) for host in settings.source_hosts}))
    return Capabilities(
        max_file_size=settings.max_file_size,
        source_hosts=hosts if len(hosts) <= MOST_HOSTS else None,
        memory_mb=settings.max_memory_mb,
        concurrent_jobs=settings.concurrent_jobs,
    )


class Daemon:
    """Claims jobs and runs up to `CONCURRENT_JOBS` of them at once, until it is told to stop.

    A job whose results only have to be uploaded makes room for the next, so that neither the processor nor the link
    waits for the other.

    Args:
        tools: what jobs are done with.
        jitter: a random share of 1.
    """

    def __init__(self, tools: WorkerContext, *, jitter: Callable[[], float] = random.random) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._jitter = jitter
        # Fresh for each process: a name that is used again must not keep a dead worker's jobs alive.
        self.worker_id = str(uuid.uuid4())
        self._stopping = asyncio.Event()
        self._interrupt = asyncio.Event()
        self._running: set[asyncio.Task[Ending]] = set()
        self._computing: set[object] = set()  # of the running ones, those that need a slot for longer
        self._room_made = asyncio.Event()
        self._token_refused = False
        self._trouble: tuple[Trouble, ...] = ()
        self._trouble_pause = PAUSE_FIRST
        self._setbacks = 0  # jobs given back since the last one that was completed
        self._paused_for = 0

    def stop(self) -> None:
        """Claim no more; the second time, give the running jobs back at once."""
        if self._stopping.is_set():
            self._interrupt.set()
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`, then let running jobs end within the grace period and give back the others."""
        structlog.contextvars.bind_contextvars(worker_id=self.worker_id)
        removed = await asyncio.to_thread(self._sweep)
        with contextlib.suppress(RuntimeError, TimeoutError):  # trouble of this kind is looked for before each claim
            await self._tools.sandbox.warm_up()
        await self._tools.sender.start()
        log.info(
            "worker_started",
            message=f"Worker {self._settings.worker_name} started",
            api=self._settings.api_base_url,
            concurrent_jobs=self._settings.concurrent_jobs,
            task_types=self._tools.tasks.names,
            folders_removed=removed,
            sandbox=[str(layer) for layer in landlock.layers()],
        )
        for broken in self._tools.tasks.broken:
            log.error(
                "task_type_unavailable",
                message=f"Jobs of type {broken.name} are not claimed: their handler cannot be used",
                task_type=broken.name,
                reason=broken.reason,
            )
        if self._settings.disable_workers:
            log.warning("worker_disabled", message="DISABLE_WORKERS is set: this worker stays up but claims nothing")
            await self._stopping.wait()
        else:
            await self._claim_until_stopped()
        await self._let_finish()
        await self._tools.sender.stop()
        log.info("worker_shutdown_complete", message="Worker stopped")

    # -- claiming ---------------------------------------------------------------------------------------------------

    async def _claim_until_stopped(self) -> None:
        pause = PAUSE_FIRST
        while not self._stopping.is_set():
            room = self._room()
            if min(room, self._room_on_disk() if self._running else room) <= 0:
                self._room_made.clear()
                await self._until_stopped_or(self._room_made.wait())
                continue
            try:
                if await self._is_ready():
                    await self._claim(max(1, min(room, self._room_on_disk())))
            except TokenRefused as error:
                self._say_refused(error)
                await self._pause(REFUSED_PAUSE)
            except ApiError as error:
                log.warning("claim_failed", message="No job could be claimed; trying again", reason=str(error))
                await self._pause(pause)
                pause = min(2 * pause, PAUSE_LAST)
            except Exception:
                # An answer that nobody thought of must not end the worker, with its jobs not given back.
                log.exception("claim_broke", message="A claim broke; trying again")
                await self._pause(PAUSE_LAST)
            else:
                pause = PAUSE_FIRST

    def _room(self) -> int:
        slots = self._settings.concurrent_jobs
        return min(slots - len(self._computing), HELD_PER_SLOT * slots - len(self._running))

    def _room_on_disk(self) -> int:
        # The jobs that are held may not have fetched their files yet.
        return host.count_jobs_with_room(self._settings) - len(self._running)

    async def _is_ready(self) -> bool:
        """Whether this host can do a job now. Trouble is logged, reported, and waited for."""
        if self._setbacks > self._paused_for:
            await self._pause(min(PAUSE_FIRST * 2 ** (min(self._setbacks, 10) - 1), PAUSE_LAST))
        self._paused_for = self._setbacks
        found = await self._until_stopped_or(self._tools.look())
        if not found:
            if self._trouble and found is not None:
                log.info("trouble_over", message="The trouble is over: jobs are claimed again")
                self._trouble, self._trouble_pause = (), PAUSE_FIRST
            return found is not None
        if [one.code for one in found] != [one.code for one in self._trouble]:
            sentences = " ".join(f"{one.message}." for one in found)
            codes = [one.code for one in found]
            log.error("trouble", message=f"No jobs are claimed, since this host has trouble: {sentences}", codes=codes)
        self._trouble = found
        await self._report_trouble(found)
        await self._pause(self._trouble_pause)
        self._trouble_pause = min(2 * self._trouble_pause, PAUSE_LAST)
        return False

    async def _report_trouble(self, found: tuple[Trouble, ...]) -> None:
        told = tuple(ReportedTrouble(code=one.code, message=one.message[:500]) for one in found)
        request = self._request(0).model_copy(update={"wait_seconds": 0, "trouble": told})
        try:
            await self._until_stopped_or(self._tools.api.report_trouble(request))
        except TokenRefused as error:
            self._say_refused(error)
        except ApiError as error:
            log.debug("trouble_not_reported", reason=str(error))

    def _request(self, max_jobs: int) -> ClaimRequest:
        return ClaimRequest(
            claim_id=str(uuid.uuid4()),
            worker_id=self.worker_id,
            worker_name=self._settings.worker_name,
            worker_version=__version__,
            task_types=self._tools.tasks.names,
            max_jobs=max_jobs,
            wait_seconds=CLAIM_WAIT,
            capabilities=capabilities(self._settings),
        )

    async def _claim(self, room: int) -> None:
        request = self._request(room)
        sent = self._tools.clock()
        answer = await self._until_stopped_or(self._tools.api.claim(request))
        if answer is None and self._stopping.is_set():
            return
        if self._token_refused:
            self._token_refused = False
            log.info("token_accepted", message="The worker token is accepted again")
        if answer is not None and answer.jobs:
            for job in answer.jobs:
                self._take_up(job)
            return
        # An API that does not park claims is not asked more often than it was agreed.
        await self._pause(self._settings.poll_interval - (self._tools.clock() - sent), spread=False)

    def _take_up(self, job: ClaimedJob) -> None:
        slot = object()

        def nearly_done() -> None:
            self._computing.discard(slot)
            self._room_made.set()

        def ended(task: asyncio.Task[Ending]) -> None:
            self._running.discard(task)
            nearly_done()
            self._see_to_its_end(task)

        self._computing.add(slot)
        task = asyncio.create_task(JobRunner(job, self._tools, self._interrupt, nearly_done).run())
        self._running.add(task)
        task.add_done_callback(ended)

    def _see_to_its_end(self, task: asyncio.Task[Ending]) -> None:
        if task.cancelled():
            return
        if task.exception() is not None:
            log.error("job_lost", message="A job ended without a report", exc_info=task.exception())
        elif task.result() is Ending.GIVEN_BACK:
            # The trouble may be one that no look shows, such as a quota.
            self._setbacks += 1
        elif task.result() is Ending.COMPLETED:
            self._setbacks = 0

    def _say_refused(self, error: TokenRefused) -> None:
        if not self._token_refused:
            log.error(
                "token_refused",
                message="The API refuses this worker's token: no jobs are claimed until WORKER_AUTH_TOKEN is mended",
                reason=str(error),
            )
        self._token_refused = True

    def _sweep(self) -> int:
        try:
            return sweep(self._settings.temp_dir)
        except OSError as error:
            log.warning("workspace_not_swept", reason=str(error))
            return 0

    # -- waiting and stopping ---------------------------------------------------------------------------------------

    async def _pause(self, seconds: float, *, spread: bool = True) -> None:
        wait = seconds * (0.5 + self._jitter()) if spread else seconds
        if wait > 0:
            await self._until_stopped_or(asyncio.sleep(wait))

    async def _until_stopped_or(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The outcome of `work`, or None, with the work cancelled, when the worker is told to stop before."""
        working = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)

    async def _let_finish(self) -> None:
        if not self._running:
            return
        log.info("worker_stopping", message="Stopping: no more claims", running_jobs=len(self._running))
        ended = asyncio.create_task(asyncio.wait(self._running))
        hurry = asyncio.create_task(self._interrupt.wait())
        await asyncio.wait([ended, hurry], timeout=self._settings.shutdown_grace, return_when=asyncio.FIRST_COMPLETED)
        self._interrupt.set()
        hurry.cancel()
        await asyncio.wait([ended], timeout=PARTING_SECONDS)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
