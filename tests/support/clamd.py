"""A real ClamAV daemon with one signature, of the EICAR test file."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_until

CLAMD = shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# Assembled here, so that this file does not contain the signature.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}" + b"$EICAR-STANDARD-" + b"ANTIVIRUS-TEST-FILE!$H+H*"


@dataclass(frozen=True)
class RunningClamd:
    """Its two addresses, in the form of CLAMD_ADDRESS."""

    unix: str
    tcp: str


@contextlib.contextmanager
def clamd(most_bytes: int = 1_000_000) -> Iterator[RunningClamd]:
    """Yield a daemon that accepts streams of up to `most_bytes`."""
    assert CLAMD
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clamd")))
        (folder / "database").mkdir()
        (folder / "database" / "eicar.ndb").write_text(f"Eicar-Local:0:*:{EICAR[10:].hex()}\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        user = pwd.getpwuid(os.geteuid()).pw_name
        settings = {
            "Foreground": "yes",
            "User": user,
            "DatabaseDirectory": folder / "database",
            "LocalSocket": folder / "socket",
            "TCPSocket": port,
            "TCPAddr": "127.0.0.1",
            "StreamMaxLength": most_bytes,
            "TemporaryDirectory": folder,
        }
        (folder / "clamd.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        process = stack.enter_context(
            subprocess.Popen([CLAMD, "-c", folder / "clamd.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        stack.callback(process.kill)

        def answers() -> bool:
            assert process.poll() is None, "clamd has ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(answers, "clamd to answer", 60)
        yield RunningClamd(str(folder / "socket"), f"127.0.0.1:{port}")
