"""A real PgBouncer in front of a test's database."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.waiting import wait_until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class PgBouncer:
    """One PgBouncer at a port of its own. It can be pointed at another server, killed and started again.

    Args:
        folder: its settings and log.
        pool_mode: `session` or `transaction`.
        pool_size: most server sessions.
    """

    def __init__(self, folder: Path, pool_mode: str, pool_size: int = 20) -> None:
        self._folder = folder
        self._pool_mode = pool_mode
        self._pool_size = pool_size
        self._process: subprocess.Popen[bytes] | None = None
        self._user = ""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    @property
    def url(self) -> str:
        """The URL of the database behind it."""
        return make_conninfo(host="127.0.0.1", port=self.port, dbname="pooled", user=self._user)

    def point_at(self, database_url: str) -> None:
        """Pool this database. A running process drops its sessions of the one before."""
        target = conninfo_to_dict(database_url)
        self._user = str(target["user"])
        place = f"host={target['host']} port={target['port']} dbname={target['dbname']} user={self._user}"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": self._pool_mode,
            "default_pool_size": self._pool_size,
            "max_client_conn": 200,
            "logfile": self._folder / "log",
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (self._folder / "ini").write_text("\n".join(["[databases]", f"pooled = {place}", "[pgbouncer]", *lines, ""]))
        if os.geteuid() == 0:
            # It refuses to run as root, and its socket admits only the database's own account.
            owner = pwd.getpwuid(Path(str(target["host"])).stat().st_uid)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert PGBOUNCER
        account = ["-u", pwd.getpwuid(self._folder.stat().st_uid).pw_name] if os.geteuid() == 0 else []
        command = [PGBOUNCER, "-q", *account, str(self._folder / "ini")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._process = process

        def answers() -> bool:
            assert process.poll() is None, (self._folder / "log").read_text()
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2):
                return True
            return False

        wait_until(answers, "PgBouncer to answer", 30)

    def kill(self) -> None:
        """End it without a word, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def pgbouncer(database_url: str, pool_mode: str, pool_size: int = 20) -> Iterator[str]:
    """Pool the database of a URL. Yield its URL through PgBouncer."""
    with tempfile.TemporaryDirectory(prefix="pgbouncer") as folder:
        pooler = PgBouncer(Path(folder), pool_mode, pool_size)
        pooler.point_at(database_url)
        try:
            pooler.start()
            yield pooler.url
        finally:
            pooler.kill()
