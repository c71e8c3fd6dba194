"""Parts of the queue benchmarks: a server of default durability, the API as a process, bare HTTP clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from geo_jobs_api.database import embedded

TOKEN = "benchmark-worker-token"  # noqa: S105  # of a database that is thrown away
TASK_TYPE = "noop"
CLAIM_PATH = "/api/internal/geo-jobs/claim"

_MAKE_JOBS = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at
    )
    SELECT gen_random_uuid(), 'bench', %s, 'queued', 0, '{}', 5, 'a.tif', 1, now() FROM generate_series(1, %s)
"""


@contextlib.contextmanager
def database_server() -> Iterator[embedded.EmbeddedPostgres]:
    """Yield an embedded server, started like the API does, in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="geo-jobs-bench-"))
    try:
        server = embedded.start(folder / "postgres")
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def execute(url: str, statement: str, *parameters: object) -> list[Any]:
    """Run one statement. Return its rows, if any."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, of its children, and of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            total += cpu_seconds(int(child))
    return total


def refill(url: str, count: int) -> None:
    """Empty the queue and add this many no-op jobs."""
    execute(url, "TRUNCATE jobs CASCADE")
    execute(url, "INSERT INTO task_types (name) VALUES (%s) ON CONFLICT DO NOTHING", TASK_TYPE)
    execute(url, _MAKE_JOBS, TASK_TYPE, count)
    execute(url, "VACUUM ANALYZE jobs")
    execute(url, "CHECKPOINT")


def enqueue(connection: psycopg.Connection[Any]) -> None:
    """Queue one job and notify the waiting claims."""
    with connection.transaction():
        connection.execute(_MAKE_JOBS.encode(), (TASK_TYPE, 1))
        connection.execute("SELECT pg_notify('geo_jobs_queued', %s)", (TASK_TYPE,))


@dataclass(slots=True)
class ApiProcess:
    """The API as in operation: one process, its usual settings, its log in a file."""

    url: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {
            "DATABASE_URL": self.url,
            "DATA_DIR": str(self.folder),
            "WORKER_AUTH_TOKEN": TOKEN,
            **self.settings,
        }
        command = [sys.executable, "-m", "geo_jobs_api", "serve", "--port", str(self.port)]
        with (self.folder / "api.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{self.base_url}/health", timeout=5):  # noqa: S310  # our own address
                    return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it like an operator."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=40)
            self.process = None


@contextlib.contextmanager
def api_process(url: str, **settings: str) -> Iterator[ApiProcess]:
    """Yield an API on a database. `settings` are further environment variables."""
    with tempfile.TemporaryDirectory(prefix="geo-jobs-bench-api-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        api = ApiProcess(url, Path(folder), port, settings=settings)
        api.start()
        try:
            yield api
        finally:
            api.stop()


class BareClient:
    """One keep-alive connection with minimal HTTP, since a full client would measure itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(
        self, method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return status and JSON (None for an empty body) of one call. OSError if the connection breaks."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        data = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Authorization: Worker {TOKEN}"]
        lines += [f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionResetError from error
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
        content = await self._reader.readexactly(length)
        return int(head.split(" ", 2)[1]), json.loads(content) if content else None

    async def claim(
        self, wait_seconds: float, claim_id: str | None = None, task_type: str = TASK_TYPE
    ) -> tuple[int, Any]:
        """One claim."""
        body = {
            "claimId": claim_id or str(uuid4()),
            "workerId": f"bench/{id(self)}",
            "workerName": "bench",
            "taskTypes": [task_type],
            "waitSeconds": wait_seconds,
        }
        return await self.call("POST", CLAIM_PATH, body)

    async def on_job(self, verb: str, job: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[int, Any]:
        """Send heartbeat, complete or fail."""
        path = f"/api/internal/geo-jobs/{job['id']}/{verb}"
        return await self.call("PATCH", path, body, {"Lease-Token": str(job["leaseToken"])})

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
