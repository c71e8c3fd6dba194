"""The child process that opens the untrusted file of one job, and is started for that job alone.

A fork server with the libraries loaded starts it in a few milliseconds. The child may crash, leak, loop or be killed.
The worker reports that and goes on.
"""

import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import pkgutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import structlog
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import from_json

from geoprocessing_worker.errors import ErrorClass, JobError, worker_trouble
from geoprocessing_worker.sandbox import landlock, limits
from geoprocessing_worker.sandbox.landlock import NO_PATHS, AllowedPaths
from geoprocessing_worker.sandbox.limits import DEFAULT_LIMITS, Limits

log = structlog.get_logger(__name__)

Request = TypeVar("Request")
Result = TypeVar("Result", bound=BaseModel)
ProgressCallback = Callable[[str, float, str], None]
# A top-level function, or its name `package.module:function`. Only the child imports a named one.
ChildFunction = Callable[[Request, ProgressCallback], Result] | str

# Bytes of a child's result with its metadata, of which the API accepts 256 kB. To parse as many brackets blocks the
# event loop for 0.2 s, so only one line may be as long.
LONGEST_LINE = 1024 * 1024
LONGEST_REPORT = 16 * 1024
LONGEST_TRACEBACK = 20_000  # characters
WARM_UP_SECONDS = 60.0
# Errors of a start: no process for the fork server, or a fork server that died because it could not fork.
NOT_STARTED = (OSError, EOFError)


