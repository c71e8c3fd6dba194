"""Faults of network, disks, clocks and database. None may cost a job an attempt."""

import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.database import PATIENCE, Database
from tests.chaos.isolation import dropped_packets, full
from tests.support.clients import rows
from tests.support.processes import Programs
from tests.support.waiting import wait_until

CLOCK = Path(__file__).parent / "clock"
DAY = 86_400
# Seconds without any packet between workers and API. With TCP's doubled waits it stays below a lease.
SILENCE = 4.0
LOSS_PERCENT = 30


@dataclass
class Outages:
    """The faults, each until it is over.

    Attributes:
        stack: the API.
        database: under the API.
        worker_ports: where workers reach the API and its storage.
        disks: of the database, of storage, and of workers.
        seed: of the choices.
        seconds: of an outage of the database or a disk.
        cut_off_seconds: of the longest outage of the database, longer than a lease.
        stop_seconds: of a stopped API.
        stop: set when the storm is over.
    """

    stack: Programs
    database: Database
    worker_ports: list[int]
    storage: Path
    temp_dirs: list[Path]
    seed: int
    seconds: float = 12.0
    cut_off_seconds: float = 40.0
    stop_seconds: float = 120.0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def groups(self) -> dict[str, list[Callable[[], None]]]:
        """The faults of one round, by the name of their group."""
        return {
            "read-only": [self.read_only_database],
            "standby": [self.stale_standby],
            "pgbouncer": [self.restart_pgbouncer] * 2,
            "packets": [
                self.silent_workers,
                self.deaf_workers,
                self.lossy_workers,
                self.cut_off_database,
                self.silent_database,
                self.deaf_database,
                self.lossy_database,
            ],
            "stop-api": [self.stop_api],
            "disks": [self.full_database, self.full_storage, *[self.full_temp_dir] * 2],
            "clocks": [self.wrong_api_clock] * 2,
        }

    def read_only_database(self) -> None:
        """The primary takes no writes."""
        self.database.set_read_only(on=True)
        try:
            self.stop.wait(self.seconds)
        finally:
            self.database.set_read_only(on=False)

    def stale_standby(self) -> None:
        """A standby that is behind answers in the primary's place."""
        self.database.hold_standby()
        self.stop.wait(3)
        self.database.lead_to_standby()
        try:
            self.stop.wait(self.seconds)
        finally:
            self.database.lead_back()

    def restart_pgbouncer(self) -> None:
        """PgBouncer is killed, and away for a moment or for longer than a lease."""
        assert self.database.pooler is not None
        self.database.pooler.kill()
        self.stop.wait(self._random.choice([0, self.seconds]))
        self.database.pooler.start()

    def silent_workers(self) -> None:
        """Drop the packets that workers send."""
        self._drop(self.worker_ports, SILENCE, to=True, back=False)

    def deaf_workers(self) -> None:
        """Drop the packets to workers."""
        self._drop(self.worker_ports, SILENCE, to=False, back=True)

    def lossy_workers(self) -> None:
        """Some packets of workers and to workers are lost."""
        self._drop(self.worker_ports, self.seconds, to=True, back=True, percent=LOSS_PERCENT)

    def cut_off_database(self) -> None:
        """No packet passes between API and database."""
        self._drop(self.database.ports, self.cut_off_seconds, to=True, back=True)

    def silent_database(self) -> None:
        """The API's statements arrive, the answers do not."""
        self._drop(self.database.ports, self.seconds, to=False, back=True)

    def deaf_database(self) -> None:
        """The API's statements do not arrive."""
        self._drop(self.database.ports, self.seconds, to=True, back=False)

    def lossy_database(self) -> None:
        """Some packets between API and database are lost."""
        self._drop(self.database.ports, self.seconds, to=True, back=True, percent=LOSS_PERCENT)

    def stop_api(self) -> None:
        """SIGSTOP for much longer than a lease."""
        pid = self.stack.api.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            self.stop.wait(self.stop_seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def full_database(self) -> None:
        """Fill the database's disk. Start the database again if it stops."""
        with full(self.database.disk):
            self.stop.wait(self.seconds)
        wait_until(self._database_answers, "the database to answer", PATIENCE, pause=0.5)

    def full_storage(self) -> None:
        """The disk of inputs and outputs is full."""
        with full(self.storage):
            self.stop.wait(self.seconds)

    def full_temp_dir(self) -> None:
        """A worker's disk is full."""
        with full(self._random.choice(self.temp_dirs)):
            self.stop.wait(self.seconds)

    def wrong_api_clock(self) -> None:
        """The API is restarted with a clock that is days ahead or behind, and then with a right one."""
        offset = self._random.choice([-3, 3]) * DAY
        self._restart_api(PYTHONPATH=str(CLOCK), CLOCK_OFFSET_SECONDS=str(offset))
        self.stop.wait(self.seconds)
        self._restart_api()

    def _restart_api(self, **settings: str) -> None:
        self.stack.kill_api()
        self.stack.start_api(**settings)

    def _drop(self, ports: list[int], seconds: float, *, to: bool, back: bool, percent: int = 100) -> None:
        with dropped_packets(ports, to=to, back=back, percent=percent):
            self.stop.wait(seconds)

    def _database_answers(self) -> bool:
        try:
            self.database.start()
            rows(self.database.url, "CREATE TEMPORARY TABLE probe ()")
        except Exception:  # noqa: BLE001 - it is still recovering
            return False
        return True
