"""Starts and stops an embedded PostgreSQL, the job API and workers on this machine, all on loopback."""

import ctypes
import os
import re
import signal
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

from geo_jobs_api import config, errors
from geo_jobs_api.database import embedded
from geoprocessing_worker import config as worker_config
from geoprocessing_worker import errors as worker_errors

# Run by path, so that `ps` shows it.
WORKER_SCRIPT = Path(worker_config.__file__).with_name("worker.py")
HOST = "127.0.0.1"
# Seconds. The first start creates a database cluster, which takes one or two.
START_PATIENCE = 60.0
# Longer than a worker's grace period.
STOP_PATIENCE = 45.0
# Enough to report returned jobs.
PARTING_PATIENCE = 15.0
LOOK_INTERVAL = 0.1
PR_SET_PDEATHSIG = 1

Process = subprocess.Popen[bytes]


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


class PortTaken(Exception):  # noqa: N818 - an answer
    """Another program serves on the port."""


class StackError(Exception):
    """The local stack does not start or broke down. The message names the cure or the log file."""


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Args:
        base_url: the API's.
        api: its process.
        workers: the workers' processes.
        api_log: the API's log file.
        worker_log: the workers' log file.
    """

    base_url: str
    api: Process
    workers: tuple[Process, ...]
    api_log: Path
    worker_log: Path

    def person(self) -> httpx.Client:
        """Return a client with the token of a caller named demo."""
        command = [sys.executable, "-m", "geo_jobs_api", "jwt", "--sub", "demo"]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)  # noqa: S603
        if made.returncode != 0:
            raise StackError(f"No token could be made. {made.stderr.strip()}")
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=30, trust_env=False)

    def check(self) -> None:
        """Raise `StackError` if a part has ended."""
        if self.api.poll() is not None:
            raise StackError(f"The API stopped. The end of {self.api_log}:\n{_tail(self.api_log)}")
        if any(worker.poll() is not None for worker in self.workers):
            raise StackError(f"A worker stopped. See the reason in {self.worker_log}.")

    def wait(self) -> None:
        """Block until a signal arrives or a part ends."""
        while True:
            self.check()
            time.sleep(5 * LOOK_INTERVAL)


@contextmanager
def running(*, quiet: bool, workers: int = 1) -> Iterator[Stack]:
    """Start the stack, and stop it on exit: workers first, since they must return their jobs.

    Args:
        quiet: keep the workers' log lines off the terminal. The log file has them in any case.
        workers: the number of worker processes.

    Raises:
        StackError: a part does not start.
    """
    # SIGTERM stops the whole stack, like Ctrl-C.
    signal.signal(signal.SIGTERM, _terminate)
    with ExitStack() as parts:
        try:
            settings = config.load_settings()
            configuration = worker_config.load()
            conninfo = settings.conninfo
            if conninfo is None:
                database = embedded.start(settings.postgres_dir)
                parts.callback(database.close)
                conninfo = database.conninfo
        except (errors.ConfigurationError, worker_errors.ConfigurationError) as error:
            raise StackError(str(error)) from error
        api_log = settings.data_dir / "api.log"
        log = parts.enter_context(api_log.open("ab"))
        output = log if quiet else None
        # No proxy on loopback.
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        api, base_url = _start_api(parts, settings, environment, log)
        assert settings.worker_auth_token is not None, "load_settings makes one if none is set"  # noqa: S101
        facts = {
            "API_BASE_URL": base_url,
            "WORKER_AUTH_TOKEN": settings.worker_auth_token.get_secret_value(),
            "DATABASE_URL": conninfo,
        }
        _write_stack_env(settings.data_dir / "stack.env", facts)
        worker_log = _worker_log(configuration, settings.data_dir)
        environment |= facts | {"LOG_FILE": str(worker_log)}
        names = _names(configuration.settings.worker_name, workers)
        working = tuple(
            parts.enter_context(_process([str(WORKER_SCRIPT)], environment | {"WORKER_NAME": name}, output))
            for name in names
        )
        yield Stack(base_url, api, working, api_log, worker_log)


def _names(name: str, number: int) -> list[str]:
    return [name] if number == 1 else [f"{name}-{one}" for one in range(1, number + 1)]


def _worker_log(configuration: worker_config.Configuration, data_dir: Path) -> Path:
    """Return the configured log file, or one in `data_dir` if the default is not writable."""
    path = configuration.settings.log_file
    is_writable = os.access(path if path.exists() else path.parent, os.W_OK)
    return path if is_writable or configuration.sources["log_file"] != "default" else data_dir / path.name


@contextmanager
def _process(arguments: list[str], environment: Mapping[str, str], output: IO[bytes] | None) -> Iterator[Process]:
    command = [sys.executable, *arguments]
    process = subprocess.Popen(  # noqa: S603 - our own programs
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # Ctrl-C reaches this process only, which stops the others in order.
        process_group=0,
        # They end if it is killed.
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads here yet
    )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: Process) -> None:
    """Send SIGTERM and wait, then SIGKILL. A second Ctrl-C sends SIGTERM again, which returns jobs at once."""
    for patience in (STOP_PATIENCE, PARTING_PATIENCE):
        process.terminate()
        try:
            process.wait(patience)
        except KeyboardInterrupt:
            continue
        except subprocess.TimeoutExpired:
            break
        return
    process.kill()
    process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _terminate(*_: object) -> None:
    raise Terminated


def _start_api(
    parts: ExitStack, settings: config.Settings, environment: Mapping[str, str], log: IO[bytes]
) -> tuple[Process, str]:
    """Start the API on API_PORT. If that is the default and taken, use any free port."""
    try:
        return _start_api_on(parts, settings.api_port, environment, log)
    except PortTaken:
        if "api_port" in settings.model_fields_set:
            raise StackError(f"Port {settings.api_port} is taken. Set API_PORT to another, or to 0 for any.") from None
        return _start_api_on(parts, 0, environment, log)


def _start_api_on(parts: ExitStack, port: int, environment: Mapping[str, str], log: IO[bytes]) -> tuple[Process, str]:
    """Start the API on a port, 0 for any.

    Returns:
        The process, and its address from its own log. Another program on the port is never asked.

    Raises:
        PortTaken: another program or stack has the port.
        StackError: the API does not start.
    """
    log_start = log.tell()
    command = ["-m", "geo_jobs_api", "serve", "--host", HOST, "--port", str(port)]
    api = parts.enter_context(_process(command, environment, log))
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        ended = api.poll() is not None
        lines = Path(log.name).read_bytes()[log_start:].decode(errors="replace")
        if ended and f"Port {port} " in lines:
            raise PortTaken
        if ended:
            break
        serving = re.search(r"^Serving on (http://\S+)$", lines, re.MULTILINE)
        with suppress(httpx.HTTPError):
            if serving and httpx.get(f"{serving[1]}/health", timeout=5, trust_env=False).is_success:
                return api, serving[1]
        time.sleep(LOOK_INTERVAL)
    raise StackError(f"The API did not start. The end of {log.name}:\n{_tail(Path(log.name))}")


def _write_stack_env(path: Path, facts: Mapping[str, str]) -> None:
    """Write the stack's address and secrets for the health check, readable by the owner only."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    for name, value in facts.items():
        set_key(temporary, name, value, quote_mode="always")
    temporary.replace(path)


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
