"""The loop that claims jobs while there is room for them, and the orderly shutdown."""

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
from geoprocessing_worker.jobs.watch import Stopped, stop_when, watched
from geoprocessing_worker.jobs.workspace import sweep
from geoprocessing_worker.sandbox import landlock
from geoprocessing_worker.wire.messages import Capabilities, ClaimedJob, ClaimRequest, ReportedTrouble
from geoprocessing_worker.wire.url_guard import as_sent

T = TypeVar("T")
log = structlog.get_logger(__name__)

# How long a claim is parked at the API. Proxies commonly cut a silent connection after 60 s.
CLAIM_WAIT = 25.0
# Seconds between two claims with a refused token, which an operator may replace at any time.
REFUSED_PAUSE = 30.0
# Seconds between claims during an outage: doubled from first to last, with jitter against a thundering herd.
PAUSE_FIRST, PAUSE_LAST = 1.0, 30.0
# Leases per job of `CONCURRENT_JOBS`: one job is computed while another downloads or uploads.
# The limit is backpressure: a slow link must not pile up results.
HELD_PER_SLOT = 2
# Seconds for the reports of jobs that go back, after the grace period.
PARTING_SECONDS = 10.0
# A longer list of hosts is not declared, since the API would reject the claim.
MAX_HOSTS = 1000


def capabilities(settings: Settings) -> Capabilities:
    """Return the capabilities that this worker declares in its claims."""
    hosts = tuple(sorted({as_sent(host) for host in settings.source_hosts}))
    return Capabilities(
        max_file_size=settings.max_file_size,
        source_hosts=hosts if len(hosts) <= MAX_HOSTS else None,
        memory_mb=settings.max_memory_mb,
        concurrent_jobs=settings.concurrent_jobs,
    )


