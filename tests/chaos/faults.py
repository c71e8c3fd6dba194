"""Faults of processes: workers, their children, the API and the database are killed, stopped or terminated."""

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from geo_jobs_api.database import embedded
from tests.chaos.proxy import FaultProxy
from tests.support.processes import Process, Programs, is_pending, job_children
from tests.support.waiting import wait_until

CLOCK = Path(__file__).parent / "clock"
HOUR = 3600
# Seconds for a process to end, since many share a processor.
PATIENCE = 180


@dataclass
class Database:
    """A PostgreSQL that can be stopped under the API."""

    folder: Path
    options: dict[str, str]
    _shares: list[embedded.EmbeddedPostgres] = field(default_factory=list)

    def start(self) -> str:
        """Start or restart it. Return its URL."""
        self._shares.append(embedded.start(self.folder, self.options))
        return self._shares[-1].url("postgres")

    def stop_at_once(self) -> None:
        """Stop without a checkpoint, like a power cut."""
        pid = int((self.folder / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not (self.folder / "postmaster.pid").exists(), "the database to be gone", PATIENCE)

    def close(self) -> None:
        """Stop it for good."""
        for share in self._shares:
            share.close()


class Fleet:
    """Workers that are replaced when they end.

    Args:
        stack: API and folders.
        proxy: between the workers and the API.
        size: number of workers.
        settings: environment variables of each worker.
    """

    def __init__(self, stack: Programs, proxy: FaultProxy, size: int, settings: dict[str, str]) -> None:
        self._stack = stack
        self._proxy = proxy
        self._settings = settings
        self.running: list[Process] = [self._start(number) for number in range(size)]

    def _start(self, number: int) -> Process:
        # Every third clock is right. The others are an hour off, in different directions.
        offset = (number % 3 - 1) * HOUR
        settings = {
            "API_BASE_URL": self._proxy.base_url,
            "PYTHONPATH": str(CLOCK),
            "CLOCK_OFFSET_SECONDS": str(offset),
            **self._settings,
        }
        return self._stack.worker(f"worker-{number}", **settings)

    def replace(self, number: int) -> None:
        """Start a process in place of an ended one."""
        self.running[number] = self._start(number)

    def stop(self) -> list[int]:
        """Stop all. Return their exit codes."""
        for process in self.running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        return [process.wait(PATIENCE) for process in self.running]


class Gremlin:
    """Causes one fault after another, by a seed, until stopped.

    Args:
        stack: the API.
        fleet: the workers.
        database: the API's database.
        seed: decides faults and times.
        pause: longest time between two faults, in seconds.
        rounds: number of rounds, after which it rests.
    """

    def __init__(
        self, stack: Programs, fleet: Fleet, database: Database, *, seed: int, pause: float, rounds: int
    ) -> None:
        self._stack = stack
        self._fleet = fleet
        self._database = database
        self._random = random.Random(seed)
        self._pause = pause
        self._rounds = rounds
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self.done: Counter[str] = Counter()
        # A fault occurs as often in a round as here. Rounds are shuffled, so a short run has all of them.
        self._round: list[Callable[[], None]] = [
            *[self.kill_worker, self.stop_worker, self.kill_child, self.stop_child] * 2,
            self.dismiss_worker,
            self.hurry_worker,
            self.kill_api,
            self.restart_database,
        ]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the faults. Raise the gremlin's own error, if any."""
        self._stop.set()
        self._thread.join(2 * PATIENCE)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for _ in range(self._rounds):
                self._random.shuffle(self._round)
                for fault in list(self._round):
                    if self._stop.wait(self._random.uniform(0.2, 1) * self._pause):
                        return
                    fault()
                    self.done[fault.__name__] += 1
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._failure = error

    def _victim(self) -> tuple[int, Process]:
        number = self._random.randrange(len(self._fleet.running))
        return number, self._fleet.running[number]

    def kill_worker(self) -> None:
        """SIGKILL. Another worker takes its place."""
        number, worker = self._victim()
        worker.kill()
        worker.wait()
        self._fleet.replace(number)

    def stop_worker(self) -> None:
        """SIGSTOP for less or more than a lease, while its children continue."""
        _, worker = self._victim()
        self._freeze(worker.pid, self._random.choice([0.5, 6]))

    def kill_child(self) -> None:
        """SIGKILL for a worker's child."""
        if children := job_children(self._victim()[1]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(children), signal.SIGKILL)

    def stop_child(self) -> None:
        """SIGSTOP for a child, while its worker keeps the lease."""
        if children := job_children(self._victim()[1]):
            self._freeze(self._random.choice(children), 2)

    def dismiss_worker(self) -> None:
        """SIGTERM. Another worker takes its place after the exit."""
        number, worker = self._victim()
        worker.terminate()
        worker.wait(PATIENCE)
        self._fleet.replace(number)

    def hurry_worker(self) -> None:
        """SIGTERM twice, so running jobs return at once."""
        number, worker = self._victim()
        worker.terminate()
        # The kernel merges two pending signals into one.
        wait_until(lambda: not is_pending(worker.pid, signal.SIGTERM), "the first to be taken", PATIENCE)
        worker.terminate()
        worker.wait(PATIENCE)
        self._fleet.replace(number)

    def kill_api(self) -> None:
        """SIGKILL for less or more than a lease, then a restart at the same address."""
        self._stack.kill_api()
        self._stop.wait(self._random.choice([0, 0, 6]))
        self._stack.start_api()

    def restart_database(self) -> None:
        """Stop at once and restart."""
        self._database.stop_at_once()
        self._database.start()

    def _freeze(self, pid: int, seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                self._stop.wait(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)
