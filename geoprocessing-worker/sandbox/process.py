"""Runs the part of a job that opens a stranger's file: in a process of its own, made for that job alone.

A fork server that has imported rasterio and libvips makes such a process in a few milliseconds. The process may crash,
leak, loop or be killed; the worker says what happened and goes on.
"""

import asyncio
import contextlib
import functools
import json
import math
import multiprocessing
import os
import pkgutil
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import structlog
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import from_json

from geoprocessing_worker.errors import ErrorClass, JobError, worker_trouble
from geoprocessing_worker.sandbox import landlock, libc
from geoprocessing_worker.sandbox.landlock import NO_PATHS, AllowedPaths

log = structlog.get_logger(__name__)

Request = TypeVar("Request")
Result = TypeVar("Result", bound=BaseModel)
ProgressCallback = Callable[[str, float, str], None]
# A function of the top level of a module, or its name `package.module:function`. Only the child imports a named one.
ChildFunction = Callable[[Request, ProgressCallback], Result] | str

# Bytes of a child's result, which carries the metadata, of which the API takes 256 kB. To parse as many brackets takes
# the event loop a fifth of a second, so that only one line may be as long.
LONGEST_LINE = 1024 * 1024
LONGEST_REPORT = 16 * 1024
LONGEST_TRACEBACK = 20_000  # characters
CPU_GRACE = 10
WARM_UP_SECONDS = 60.0
# What a start raises: no process for the fork server, or a fork server that died because it could not fork.
NOT_STARTED = (OSError, EOFError)
# Threads that the children of a user may have beside what already runs. A job has five, and a kernel 32,768 in all.
SPARE_TASKS = 2048


@dataclass(frozen=True)
class Limits:
    """What one child may do."""

    memory_bytes: int = 4 * 1024**3
    cpu_seconds: int | None = 7200
    file_bytes: int = 4 * 1024**3
    open_files: int = 256
    # Reports and the result; the largest jobs have some ten thousand, and a quarter of a million take a core 2 s.
    lines: int = 250_000
    # Not a limit on use but on view: what a child makes is for its owner only.
    umask: int = 0o077