class Daemon:
    """Claims jobs and runs up to `CONCURRENT_JOBS` of them at once, until `stop`.

    A job that only uploads makes room for the next one, so neither the processor nor the link waits for the other.

    Args:
        context: shared by the jobs.
        jitter: returns a random number from 0 to 1.
    """

    def __init__(self, context: WorkerContext, *, jitter: Callable[[], float] = random.random) -> None:
        self._context = context
        self._settings = context.settings
        self._jitter = jitter
        # New for each process: a reused id would keep the jobs of a dead worker alive.
        self.worker_id = str(uuid.uuid4())
        self._stopping = asyncio.Event()
        self._interrupt = asyncio.Event()
        self._running: set[asyncio.Task[Ending]] = set()
        self._computing: set[object] = set()  # running jobs that still need a slot
        self._room_made = asyncio.Event()
        self._token_refused = False
        self._trouble: tuple[Trouble, ...] = ()
        self._trouble_pause = PAUSE_FIRST
        self._setbacks = 0  # jobs given back since the last one that was completed
        self._paused_for = 0

    def stop(self) -> None:
        """Stop claiming. The second call gives the running jobs back at once."""
        if self._stopping.is_set():
            self._interrupt.set()
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`. Then wait for running jobs up to the grace period, and give back the others."""
        structlog.contextvars.bind_contextvars(worker_id=self.worker_id)
        removed = await asyncio.to_thread(self._sweep)
        with contextlib.suppress(RuntimeError, TimeoutError):  # checked again before each claim
            await self._context.sandbox.warm_up()
        await self._context.sender.start()
        log.info(
            "worker_started",
            message=f"Worker {self._settings.worker_name} started",
            api=self._settings.api_base_url,
            concurrent_jobs=self._settings.concurrent_jobs,
            task_types=self._context.tasks.names,
            folders_removed=removed,
            sandbox=[str(layer) for layer in landlock.layers()],
        )
        for broken in self._context.tasks.broken:
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
        await self._context.sender.stop()
        log.info("worker_shutdown_complete", message="Worker stopped")

    # -- claiming ---------------------------------------------------------------------------------------------------

    async def _claim_until_stopped(self) -> None:
        pause = PAUSE_FIRST
        self._context.sandbox.fork_ahead()
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
                self._log_refused(error)
                await self._pause(REFUSED_PAUSE)
            except ApiError as error:
                log.warning("claim_failed", message="No job could be claimed. Trying again.", reason=str(error))
                await self._pause(pause)
                pause = min(2 * pause, PAUSE_LAST)
            except Exception:
                # An unexpected answer must not end the worker, which would lose its jobs.
                log.exception("claim_broke", message="A claim broke. Trying again.")
                await self._pause(PAUSE_LAST)
            else:
                pause = PAUSE_FIRST

    def _room(self) -> int:
        slots = self._settings.concurrent_jobs
        return min(slots - len(self._computing), HELD_PER_SLOT * slots - len(self._running))

    def _room_on_disk(self) -> int:
        # Running jobs may not have downloaded their files yet.
        return host.count_jobs_with_room(self._settings) - len(self._running)

    async def _is_ready(self) -> bool:
        """Return whether this host can run a job now. Trouble is logged and reported, followed by a pause."""
        if self._setbacks > self._paused_for:
            await self._pause(min(PAUSE_FIRST * 2 ** (min(self._setbacks, 10) - 1), PAUSE_LAST))
        self._paused_for = self._setbacks
        troubles = await self._until_stopped_or(self._context.look())
        if not troubles:
            if self._trouble and troubles is not None:
                log.info("trouble_over", message="The trouble is over. Jobs are claimed again.")
                self._trouble, self._trouble_pause = (), PAUSE_FIRST
            return troubles is not None
        codes = [trouble.code for trouble in troubles]
        if codes != [trouble.code for trouble in self._trouble]:
            sentences = " ".join(f"{trouble.message}." for trouble in troubles)
            log.error("trouble", message=f"No jobs are claimed, since this host has trouble: {sentences}", codes=codes)
        self._trouble = troubles
        await self._report_trouble(troubles)
        await self._pause(self._trouble_pause)
        self._trouble_pause = min(2 * self._trouble_pause, PAUSE_LAST)
        return False

    async def _report_trouble(self, troubles: tuple[Trouble, ...]) -> None:
        reported = tuple(ReportedTrouble(code=one.code, message=one.message[:500]) for one in troubles)
        request = self._request(0).model_copy(update={"wait_seconds": 0, "trouble": reported})
        try:
            await self._until_stopped_or(self._context.api.report_trouble(request))
        except TokenRefused as error:
            self._log_refused(error)
        except ApiError as error:
            log.debug("trouble_not_reported", reason=str(error))

    def _request(self, max_jobs: int) -> ClaimRequest:
        return ClaimRequest(
            claim_id=str(uuid.uuid4()),
            worker_id=self.worker_id,
            worker_name=self._settings.worker_name,
            worker_version=__version__,
            task_types=self._context.tasks.names,
            max_jobs=max_jobs,
            wait_seconds=CLAIM_WAIT,
            capabilities=capabilities(self._settings),
        )

    async def _claim(self, room: int) -> None:
        request = self._request(room)
        sent = self._context.clock()
        answer = await self._until_stopped_or(self._context.api.claim(request))
        if answer is None and self._stopping.is_set():
            return
        if self._token_refused:
            self._token_refused = False
            log.info("token_accepted", message="The worker token is accepted again")
        if answer is not None and answer.jobs:
            for job in answer.jobs:
                self._take_up(job)
            return
        # An API that does not park claims is polled at this interval.
        await self._pause(self._settings.poll_interval - (self._context.clock() - sent), spread=False)

    def _take_up(self, job: ClaimedJob) -> None:
        slot = object()

        def nearly_done() -> None:
            self._computing.discard(slot)
            self._room_made.set()

        def ended(task: asyncio.Task[Ending]) -> None:
            self._running.discard(task)
            nearly_done()
            self._handle_ending(task)

        self._computing.add(slot)
        task = asyncio.create_task(JobRunner(job, self._context, self._interrupt, nearly_done).run())
        self._running.add(task)
        task.add_done_callback(ended)

    def _handle_ending(self, task: asyncio.Task[Ending]) -> None:
        if task.cancelled():
            return
        if task.exception() is not None:
            log.error("job_lost", message="A job ended without a report", exc_info=task.exception())
        elif task.result() is Ending.GIVEN_BACK:
            # The checks may not show the trouble: a quota, for example.
            self._setbacks += 1
        elif task.result() is Ending.COMPLETED:
            self._setbacks = 0

    def _log_refused(self, error: TokenRefused) -> None:
        if not self._token_refused:
            log.error(
                "token_refused",
                message="The API refuses WORKER_AUTH_TOKEN. No jobs are claimed until it is replaced.",
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
        """Return the result of `work`, or cancel it and return None when the worker stops first."""
        try:
            return await watched(work, stop_when(self._stopping))
        except Stopped:
            return None

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
