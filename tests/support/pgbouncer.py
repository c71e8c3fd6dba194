"""A real PgBouncer in front of a test's database."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.waiting import wait_until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def pgbouncer(database_url: str, pool_mode: str, pool_size: int = 20) -> Iterator[str]:
    """Pool the database of a URL. Yield its URL through PgBouncer."""
    assert PGBOUNCER
    target = conninfo_to_dict(database_url)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbouncer")))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        place = f"host={target['host']} port={target['port']} dbname={target['dbname']} user={target['user']}"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": pool_mode,
            "default_pool_size": pool_size,
            "max_client_conn": 200,
            "logfile": folder / "log",
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (folder / "ini").write_text("\n".join(["[databases]", f"pooled = {place}", "[pgbouncer]", *lines, ""]))
        command = [PGBOUNCER, "-q", str(folder / "ini")]
        if os.geteuid() == 0:
            # It refuses to run as root, and its socket admits only the database's own account.
            owner = pwd.getpwuid(Path(str(target["host"])).stat().st_uid)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            command[1:1] = ["-u", owner.pw_name]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(process.kill)
        url = make_conninfo(host="127.0.0.1", port=port, dbname="pooled", user=str(target["user"]))

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
                return True
            return False

        wait_until(answers, "PgBouncer to answer", 30)
        yield url
