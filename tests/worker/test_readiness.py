"""A worker on a host with trouble claims nothing, reports it, and spends no attempt. Real HTTP, real processes."""

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from geoprocessing_worker import host
from geoprocessing_worker.config import Settings
from geoprocessing_worker.jobs import daemon as daemon_module
from geoprocessing_worker.jobs.daemon import Daemon
from geoprocessing_worker.jobs.runner import Ending, WorkerContext
from geoprocessing_worker.wire.virus_scan import Scanner
from tests.support.bench import Bench
from tests.support.scripted_api import ScriptedApi, answer, problem
from tests.support.waiting import until

NOTHING = answer(status=204)
TAKES_TROUBLE = {"Worker-Extensions": "trouble"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "PAUSE_FIRST", 0.05)
    monkeypatch.setattr(daemon_module, "PAUSE_LAST", 0.1)


@pytest.fixture
async def bench(server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(server, http, tmp_path)
    server.on("claim", NOTHING)
    yield bench
    await bench.api.aclose()
    assert bench.folders() == [], "a folder was left behind"


def daemon(tools: WorkerContext, **settings: Any) -> Daemon:
    changed = tools.settings.model_copy(update={"poll_interval": 0.01, **settings})
    return Daemon(WorkerContext(**{**vars(tools), "settings": changed}), jitter=lambda: 0.0)


def claims(server: ScriptedApi) -> list[dict[str, Any]]:
    return [call.json for call in server.calls("claim") if call.method == "POST"]


async def test_a_claim_declares_the_workers_capabilities(bench: Bench) -> None:
    """Its own settings, hosts in the form in which they are asked for."""
    working = daemon(
        bench.tools,
        max_file_size=1234,
        source_hosts=("b.example.org", "*.bücher.example", "*"),
        max_memory_mb=600,
        concurrent_jobs=3,
    )
    running = asyncio.create_task(working.run())
    await bench.server.until_asked("claim", 1)
    working.stop()
    await running
    assert claims(bench.server)[0]["capabilities"] == {
        "maxFileSize": 1234,
        "sourceHosts": ["*", "*.xn--bcher-kva.example", "b.example.org"],
        "memoryMb": 600,
        "concurrentJobs": 3,
    }


def too_large_for_any_disk(tools: WorkerContext, _folder: Path) -> tuple[WorkerContext, Callable[[], None]]:
    settings = tools.settings.model_copy(update={"max_file_size": 10**17})
    mended = tools.settings.model_copy()

    def mend() -> None:
        object.__setattr__(settings, "max_file_size", mended.max_file_size)

    return WorkerContext(**{**vars(tools), "settings": settings}), mend


def folder_is_a_file(tools: WorkerContext, folder: Path) -> tuple[WorkerContext, Callable[[], None]]:
    (folder / "work").write_text("in the way")
    return tools, (folder / "work").unlink


def memory_is_short(tools: WorkerContext, _folder: Path) -> tuple[WorkerContext, Callable[[], None]]:
    settings = tools.settings.model_copy(update={"min_free_memory_mb": 10**9})
    return WorkerContext(**{**vars(tools), "settings": settings}), lambda: object.__setattr__(
        settings, "min_free_memory_mb", 1
    )


class Ponging:
    """A clamd that answers PING, at an address where nothing listened before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server: asyncio.AbstractServer | None = None

    async def serve(self) -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"PONG\n")
            writer.close()

        self.server = await asyncio.start_unix_server(speak, self.path)


@pytest.mark.parametrize(
    ("code", "make"),
    [("disk", too_large_for_any_disk), ("disk", folder_is_a_file), ("memory", memory_is_short)],
    ids=["disk full", "disk unwritable", "memory"],
)
async def test_trouble_stops_claims_until_it_is_over(
    bench: Bench, tmp_path: Path, code: str, make: Callable[..., tuple[WorkerContext, Callable[[], None]]]
) -> None:
    """One ERROR at the start, one INFO at the end, no claim in between, and the API hears of it if it takes that."""
    tools, mend = make(bench.tools, tmp_path)
    bench.server.on("claim", Response(status_code=204, headers=TAKES_TROUBLE))
    working = Daemon(tools, jitter=lambda: 0.0)
    with capture_logs() as said:
        running = asyncio.create_task(working.run())
        await until(lambda: len(claims(bench.server)) >= 3)
        told = claims(bench.server)
        mend()
        await until(lambda: claims(bench.server)[-1]["maxJobs"] == 1)
        working.stop()
        await running
    assert {(one["maxJobs"], one["waitSeconds"], one["trouble"][0]["code"]) for one in told} == {(0, 0, code)}
    assert "trouble" not in claims(bench.server)[-1]
    events = [(line["event"], line["log_level"]) for line in said if line["event"].startswith("trouble")]
    assert events == [("trouble", "error"), ("trouble_over", "info")]
    assert next(line for line in said if line["event"] == "trouble")["codes"] == [code]


async def test_a_scanner_that_is_away_stops_claims_until_it_answers(bench: Bench, tmp_path: Path) -> None:
    scanner = Ponging(tmp_path / "clamd")
    tools = bench.with_tools(scanner=Scanner(str(scanner.path)))
    bench.server.on("claim", Response(status_code=204, headers=TAKES_TROUBLE))
    working = daemon(tools)
    running = asyncio.create_task(working.run())
    await until(lambda: len(claims(bench.server)) >= 2)
    assert [one["trouble"][0]["code"] for one in claims(bench.server)[:2]] == ["scanner", "scanner"]
    await scanner.serve()
    await until(lambda: claims(bench.server)[-1]["maxJobs"] == 1)
    working.stop()
    await running
    assert scanner.server is not None
    scanner.server.close()


@pytest.mark.parametrize("status", [404, 405, 200])
async def test_a_server_of_the_five_calls_gets_no_odd_claims(bench: Bench, status: int) -> None:
    """It announces nothing, so a worker in trouble only asks by GET whether it does, and claims nothing."""
    bench.server.on("claim", problem(status, "not_found") if status != 200 else answer({}))
    working = daemon(bench.tools, min_free_memory_mb=10**9)
    running = asyncio.create_task(working.run())
    await bench.server.until_asked("claim", 3)
    working.stop()
    await running
    assert {call.method for call in bench.server.calls("claim")} == {"GET"}


async def test_a_clock_that_is_days_off_gives_the_first_job_back_and_stops_claims(bench: Bench) -> None:
    """Only the answer to a claim shows it. An hour is no trouble."""
    jobs = {"serverTime": "2030-01-01T00:00:00Z", "jobs": [bench.job()]}
    first = answer(jobs)
    first.headers.update(TAKES_TROUBLE | {"Date": formatdate(time.time() + 3 * 86_400, usegmt=True)})
    later = Response(status_code=204, headers=TAKES_TROUBLE | {"Date": formatdate(time.time() + 3600, usegmt=True)})
    still = Response(status_code=204, headers=dict(first.headers) | {"content-length": "0"})
    bench.server.on("claim", first, still, still, later)
    working = daemon(bench.tools)
    running = asyncio.create_task(working.run())
    await until(lambda: len(claims(bench.server)) >= 5)
    working.stop()
    await running
    assert bench.failure()["detail"] == {"trouble": "clock"}
    assert bench.failure()["class"] == "interrupted"
    asked = claims(bench.server)
    assert [one["maxJobs"] for one in asked[:5]] == [1, 0, 0, 0, 1]
    assert "3.0 days behind" in asked[1]["trouble"][0]["message"]


async def test_repeated_trouble_without_a_finding_doubles_the_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a quota, for example: each job goes back, and the next claim waits twice as long."""
    monkeypatch.setattr(daemon_module, "PAUSE_FIRST", 0.5)
    monkeypatch.setattr(daemon_module, "PAUSE_LAST", 10)
    moments: dict[str, list[float]] = {"claim": [], "fail": []}

    async def hand_out(_: Request) -> Response:
        moments["claim"].append(time.monotonic())
        return answer({"serverTime": "2030-01-01T00:00:00Z", "jobs": [bench.job(id=f"j{len(moments['claim'])}")]})

    async def take_back(_: Request) -> Response:
        moments["fail"].append(time.monotonic())
        return answer({"state": "queued", "nextAttemptAt": None, "replayed": False})

    def no_room(*_: Any, **__: Any) -> str:
        raise OSError(122, "Disk quota exceeded")

    bench.server.on("claim", hand_out)
    bench.server.on("fail", take_back)
    monkeypatch.setattr("geoprocessing_worker.jobs.workspace.tempfile", SimpleNamespace(mkdtemp=no_room))
    working = daemon(bench.tools)
    running = asyncio.create_task(working.run())
    await bench.server.until_asked("fail", 3)
    working.stop()
    await running
    pauses = [claim - fail for fail, claim in zip(moments["fail"], moments["claim"][1:], strict=False)]
    # Half of 0.5 s and of 1 s, since there is no jitter.
    assert pauses[0] >= 0.24
    assert pauses[1] >= 0.49
    reports = [call.json["error"] for call in bench.server.calls("fail")]
    assert [(one["class"], one["code"]) for one in reports] == [("interrupted", "worker_trouble")] * 3


@pytest.mark.parametrize("work", ["refuse", "break"], ids=["a refusal of the file", "a mistake of the program"])
async def test_any_failure_during_trouble_of_the_host_gives_the_job_back(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path, work: str
) -> None:
    """A full disk can look like a damaged file. Another worker repeats the job."""
    bench = Bench(server, http, tmp_path, f"tests.support.child_work:{work}_at_work")
    assert await bench.run() is Ending.FAILED
    settings = bench.tools.settings.model_copy(update={"min_free_memory_mb": 10**9})
    bench.tools = bench.with_tools(settings=settings)
    assert await bench.run() is Ending.GIVEN_BACK
    reports = [call.json["error"] for call in server.calls("fail")]
    assert [one["class"] for one in reports][1] == "interrupted"
    assert reports[1]["detail"]["trouble"] == "memory"
    assert reports[1]["detail"]["instead_of"] == reports[0]["code"]
    assert str(tmp_path) not in str(reports[1]), "paths of the host are not for the job's owner"
    await bench.api.aclose()


async def test_a_job_that_fills_the_disk_itself_pays_for_it(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look comes after the job's folder is gone, so its own bytes are no excuse."""
    bench = Bench(server, http, tmp_path, "tests.support.child_work:fill_and_break")
    work = tmp_path / "work"

    def room(settings: Settings, found: os.statvfs_result) -> int:
        del settings, found
        return 0 if any(work.glob("geojob_*/outputs/filling")) else 1

    monkeypatch.setattr(host, "_jobs_with_room", room)
    assert await bench.run() is Ending.FAILED
    assert bench.failure()["class"] == "internal"
    await bench.api.aclose()


async def test_a_dead_fork_server_gives_the_job_back_and_is_started_again(
    server: ScriptedApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Its children die with it, by a signal that looks like the kernel's for too much memory."""
    from tests.support.child_work import FOR_EVER

    bench = Bench(server, http, tmp_path, FOR_EVER)
    work = tmp_path / "work"
    running = asyncio.create_task(bench.run())
    await until(lambda: bool([*work.glob("geojob_*/outputs/begun")]) or bool(server.calls("progress")))
    await until(lambda: any(call.json["stage"] == "render" for call in server.calls("progress")))
    from multiprocessing import forkserver

    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert await running is Ending.GIVEN_BACK
    assert bench.failure()["detail"]["trouble"] == "sandbox"
    assert await bench.tools.look(thorough=True) == ()
    await bench.api.aclose()


async def test_a_worker_that_cannot_fork_claims_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server is gone, and the kernel gives no further process."""

    def no_more(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr("multiprocessing.context.ForkServerProcess.start", no_more)
        (trouble,) = await bench.tools.look(thorough=True)
        assert trouble.code == "sandbox"
        assert "Resource temporarily unavailable" in trouble.message
        assert await bench.run() is Ending.GIVEN_BACK
    assert bench.failure()["detail"]["trouble"] == "sandbox"
    assert await bench.tools.look(thorough=True) == ()


def test_memory_is_the_least_that_host_and_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a container and of the groups above count. Memory in caches counts as free."""
    free = host.free_memory()
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    outer = tmp_path / "outer"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    real = host._lines
    monkeypatch.setattr(
        host, "_lines", lambda path: ["0::/outer/inner"] if path == Path("/proc/self/cgroup") else real(path)
    )
    for folder, most in ((inner, "max"), (outer, str(300 * host.MIB))):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{250 * host.MIB}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {20 * host.MIB}\nactive_file {5 * host.MIB}\n")
    assert host.free_memory() == 75 * host.MIB
    trouble = host.memory(Settings(min_free_memory_mb=100))
    assert trouble is not None
    assert trouble.message.startswith("75 MiB of memory are free, less than MIN_FREE_MEMORY_MB (100);")
    assert host.memory(Settings(min_free_memory_mb=75)) is None
