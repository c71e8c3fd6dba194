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
# Seconds. A first start makes a database cluster, which takes one or two.
START_PATIENCE = 60.0
# A worker's grace period and some.
STOP_PATIENCE = 45.0
# For the reports of jobs that go back at once.
PARTING_PATIENCE = 15.0
LOOK_INTERVAL = 0.1
PR_SET_PDEATHSIG = 1

Process = subprocess.Popen[bytes]


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


class PortTaken(Exception):  # noqa: N818 - an answer
    """Somebody else serves on the port."""


class StackError(Exception):
    """The local stack cannot be started or has broken down; the message says what to look at."""


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
        """A client with the rights of a person called demo."""
        command = [sys.executable, "-m", "geo_jobs_api", "jwt", "--sub", "demo"]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)  # noqa: S603
        if made.returncode != 0:
            raise StackError(f"no token for a person can be made: {made.stderr.strip()}")
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=30, trust_env=False)

    def check(self) -> None:
        """Raise `StackError` if a part has ended."""
        if self.api.poll() is not None:
            raise StackError(f"the API has ended; its last words, from {self.api_log}:\n{_tail(self.api_log)}")
        if any(worker.poll() is not None for worker in self.workers):
            raise StackError(f"a worker has ended; the reason is in {self.worker_log}")

    def wait(self) -> None:
        """Stay until a signal comes or a part ends."""
        while True:
            self.check()
            time.sleep(5 * LOOK_INTERVAL)


@contextmanager
def running(*, quiet: bool, workers: int = 1) -> Iterator[Stack]:
    """Start the stack, and stop it in good order on leaving: the workers first, which have to hand their jobs back.

    Args:
        quiet: keep the workers' lines off the terminal; they are in the log file all the same.
        workers: the number of worker processes.

    Raises:
        StackError: a part does not start.
    """
    # Whoever ends this process means the whole stack; the way out is the same as for Ctrl-C.
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
        # A proxy of this machine's has no business on loopback.
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        api, base_url = _start_api(parts, settings, environment, log)
        assert settings.worker_auth_token is not None, "load_settings makes one where there is none"  # noqa: S101
        facts = {
            "API_BASE_URL": base_url,
            "WORKER_AUTH_TOKEN": settings.worker_auth_token.get_secret_value(),
            "DATABASE_URL": conninfo,
        }
        _leave_word(settings.data_dir / "stack.env", facts)
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
    """The log file of the settings, or one in `data_dir` where that is the default and cannot be written."""
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
        # Ctrl-C reaches this process only, which stops the others one after the other …
        process_group=0,
        # … and they end with it, should it be killed.
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads here yet
    )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: Process) -> None:
    """SIGTERM and a grace period; a second signal to us is passed on, which gives jobs back at once; then force."""
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
    """Start the API on API_PORT. Only where that is the default, a port that is taken is replaced by any other."""
    try:
        return _start_api_on(parts, settings.api_port, environment, log)
    except PortTaken:
        if "api_port" in settings.model_fields_set:
            raise StackError(f"port {settings.api_port} is taken; set API_PORT to another, or to 0 for any") from None
        return _start_api_on(parts, 0, environment, log)


def _start_api_on(parts: ExitStack, port: int, environment: Mapping[str, str], log: IO[bytes]) -> tuple[Process, str]:
    """Start the API on a port, 0 for any.

    Returns:
        The process, and the address that it said itself: whatever else answers on the port is not asked.

    Raises:
        PortTaken: by another program, or another stack.
        StackError: it does not start.
    """
    said_before = log.tell()
    command = ["-m", "geo_jobs_api", "serve", "--host", HOST, "--port", str(port)]
    api = parts.enter_context(_process(command, environment, log))
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline:
        ended = api.poll() is not None
        said = Path(log.name).read_bytes()[said_before:].decode(errors="replace")
        if ended and f"Port {port} " in said:
            raise PortTaken
        if ended:
            break
        serving = re.search(r"^Serving on (http://\S+)$", said, re.MULTILINE)
        with suppress(httpx.HTTPError):
            if serving and httpx.get(f"{serving[1]}/health", timeout=5, trust_env=False).is_success:
                return api, serving[1]
        time.sleep(LOOK_INTERVAL)
    raise StackError(f"the API did not start; its last words, from {log.name}:\n{_tail(Path(log.name))}")


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
