"""The embedded PostgreSQL: its paths, its shares, and its closed permissions."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from geo_jobs_api.database import embedded
from geo_jobs_api.errors import ConfigurationError
from tests.support.clients import rows


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path. pytest's own are so long that they need the other socket folder."""
    with tempfile.TemporaryDirectory(prefix="gj") as name:
        yield Path(name)


def is_up(conninfo: str) -> bool:
    try:
        return rows(conninfo, "SELECT 1 AS one") == [{"one": 1}]
    except psycopg.OperationalError:
        return False


def test_data_survive_a_restart_and_the_last_user_stops_the_server(folder: Path) -> None:
    """Two shares of one server. It runs until both are closed, and its data are kept."""
    first = embedded.start(folder / "postgres")
    second = embedded.start(folder / "postgres")
    assert first.conninfo == second.conninfo
    rows(first.conninfo, "CREATE TABLE kept AS SELECT 7 AS n")
    first.close()
    first.close()
    assert is_up(second.conninfo)
    second.close()
    assert not is_up(second.conninfo)
    third = embedded.start(folder / "postgres")
    assert rows(third.conninfo, "SELECT n FROM kept") == [{"n": 7}]
    third.close()


def test_a_path_that_was_closed_since_the_start_does_not_keep_the_server_running(folder: Path) -> None:
    """Another program may restrict a folder above the data. As root the database runs as another account."""
    server = embedded.start(folder / "deep" / "postgres")
    folder.chmod(0o700)
    server.close()
    assert not is_up(server.conninfo)


def test_it_lives_in_long_paths_and_paths_with_spaces_and_listens_on_no_port(folder: Path) -> None:
    """Socket paths are limited to 107 bytes, data folders are not. Other users cannot enter either."""
    data = folder / "a folder with 'spaces'" / ("x" * 150) / "postgres"
    server = embedded.start(data)
    try:
        (settings,) = rows(
            server.conninfo,
            "SELECT current_setting('listen_addresses') AS tcp, current_setting('unix_socket_directories') AS dir",
        )
        assert settings["tcp"] == ""
        socket_dir = Path(settings["dir"].strip('"'))
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
    finally:
        server.close()
        if socket_dir != data:
            socket_dir.rmdir()


def test_a_killed_process_does_not_keep_the_server_alive(folder: Path) -> None:
    """The kernel releases the share of a dead process. The next process takes over the server and stops it."""
    program = (
        "import os, sys; from pathlib import Path; from geo_jobs_api.database import embedded;"
        " embedded.start(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(folder / "postgres")], check=False, timeout=60)
    assert result.returncode == -9
    server = embedded.start(folder / "postgres")
    server.close()
    assert not is_up(server.conninfo)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_runs_for_an_ordinary_user_too(folder: Path) -> None:
    """As root a separate account is used, else the user's own."""
    folder.chmod(0o777)
    # Other users may be unable to read the interpreter, so the process changes its user after its imports.
    program = (
        "import os, sys, encodings.idna; from pathlib import Path; from geo_jobs_api.database import embedded;"
        " embedded._program('initdb'); os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        " s = embedded.start(Path(sys.argv[1])); print(s.user); s.close()"
    )
    command = [sys.executable, "-c", program, str(folder / "data" / "postgres")]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("None\n", "")


def test_a_server_that_cannot_start_quotes_its_log(folder: Path) -> None:
    """The message contains the last lines of the log."""
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        embedded.start(folder / "postgres", {"no_such_setting": "1"})


def test_a_path_that_a_shell_would_misread_is_rejected(folder: Path) -> None:
    """PostgreSQL's own tools pass the path through a shell."""
    with pytest.raises(ConfigurationError, match="contains one of"):
        embedded.start(folder / "a$HOME" / "postgres")
