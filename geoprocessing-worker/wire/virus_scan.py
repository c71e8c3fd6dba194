"""Asks ClamAV's daemon about a file before anything else looks at it. Without its word no file is processed."""

import asyncio
import socket
from pathlib import Path
from typing import BinaryIO

from clamdpy import ClamdNetworkSocket, ClamdUnixSocket
from clamdpy.exceptions import ClamdException

from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input

# Seconds that the daemon may be silent; a large archive takes it a while.
SILENCE = 120.0
PING_SILENCE = 5.0
CHUNK = 256 * 1024


class Scanner:
    """A connection's maker to one clamd; each call connects anew.

    Args:
        address: the path of its socket, or host:port.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def scan(self, path: Path) -> None:
        """Have a file looked at, by sending it.

        Raises:
            JobError: `malware_found`; `scanner_unavailable`, transient, when there is no clear answer.
        """
        await asyncio.to_thread(self._scan, path)

    def _scan(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                answer = _stream(self._connection(SILENCE), file)
        except (ClamdException, OSError, ValueError) as error:
            raise _unavailable(type(error).__name__) from error
        status, reason = answer
        if status == "FOUND":
            raise invalid_input(
                "malware_found", f"The virus scanner found {reason or 'something'} in the file.", name=reason
            )
        if status != "OK":
            raise _unavailable(f"it answered {status}: {reason}")

    def ping(self) -> None:
        """Raise OSError with a sentence if the daemon does not answer."""
        try:
            self._connect_once()
            said = self._connection(PING_SILENCE).ping()
        except (ClamdException, OSError, ValueError) as error:
            raise OSError(f"no virus scanner answers at {self._address}") from error
        if said != "PONG":
            raise OSError(f"what answers at {self._address} is no virus scanner")

    def _connect_once(self) -> None:
        """Raise OSError if nothing listens; clamdpy 0.2.0 leaves such a socket open, one for each look of a worker."""
        if self._address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as plain:
                plain.settimeout(PING_SILENCE)
                plain.connect(self._address)
            return
        host, _, port = self._address.rpartition(":")
        socket.create_connection((host, int(port)), PING_SILENCE).close()

    def _connection(self, silence: float) -> ClamdNetworkSocket:
        if self._address.startswith("/"):
            return ClamdUnixSocket(self._address, timeout=silence, max_chunk_size=CHUNK)
        host, _, port = self._address.rpartition(":")
        return ClamdNetworkSocket(host, int(port), timeout=silence, max_chunk_size=CHUNK)


def _stream(connection: ClamdNetworkSocket, file: BinaryIO) -> tuple[str, str | None]:
    result = connection.instream(file)
    return result.status, result.reason


def _unavailable(why: str) -> JobError:
    return JobError(
        "scanner_unavailable",
        "The file could not be checked for malware, and is not processed without.",
        ErrorClass.TRANSIENT,
        {"reason": why},
    )
