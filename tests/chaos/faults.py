"""Faults of workers and their children, of the API's process and of the database's, and the order of all faults."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tests.chaos.database import PATIENCE, Database
from tests.chaos.outages import CLOCK, DAY, Outages
from tests.chaos.proxy import FaultProxy
from tests.chaos.verdict import Harm
from tests.support.processes import Process, Programs, is_pending, job_children
from tests.support.waiting import wait_until

LONGEST_REST = 8.0
HOUR = 3600
# Seconds by which the clocks of workers are wrong, in turn: always, and with the fault "clocks". Beyond a day a worker
# claims nothing.
OFFSETS = (-HOUR, 0, HOUR)
LARGE_OFFSETS = (0, 20 * HOUR, -3 * DAY, -20 * HOUR, 0, 3 * DAY)


class Fleet:
    """Workers that are started again when they end.

    Args:
        stack: API and folders.
        proxy: through which they reach the API.
        size: how many.
        settings: of each worker, as variables.
        wrong_clocks: whether some clocks are wrong by days.
    """

    def __init__(
        self, stack: Programs, proxy: FaultProxy, size: int, settings: dict[str, str], *, wrong_clocks: bool
    ) -> None:
        self._stack = stack
        self._proxy = proxy
        self._settings = settings
        self._offsets = LARGE_OFFSETS if wrong_clocks else OFFSETS
        self.running: list[Process] = [self._start(number) for number in range(size)]

    def _start(self, number: int) -> Process:
        settings = {
            "WORKER_NAME": _name(number),
            "API_BASE_URL": self._proxy.base_url,
            "PYTHONPATH": str(CLOCK),
            "CLOCK_OFFSET_SECONDS": str(self._offsets[number % len(self._offsets)]),
            **self._settings,
        }
        return self._stack.worker(_name(number), **settings)

    def temp_dir(self, number: int) -> Path:
        """The TEMP_DIR of a worker."""
        return temp_dir(self._stack.folder, number)

    def replace(self, number: int) -> None:
        """Start another process in the place of one that has ended."""
        self.running[number] = self._start(number)

    def stop(self) -> list[int]:
        """Stop all. Return their exit codes."""
        for process in self.running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        return [process.wait(PATIENCE) for process in self.running]


def _name(number: int) -> str:
    return f"worker-{number}"


def temp_dir(folder: Path, number: int) -> Path:
    """The TEMP_DIR of a worker below the storm's folder."""
    return folder / _name(number) / "jobs"


class Gremlin:
    """Makes one fault after the other, in an order given by a seed, until it is stopped.

    Args:
        stack: the API.
        fleet: the workers.
        database: under the API.
        outages: the faults of network, disks, clocks and database.
        asked: names of `GROUPS`.
        seed: of the order and of the choices within faults.
        lease: seconds of a lease, which some faults outlast.
        pause: seconds between two faults, at most.
        rounds: after so many it rests.
    """

    def __init__(
        self,
        stack: Programs,
        fleet: Fleet,
        database: Database,
        outages: Outages,
        *,
        asked: Collection[str],
        seed: int,
        lease: float,
        pause: float,
        rounds: int,
    ) -> None:
        self._stack = stack
        self._fleet = fleet
        self._database = database
        self._random = random.Random(seed)
        self._lease = lease
        self._pause = pause
        self._rounds = rounds
        self._stop = outages.stop
        self._failure: BaseException | None = None
        self.done: Counter[str] = Counter()
        self.harms: list[Harm] = []
        # Faults as often as they are in a round. Each round is shuffled, so a short run has all of them.
        groups: dict[str, list[Callable[[], None]]] = {
            "processes": [
                *[self.kill_worker, self.stop_worker, self.kill_child, self.stop_child] * 2,
                self.dismiss_worker,
                self.hurry_worker,
                self.kill_api,
            ],
            "restart": [self.restart_database],
            **outages.groups,
        }
        self._round = [fault for name in groups if name in asked for fault in groups[name]]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the faults. Raise the error of a fault that could not be made."""
        self._stop.set()
        self._thread.join(2 * PATIENCE)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        rest = 0.0
        try:
            for _ in range(self._rounds if self._round else 0):
                self._random.shuffle(self._round)
                for fault in list(self._round):
                    if self._stop.wait(self._random.uniform(0.2, 1) * self._pause + rest):
                        return
                    began = time.monotonic()
                    fault()
                    # After a long outage, jobs go on for as long.
                    rest = min(LONGEST_REST, time.monotonic() - began)
                    self.done[fault.__name__] += 1
                # The rescuer ends leases only a grace after the last outage.
                if self._stop.wait(3 * self._lease):
                    return
        except BaseException as error:  # noqa: BLE001 - handed over to whoever stops it
            self._failure = error

    def _victim(self) -> tuple[int, Process]:
        number = self._random.randrange(len(self._fleet.running))
        return number, self._fleet.running[number]

    @contextlib.contextmanager
    def _harming(self, number: int) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self.harms.append(Harm(_name(number), began, time.time()))

    def kill_worker(self) -> None:
        """Kill a worker by SIGKILL and start another."""
        number, worker = self._victim()
        with self._harming(number):
            worker.kill()
            worker.wait()
            self._fleet.replace(number)

    def stop_worker(self) -> None:
        """SIGSTOP, for less or for more than a lease, while its children go on."""
        number, worker = self._victim()
        with self._harming(number):
            self._freeze(worker.pid, self._random.choice([0.5, 1.5 * self._lease]))

    def kill_child(self) -> None:
        """SIGKILL for whatever a worker's child is doing."""
        number, worker = self._victim()
        if children := job_children(worker):
            with self._harming(number), contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(children), signal.SIGKILL)

    def stop_child(self) -> None:
        """SIGSTOP for a child, while its worker keeps the lease."""
        if children := job_children(self._victim()[1]):
            self._freeze(self._random.choice(children), 2)

    def dismiss_worker(self) -> None:
        """Stop a worker by SIGTERM. Start another after its exit."""
        number, worker = self._victim()
        worker.terminate()
        worker.wait(PATIENCE)
        self._fleet.replace(number)

    def hurry_worker(self) -> None:
        """SIGTERM twice: running jobs go back at once."""
        number, worker = self._victim()
        worker.terminate()
        # Two that wait together would be one.
        wait_until(lambda: not is_pending(worker.pid, signal.SIGTERM), "the first to be taken", PATIENCE)
        worker.terminate()
        worker.wait(PATIENCE)
        self._fleet.replace(number)

    def kill_api(self) -> None:
        """Kill an API by SIGKILL. Start it again at the same address after a moment, or after more than a lease."""
        self._stack.kill_api()
        self._stop.wait(self._random.choice([0, 0, 1.5 * self._lease]))
        self._stack.start_api()

    def restart_database(self) -> None:
        """An immediate stop, and back again."""
        self._database.crash()
        self._database.start()

    def _freeze(self, pid: int, seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                self._stop.wait(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)
