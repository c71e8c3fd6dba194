"""The real programs as real processes: an API and workers on the test's own database."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.api import JWT_SECRET, STORAGE_SECRET, WORKER_TOKEN, bearer
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("succeeded", "failed", "cancelled")

Process = subprocess.Popen[bytes]


@dataclass
class Programs:
    """An API process, and workers beside it.

    Args:
        base_url: the API's address for workers and callers, possibly of a proxy.
        folder: has the files and logs of each process.
    """

    base_url: str
    folder: Path
    _port: int
    _api_settings: dict[str, str]
    _stack: contextlib.ExitStack
    workers: list[Process] = field(default_factory=list)
    _apis: list[Process] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where the API listens."""
        return self._port

    @property
    def api(self) -> Process:
        """The API's latest process."""
        return self._apis[-1]

    def start_api(self, **more: str) -> None:
        """Start the API, or start it again at the same address, and wait until it answers."""
        command = [sys.executable, "-m", "geo_jobs_api", "serve", "--port", str(self._port)]
        folder = self.folder / "api"
        environment = clean_environment(**(self._api_settings | more))
        self._apis.append(self._stack.enter_context(running(command, folder, environment)))

        last = ""

        def answers() -> bool:
            nonlocal last
            assert self.api.poll() is None, (folder / "output.log").read_text()
            try:
                answer = httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=5)
            except httpx.HTTPError as error:
                last = type(error).__name__
                return False
            last = f"{answer.status_code}: {answer.text}"
            return answer.is_success

        try:
            # Usually two seconds. On a machine under eightfold load half a minute.
            wait_until(answers, "the API to answer", 90)
        except AssertionError as error:
            raise AssertionError(
                f"{error}. Last answer: {last}. {(folder / 'output.log').read_text()[-4000:]}"
            ) from None

    def kill_api(self) -> None:
        """End the API without warning."""
        self.api.kill()
        self.api.wait()

    def worker(self, name: str = "worker", **settings: str) -> Process:
        """Start a worker. Its log is `<name>/worker.log`, its TEMP_DIR `<name>/jobs`."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        usual = {
            "API_BASE_URL": self.base_url,
            "WORKER_AUTH_TOKEN": WORKER_TOKEN,
            "TEMP_DIR": str(folder / "jobs"),
        }
        environment = clean_environment(**(usual | settings))
        command = [sys.executable, str(ROOT / "geoprocessing-worker" / "worker.py")]
        process = self._stack.enter_context(running(command, folder, environment))
        self.workers.append(process)
        return process

    def person(self) -> httpx.Client:
        """Return a client with the token of a caller."""
        return self._stack.enter_context(httpx.Client(base_url=self.base_url, headers=bearer(), timeout=30))

    def submit(self, source: Path, payload: dict[str, object] | None = None, name: str | None = None) -> str:
        """Create a job and upload its file. Return its id."""
        person = self.person()
        body = {"taskType": "geotiff_to_png", "inputPayload": payload or {}}
        job_id = str(person.post("/api/geo-jobs", json=body).raise_for_status().json()["id"])
        wanted = {"fileName": name or source.name, "fileSize": source.stat().st_size, "fileType": "image/tiff"}
        slot = person.post(f"/api/geo-jobs/{job_id}/upload", json=wanted).raise_for_status().json()
        httpx.put(slot["uploadUrl"], content=source.read_bytes(), timeout=30).raise_for_status()
        return job_id

    def look(self, job_id: str) -> dict[str, object]:
        """The job as it stands."""
        job: dict[str, object] = self.person().get(f"/api/geo-jobs/{job_id}").raise_for_status().json()
        return job

    def until_over(self, job_id: str, seconds: float = 60) -> dict[str, object]:
        """Wait until the job has ended, and return it."""
        person = self.person()

        def ended() -> bool:
            return person.get(f"/api/geo-jobs/{job_id}").raise_for_status().json()["state"] in FINAL

        wait_until(ended, f"job {job_id} to end", seconds)
        return self.look(job_id)

    def event_types(self, job_id: str) -> list[str]:
        """Return the types of the job's events, in order."""
        page = self.person().get(f"/api/geo-jobs/{job_id}/events").raise_for_status().json()
        return [str(event["type"]) for event in page["events"]]

    def stop_child_of(self, worker: Process, job_id: str) -> int:
        """Wait for a worker's job process, stop it with SIGSTOP, and return it."""
        # Before its first job a worker starts one child to warm up.
        wait_until(lambda: "started" in self.event_types(job_id), "the job to start", 30)
        found: list[int] = []

        def look() -> bool:
            for pid in job_children(worker):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    found.append(pid)
            return bool(found)

        wait_until(look, "a child at work", 30)
        return found[0]

    def download(self, job_id: str, folder: Path) -> dict[str, Path]:
        """Fetch all results. Return their paths by name."""
        folder.mkdir(parents=True, exist_ok=True)
        answer = self.person().get(f"/api/geo-jobs/{job_id}/download/output").raise_for_status().json()
        for output in answer["outputs"]:
            (folder / output["name"]).write_bytes(httpx.get(output["url"], timeout=30).raise_for_status().content)
        return {output["name"]: folder / output["name"] for output in answer["outputs"]}


@contextlib.contextmanager
def programs(database_url: str, folder: Path, **settings: str) -> Iterator[Programs]:
    """Yield an API process that answers. Stop all processes at the end, workers first."""
    usual = {
        "DATABASE_URL": database_url,
        "DATA_DIR": str(folder / "api" / "data"),
        "JWT_SECRET": JWT_SECRET,
        "STORAGE_SECRET": STORAGE_SECRET,
        "WORKER_AUTH_TOKEN": WORKER_TOKEN,
        "RESCUE_GRACE_SECONDS": "0",
    }
    (folder / "api").mkdir()
    port = free_port()
    with contextlib.ExitStack() as stack:
        made = Programs(f"http://127.0.0.1:{port}", folder, port, usual | settings, stack)
        made.start_api()
        yield made


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Return whether the process has an undelivered signal. An ended process has none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    if "\nState:\tZ" in status:
        return False  # A process killed at its start shows the signal as pending forever.
    waiting = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:")))
    return any(mask >> (number - 1) & 1 for mask in waiting)


@contextlib.contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Process]:
    """Yield a process with its output in `output.log`. Stop it at the end, by force if needed."""
    with (folder / "output.log").open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def clean_environment(**more: str) -> dict[str, str]:
    """Return the needed variables of this process, and the test's additions."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {name: os.environ[name] for name in kept if name in os.environ} | more


def free_port() -> int:
    """Return a port that was just free."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def job_children(worker: Process) -> list[int]:
    """Return the job processes of a worker: the children of its fork server, but not one that waits for a job."""
    every = [child for server in children(worker.pid, b"forkserver") for child in children(server)]
    # A child restricts itself when its job arrives.
    return [child for child in every if b"\nSeccomp:\t2" in _read(child, "status")]


def children(parent: int, last: bytes = b"") -> list[int]:
    """Return a process's children, optionally those with these words in their command line."""
    return [pid for pid in _children(parent) if not last or last in _read(pid, "cmdline")]


def alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    stat = _read(pid, "stat")
    return bool(stat) and stat.rsplit(b")", 1)[1].split()[0] != b"Z"


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            stat = _read(int(entry.name), "stat")
            if stat and int(stat.rsplit(b")", 1)[1].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