class Sandbox(Generic[Request, Result]):
    """Runs `work` in a fresh child for each request.

    Args:
        work: what the child does.
        result: the model that its result must fit; a child is not trusted to tell the truth about its own type.
        preload: modules that the fork server imports once, for all.
        limits: for each child.
        confine: put up the walls of `confinement` round each child; without, only the limits hold.
        most: children at a time; who asks for more waits. 0: as many as are asked for.
    """

    def __init__(  # noqa: PLR0913  # each has a default
        self,
        work: ChildFunction[Request, Result],
        result: type[Result],
        *,
        preload: tuple[str, ...] = (),
        limits: Limits = Limits(),
        confine: bool = True,
        most: int = 0,
    ) -> None:
        self.most = most
        self._places = asyncio.Semaphore(most) if most else contextlib.nullcontext()
        self._work = work
        self._confine = confine
        self._result = result
        self._limits = limits
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *preload])
        self._proved_at = -math.inf

    def is_proved(self, seconds: float) -> bool:
        """Whether a child came up and ended by itself within the last `seconds`, and the fork server lives."""
        return time.monotonic() - self._proved_at < seconds and _fork_server() is not None

    async def warm_up(self) -> None:
        """Start the fork server, so that the first job does not wait for its imports, and put up all walls once.

        Raises:
            RuntimeError: no process can be made, or a wall that should stand cannot be put up.
            TimeoutError: the process does not end.
        """
        process = self._context.Process(target=_nothing, args=(self._confine,))
        try:
            # From this thread, though it takes half a second: the fork server dies with the thread that started it.
            process.start()
            async with asyncio.timeout(WARM_UP_SECONDS):
                await _ended(process)
        except NOT_STARTED as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        if process.exitcode != 0:
            raise RuntimeError(f"the first one ended with {process.exitcode}")
        self._proved_at = time.monotonic()

    async def run(self, request: Request, report: ProgressCallback, reach: AllowedPaths = NO_PATHS) -> Result:
        """Do the work for one request; when cancelled, the child is killed with all that it started.

        Args:
            request: what to do.
            report: told the stage, the percent done within it, and a sentence.
            reach: the paths that the child may use.

        Raises:
            JobError: what the child refused, or `crashed`, `out_of_memory`, `timed_out` for how it ended;
                `worker_trouble` when there could be no child.
        """
        async with self._places:
            return await self._run(request, report, reach)

    async def _run(self, request: Request, report: ProgressCallback, reach: AllowedPaths) -> Result:
        reader, writer = self._context.Pipe(duplex=False)
        walls = reach if self._confine else None
        process = self._context.Process(
            target=_child, args=(self._work, request, self._limits, walls, writer), daemon=True
        )
        try:
            self._start(process)
            server = _fork_server()
            writer.close()
            said = await self._listen(reader, report)
            await _ended(process)
        finally:
            writer.close()
            reader.close()
            kill(process)
        if said is None and (server is None or _fork_server() != server):
            raise worker_trouble("sandbox", reason="the fork server died")
        if said is not None:
            self._proved_at = time.monotonic()
        return self._outcome(said, process.exitcode)

    @staticmethod
    def _start(process: ForkServerProcess) -> None:
        try:
            process.start()  # milliseconds, and a start in a thread could not be undone when this is cancelled
        except NOT_STARTED as error:
            raise worker_trouble("sandbox", reason=f"{type(error).__name__}: {error}") from error

    async def _listen(self, reader: Connection, report: ProgressCallback) -> dict[str, Any] | None:
        stream = asyncio.StreamReader(limit=LONGEST_LINE)
        pipe = os.fdopen(os.dup(reader.fileno()), "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        said, left, long_lines = None, self._limits.lines, 0
        try:
            # JSON and not pickle: a child that a hostile file has taken over must not run code here.
            while line := await stream.readline():
                left -= 1
                long_lines += len(line) > LONGEST_REPORT
                if left < 0 or long_lines > 1:
                    raise ValueError("too many or too long lines")  # noqa: TRY301 - one place answers what it says
                # Unlike the standard library's reader, without lone surrogates, which nothing could write any more.
                message = from_json(line)
                if "report" in message:
                    report(*_read_report(message["report"]))
                else:
                    said = {str(key): value for key, value in message.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            log.error("child_unreadable", reason=str(error))
            raise _death(None) from None
        finally:
            transport.close()
        return said

    def _outcome(self, said: dict[str, Any] | None, exit_code: int | None) -> Result:
        try:
            if said is not None and "result" in said and exit_code == 0:
                return self._result.model_validate(said["result"])
            if said is not None and "error" in said:
                raise _ReportedError.model_validate(said["error"]).as_job_error()
            if said is not None and "bug" in said:
                log.error("child_failed", traceback=str(said["bug"])[-LONGEST_TRACEBACK:])
                raise JobError(
                    "internal_error",
                    "The file met a mistake in this program. The mistake is in the worker's log.",
                    ErrorClass.INTERNAL,
                )
        except ValidationError as error:
            log.error("child_unreadable", reason=str(error))
        raise _death(exit_code)


def _fork_server() -> int | None:
    """The process id of the fork server; None when it is dead or was never started."""
    # The library tells it to nobody, and starts a new one only with the next child.
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # noqa: SLF001
    if pid is None:
        return None
    try:
        dead = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return None
    return None if dead else int(pid)


def _read_report(words: Any) -> tuple[str, float, str]:
    stage, percent, text = words
    if not math.isfinite(percent):
        raise ValueError(f"{percent} percent")
    return str(stage)[:40], min(max(float(percent), 0.0), 100.0), str(text)[:500]


def _of_the_job(error_class: ErrorClass) -> ErrorClass:
    if error_class in {ErrorClass.INTERRUPTED, ErrorClass.CANCELLED}:
        raise ValueError("not the child's to say")
    return error_class


class _ReportedError(BaseModel):
    code: str
    message: str
    # What costs a job no attempt is the worker's to say: a file that took over its process would be tried for ever.
    error_class: Annotated[ErrorClass, AfterValidator(_of_the_job)]
    detail: dict[str, Any]

    def as_job_error(self) -> JobError:
        return JobError(self.code, self.message, self.error_class, self.detail)


def kill(process: ForkServerProcess) -> None:
    """End a child and everything that it started, also when it has ended by itself."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.exitcode is None:
        # It may not have come to lead its own group yet.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    process.join(timeout=5)


async def _ended(process: ForkServerProcess) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()


def _death(exit_code: int | None) -> JobError:
    if exit_code == -signal.SIGXCPU:
        return JobError(
            "timed_out",
            "The file took more computing time than a job may use.",
            ErrorClass.TIMEOUT,
            {"limit": "cpu"},
        )
    if exit_code == -signal.SIGKILL:
        # Nobody here killed it, since then nobody would have waited for it: the kernel's out-of-memory killer did.
        return _out_of_memory({"signal": "SIGKILL"})
    return JobError(
        "crashed",
        "The program that reads such files broke down over this one. It may be damaged: "
        "opening and saving it again with a GIS often mends it.",
        ErrorClass.INTERNAL,
        {"signal": signal.Signals(-exit_code).name} if exit_code and exit_code < 0 else {"exit_code": exit_code},
    )


def _out_of_memory(detail: dict[str, Any]) -> JobError:
    return JobError(
        "out_of_memory",
        "The file needs more memory than a job may use.",
        ErrorClass.RESOURCE,
        detail,
    )


def _nothing(confine: bool) -> None:
    if confine:
        landlock.restrict(NO_PATHS)


def _child(
    work: ChildFunction[Request, Result],
    request: Request,
    limits: Limits,
    walls: AllowedPaths | None,
    writer: Connection,
) -> None:
    """What runs in the child, from its first to its last breath."""
    _limit(limits)
    _close_channels_but(writer.fileno())
    with os.fdopen(os.dup(writer.fileno()), "wb") as pipe:

        def say(message: dict[str, Any]) -> None:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()

        def report(stage: str, percent: float, text: str) -> None:
            say({"report": [stage, percent, text]})

        try:
            if walls is not None:
                _close_terminal()
                landlock.restrict(walls)
            do = pkgutil.resolve_name(work) if isinstance(work, str) else work
            say({"result": do(request, report).model_dump(mode="json")})
        except JobError as error:
            say({"error": _described(error)})
        except MemoryError:
            say({"error": _described(_out_of_memory({"limit_bytes": limits.memory_bytes}))})
        except Exception:  # noqa: BLE001 - a mistake of ours; it goes to the log, which only the worker writes
            say({"bug": traceback.format_exc()[-LONGEST_TRACEBACK:]})
    # Libraries' own clean-up at exit has nothing to do here, but things to break.
    os._exit(0)


def _close_channels_but(kept: int) -> None:
    """Close the pipes and sockets that multiprocessing passes on: through them a child could talk to the fork server.

    Files stay open: PROJ goes on reading its database.
    """
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor that the listing itself went through is gone by now
            leads_to = str(entry.readlink())
            if int(entry.name) not in (0, 1, 2, kept) and leads_to.startswith(("pipe:", "socket:", "anon_inode:")):
                os.close(int(entry.name))


def _close_terminal() -> None:
    """What a hostile file could write to the worker's terminal or its journal goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _described(error: JobError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "error_class": error.error_class, "detail": error.detail}


@functools.cache
def most_tasks() -> int:
    """Return the limit on threads and processes of this user: all that run now, and `SPARE_TASKS`.

    The kernel counts them by user and not by process. It holds nobody to it who is root.
    """
    return SPARE_TASKS + sum(_threads_of(status, os.getuid()) for status in Path("/proc").glob("[0-9]*/status"))


def _threads_of(status: Path, user: int) -> int:
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    except OSError:  # it has ended since
        return 0
    return int(fields["Threads"]) if int(fields["Uid"].split()[0]) == user else 0


def _limit(limits: Limits) -> None:
    # The fork server dies with the worker, however that came about, and no child outlives the fork server.
    libc.die_with_parent()
    worker = multiprocessing.parent_process()
    if worker is None or not worker.is_alive():
        os._exit(1)  # it died before the kernel was told to watch
    os.setsid()
    # Whoever stops the worker may signal its whole control group; the job's fate is the worker's decision.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.umask(limits.umask)
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, resource.RLIM_INFINITY if limits.cpu_seconds is None else limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, most_tasks()),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # The hard limit on time ends with a SIGKILL that says nothing; the soft one names itself.
        later = CPU_GRACE if kind == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(kind, (soft, soft + later))
