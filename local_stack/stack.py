"""Starts and stops the three on this machine: an embedded PostgreSQL, the job API, a worker. All on loopback."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
from dotenv import set_key

from geo_jobs_api import config, embedded, errors

HOST = "127.0.0.1"
USUAL_PORT = 8000
# Seconds. A first start makes a database cluster, which takes one or two.
START_PATIENCE = 60.0
# A worker's grace period and some.
STOP_PATIENCE = 45.0
LOOK_INTERVAL = 0.1
PR_SET_PDEATHSIG = 1

Process = subprocess.Popen[bytes]


class StackError(Exception):
    """The local stack cannot be started or has broken down; the message says what to look at."""


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Args:
        base_url: the API's.
        api: its process.
        worker: the worker's process.
        api_log: where the API's lines are.
    """

    base_url: str
    api: Process
    worker: Process
    api_log: Path

    def person(self) -> httpx.Client:
        """A client with the rights of a person called demo."""
        command = [sys.executable, "-m", "geo_jobs_api", "jwt", "--sub", "demo"]
        token = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()  # noqa: S603
        return httpx.Client(base_url=self.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def check(self) -> None:
        """Raise `StackError` if a part has ended."""
        if self.api.poll() is not None:
            raise StackError(f"the API has ended; its last words, from {self.api_log}:\n{_tail(self.api_log)}")
        if self.worker.poll() is not None:
            raise StackError("the worker has ended; worker.log tells why")

    def wait(self) -> None:
        """Stay until a signal comes or a part ends."""
        while True:
            self.check()
            time.sleep(5 * LOOK_INTERVAL)


@contextmanager
def running(*, quiet: bool) -> Iterator[Stack]:
    """Start the stack, and stop it in good order on leaving: the worker first, which has to hand its jobs back.

    Args:
        quiet: keep the worker's lines off the terminal; they are in `worker.log` all the same.

    Raises:
        StackError: a part does not start.
    """
    # Whoever ends this process means the whole stack; the way out is the same as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as parts:
        try:
            settings = config.load_settings()
            conninfo = settings.conninfo
            if conninfo is None:
                database = embedded.start(settings.postgres_dir)
                parts.callback(database.close)
                conninfo = database.conninfo
        except errors.ConfigurationError as error:
            raise StackError(str(error)) from error
        api_log = settings.data_dir / "api.log"
        log = parts.enter_context(api_log.open("ab"))
        port = _free_port()
        base_url = f"http://{HOST}:{port}"
        command = ["geo_jobs_api", "serve", "--host", HOST, "--port", str(port)]
        api = parts.enter_context(_process(command, os.environ, log))
        _until_healthy(base_url, api, api_log)
        assert settings.worker_auth_token is not None, "load_settings makes one where there is none"  # noqa: S101
        facts = {
            "API_BASE_URL": base_url,
            "WORKER_AUTH_TOKEN": settings.worker_auth_token.get_secret_value(),
            "DATABASE_URL": conninfo,
        }
        _leave_word(settings.data_dir / "stack.env", facts)
        worker = parts.enter_context(_process(["geoprocessing_worker"], os.environ | facts, log if quiet else None))
        yield Stack(base_url, api, worker, api_log)


@contextmanager
def _process(arguments: list[str], environment: Mapping[str, str], output: IO[bytes] | None) -> Iterator[Process]:
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(  # noqa: S603 - our own programs
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # Ctrl-C reaches this process only, which stops the others one after the other …
        process_group=0,
        # … and they end with it, should it be killed.
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads here yet
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _until_healthy(base_url: str, api: Process, api_log: Path) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        if api.poll() is not None:
            break
        with suppress(httpx.HTTPError):
            if httpx.get(f"{base_url}/health", timeout=5).is_success:
                return
        time.sleep(LOOK_INTERVAL)
    raise StackError(f"the API did not start; its last words, from {api_log}:\n{_tail(api_log)}")


def _free_port() -> int:
    """The usual port if it is free, else one that the system gives."""
    for port in (USUAL_PORT, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise StackError("no free port on loopback")


def _leave_word(path: Path, facts: Mapping[str, str]) -> None:
    """Tell the health check where the stack is; the file holds secrets."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    for name, value in facts.items():
        set_key(temporary, name, value, quote_mode="always")
    temporary.replace(path)


def _tail(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
