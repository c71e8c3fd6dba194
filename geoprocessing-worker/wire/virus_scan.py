"""Scan of a file by ClamAV's daemon, before anything else opens it. Without a clear answer no file is processed."""

import asyncio
import socket
from pathlib import Path
from typing import BinaryIO

from clamdpy import ClamdNetworkSocket, ClamdUnixSocket
from clamdpy.exceptions import ClamdException

from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input
from geoprocessing_worker.own_folder import open_regular

# Seconds without an answer. A large archive takes the daemon a while.
SILENCE = 120.0
PING_SILENCE = 5.0
CHUNK = 256 * 1024


class Scanner:
    """One clamd. Each call makes a new connection.

    Args:
        address: the path of its socket, or host:port.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def scan(self, path: Path) -> None:
        """Send a file to the scanner.

        Raises:
            JobError: `malware_found`, or `scanner_unavailable`, transient, without a clear answer.
        """
        await asyncio.to_thread(self._scan, path)

    def _scan(self, path: Path) -> None:
        try:
            with open(path, "rb", opener=open_regular) as file:
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
        """Raise OSError if the daemon does not answer."""
        try:
            self._connect_once()
            answer = self._connection(PING_SILENCE).ping()
        except (ClamdException, OSError, ValueError) as error:
            raise OSError(f"no virus scanner answers at {self._address}") from error
        if answer != "PONG":
            raise OSError(f"the server at {self._address} is no virus scanner")

    def _connect_once(self) -> None:
        """Raise OSError if nothing listens. clamdpy 0.2.0 would leak a socket for each such check."""
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
        "The file could not be scanned for malware, so it was not processed.",
        ErrorClass.TRANSIENT,
        {"reason": why},
    )