class Sandbox(Generic[Request, Result]):
    """Runs `work` in a fresh child for each request.

    Args:
        work: runs in the child.
        result: validates the result, since the child is not trusted.
        preload: modules that the fork server imports once.
        limits: of each child.
        confine: apply the layers of `landlock` to each child, besides the limits.
        most: number of concurrent children, 0 for no limit. Further requests wait.
    """

    def __init__(  # noqa: PLR0913  # each has a default
        self,
        work: ChildFunction[Request, Result],
        result: type[Result],
        *,
        preload: tuple[str, ...] = (),
        limits: Limits = DEFAULT_LIMITS,
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
        self._spares: list[_Child] = []  # one at most
        # Before `multiprocessing` waits for all children at the exit of this process.
        util.Finalize(self, _end_all, args=(self._spares,), exitpriority=1)

    def is_proved(self, seconds: float) -> bool:
        """Return whether a child ended by itself within the last `seconds`, and the fork server lives."""
        return time.monotonic() - self._proved_at < seconds and _fork_server() is not None

    async def warm_up(self) -> None:
        """Start the fork server before the first job, and try all sandbox layers in a child.

        Raises:
            RuntimeError: no process can be started, or a layer cannot be applied.
            TimeoutError: the process does not end.
        """
        process = self._context.Process(target=_try_layers, args=(self._confine,))
        try:
            # From this thread, though it takes 0.5 s: the fork server dies with the thread that started it.
            process.start()
            async with asyncio.timeout(WARM_UP_SECONDS):
                await _ended(process)
        except NOT_STARTED as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        if process.exitcode != 0:
            raise RuntimeError(f"the first one ended with {process.exitcode}")
        self._proved_at = time.monotonic()

    def fork_ahead(self) -> None:
        """Fork the child of the next request, which saves that one 6 ms. It ends with this object."""
        if not self._spares:
            with contextlib.suppress(JobError):  # the next request tries again, and raises it
                self._spares.append(self._start())

    async def run(self, request: Request, report: ProgressCallback, reach: AllowedPaths = NO_PATHS) -> Result:
        """Do the work for one request. A cancel kills the child and all that it started.

        Args:
            request: passed to the work.
            report: receives the stage, the percent within it, and a sentence.
            reach: the paths that the child may use.

        Raises:
            JobError: the child's own error, or `crashed`, `out_of_memory` or `timed_out` by its exit code, or
                `worker_trouble` when no child could be started.
        """
        async with self._places:
            return await self._run(request, report, reach)

    async def _run(self, request: Request, report: ProgressCallback, reach: AllowedPaths) -> Result:
        child = self._take_spare() or self._start()
        try:
            server = _fork_server()
            child.give((request, reach if self._confine else None))
            answer = await self._listen(child.reports, report)
            await _ended(child.process)
        finally:
            child.end()
        if answer is None and (server is None or _fork_server() != server):
            raise worker_trouble("sandbox", reason="the fork server died")
        if answer is not None:
            self._proved_at = time.monotonic()
        return self._outcome(answer, child.process.exitcode)

    def _start(self) -> "_Child":
        requests, to_child = self._context.Pipe(duplex=False)
        reports, to_worker = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child, args=(self._work, self._limits, requests, to_worker), daemon=True
        )
        child = _Child(process, to_child, reports)
        try:
            process.start()  # takes milliseconds. In a thread, a cancel could not undo it.
        except NOT_STARTED as error:
            child.end()
            raise worker_trouble("sandbox", reason=f"{type(error).__name__}: {error}") from error
        finally:
            requests.close()
            to_worker.close()
        return child

    def _take_spare(self) -> "_Child | None":
        if not self._spares:
            return None
        spare = self._spares.pop()
        if spare.process.is_alive():
            return spare
        spare.end()  # killed, or its fork server was
        return None

    async def _listen(self, reader: Connection, report: ProgressCallback) -> dict[str, Any] | None:
        stream = asyncio.StreamReader(limit=LONGEST_LINE)
        pipe = os.fdopen(os.dup(reader.fileno()), "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        answer, left, long_lines = None, self._limits.lines, 0
        try:
            # JSON, not pickle, by which a compromised child would run code here.
            while line := await stream.readline():
                left -= 1
                long_lines += len(line) > LONGEST_REPORT
                if left < 0 or long_lines > 1:
                    raise ValueError("too many or too long lines")  # noqa: TRY301 - handled below with the others
                # Unlike json.loads it rejects lone surrogates, which could not be encoded later.
                message = from_json(line)
                if "report" in message:
                    report(*_read_report(message["report"]))
                else:
                    answer = {str(key): value for key, value in message.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            log.error("child_unreadable", reason=str(error))
            raise _death(None) from None
        finally:
            transport.close()
        return answer

    def _outcome(self, answer: dict[str, Any] | None, exit_code: int | None) -> Result:
        try:
            if answer is not None and "result" in answer and exit_code == 0:
                return self._result.model_validate(answer["result"])
            if answer is not None and "error" in answer:
                raise _ReportedError.model_validate(answer["error"]).as_job_error()
            if answer is not None and "bug" in answer:
                log.error("child_failed", traceback=str(answer["bug"])[-LONGEST_TRACEBACK:])
                raise JobError(
                    "internal_error",
                    "The file met an error in this program. The error is in the worker's log.",
                    ErrorClass.INTERNAL,
                )
        except ValidationError as error:
            log.error("child_unreadable", reason=str(error))
        raise _death(exit_code)


@dataclass(frozen=True)
class _Child:
    """A child that waits for its only request."""

    process: ForkServerProcess
    requests: Connection
    reports: Connection

    def give(self, request: Any) -> None:
        """Send the request.

        Raises:
            JobError: `worker_trouble`: the child is dead.
        """
        try:
            self.requests.send(request)
        except OSError as error:
            raise worker_trouble("sandbox", reason=f"{type(error).__name__}: {error}") from error

    def end(self) -> None:
        """Kill it, and close its pipes."""
        self.requests.close()
        self.reports.close()
        kill(self.process)


def _end_all(children: list[_Child]) -> None:
    while children:
        children.pop().end()


def _fork_server() -> int | None:
    """Return the process id of the fork server, None when it is dead or was never started."""
    # The library has no public way, and starts a new one only with the next child.
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # noqa: SLF001
    if pid is None:
        return None
    try:
        dead = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return None
    return None if dead else int(pid)


def _read_report(fields: Any) -> tuple[str, float, str]:
    stage, percent, text = fields
    if not math.isfinite(percent):
        raise ValueError(f"{percent} percent")
    return str(stage)[:40], min(max(float(percent), 0.0), 100.0), str(text)[:500]


def _allowed_class(error_class: ErrorClass) -> ErrorClass:
    if error_class in {ErrorClass.INTERRUPTED, ErrorClass.CANCELLED}:
        raise ValueError("not a class for a child's error")
    return error_class


class _ReportedError(BaseModel):
    code: str
    message: str
    # The worker alone decides that an error costs no attempt, or a compromised child could repeat its job forever.
    error_class: Annotated[ErrorClass, AfterValidator(_allowed_class)]
    detail: dict[str, Any]

    def as_job_error(self) -> JobError:
        return JobError(self.code, self.message, self.error_class, self.detail)


def kill(process: ForkServerProcess) -> None:
    """Kill a child and everything that it started, even if it has ended by itself."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.exitcode is None:
        # It may not lead its own group yet.
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
        message = "The file took more computing time than a job may use."
        return JobError("timed_out", message, ErrorClass.TIMEOUT, {"limit": "cpu"})
    if exit_code == -signal.SIGKILL:
        # The worker waits for no child that it killed itself, so this was the kernel's out-of-memory killer.
        return _out_of_memory({"signal": "SIGKILL"})
    return JobError(
        "crashed",
        "The program that reads such files broke down over this one. It may be damaged: "
        "opening and saving it again with a GIS often mends it.",
        ErrorClass.INTERNAL,
        {"signal": signal.Signals(-exit_code).name} if exit_code and exit_code < 0 else {"exit_code": exit_code},
    )


def _out_of_memory(detail: dict[str, Any]) -> JobError:
    return JobError("out_of_memory", "The file needs more memory than a job may use.", ErrorClass.RESOURCE, detail)


def _try_layers(confine: bool) -> None:
    if confine:
        landlock.restrict(NO_PATHS)


def _child(
    work: ChildFunction[Request, Result], child_limits: Limits, requests: Connection, writer: Connection
) -> None:
    """Wait for a request in the child, do its work, and write progress and result to a pipe.

    Until the request names the paths, the child reads nothing but its pipe from the worker. It restricts itself before
    the work begins.
    """
    limits.apply(child_limits)
    try:
        request, paths = requests.recv()
    except EOFError:
        os._exit(0)  # the worker needs it no longer
    _close_channels_but(writer.fileno())
    with os.fdopen(os.dup(writer.fileno()), "wb") as pipe:

        def send(message: dict[str, Any]) -> None:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()

        def report(stage: str, percent: float, text: str) -> None:
            send({"report": [stage, percent, text]})

        try:
            if paths is not None:
                _close_terminal()
                landlock.restrict(paths)
            do = pkgutil.resolve_name(work) if isinstance(work, str) else work
            send({"result": do(request, report).model_dump(mode="json")})
        except JobError as error:
            send({"error": _as_json(error)})
        except MemoryError:
            send({"error": _as_json(_out_of_memory({"limit_bytes": child_limits.memory_bytes}))})
        except Exception:  # noqa: BLE001 - a bug, for the log, which only the worker writes
            send({"bug": traceback.format_exc()[-LONGEST_TRACEBACK:]})
    # Skip the libraries' clean-up at exit, which can only fail here.
    os._exit(0)


def _close_channels_but(kept: int) -> None:
    """Close the inherited pipes and sockets, through which a child could reach the fork server.

    Files stay open, since PROJ reads its database.
    """
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            target = str(entry.readlink())
            if int(entry.name) not in (0, 1, 2, kept) and target.startswith(("pipe:", "socket:", "anon_inode:")):
                os.close(int(entry.name))


def _close_terminal() -> None:
    """Redirect the standard streams to /dev/null, so that a hostile file cannot write to a terminal or journal."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _as_json(error: JobError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "error_class": error.error_class, "detail": error.detail}
