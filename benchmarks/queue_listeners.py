"""The cost of ten thousand listeners: event streams of as many jobs at one API process."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

import jwt
import psycopg

from benchmarks.queue_load import ApiProcess, api_process, database_server, execute, refill
from benchmarks.queue_table import Row, print_table
from geo_jobs_api.database.migrate import migrate

LISTENERS = 10_000
EVENTS = 100
IDLE_SECONDS = 10.0
_SECRET = "benchmark-secret-of-more-than-32-bytes"  # noqa: S105  # of a service that is thrown away
# Limit of one caller per minute, so the listeners belong to several callers.
_STREAMS_PER_CALLER = 500  # well below one caller's limit per minute, however fast the streams open
_TICK = os.sysconf("SC_CLK_TCK")
_EVENT = b"INSERT INTO job_events (job_id, type, state, data) VALUES (%s, 'progress', 'queued', '{}')"
_BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'geo-jobs%' AND datname = 'listeners'"


def rows(count: int) -> Iterator[Row]:
    """Connections, memory, processor time and latency with this many listeners."""
    os.environ["JWT_SECRET"] = _SECRET
    with database_server() as server:
        execute(server.conninfo, "CREATE DATABASE listeners")
        url = server.url("listeners")
        asyncio.run(migrate(url))
        with api_process(url) as api:
            refill(url, count)
            yield from asyncio.run(_measured(api, [str(row[0]) for row in execute(url, "SELECT id FROM jobs")]))


async def _measured(api: ApiProcess, jobs: list[str]) -> list[Row]:
    if api.process is None:
        raise RuntimeError("the API does not run")
    pid = api.process.pid
    before = _resident_bytes(pid)
    gate = asyncio.Semaphore(50)

    async def opened(number: int, job_id: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        async with gate:
            return job_id, *await _open_stream(api.port, job_id, _token(number // _STREAMS_PER_CALLER))

    streams = await asyncio.gather(*[opened(number, job_id) for number, job_id in enumerate(jobs)])
    await asyncio.sleep(5)
    grown = _resident_bytes(pid) - before
    used = _cpu_seconds(pid)
    await asyncio.sleep(IDLE_SECONDS)
    used = _cpu_seconds(pid) - used
    ((backends,),) = await asyncio.to_thread(execute, api.url, _BACKENDS)
    latencies = await _latencies(api.url, {job_id: reader for job_id, reader, _ in streams})
    for _, _, writer in streams:
        writer.close()
    return [
        Row(f"{len(jobs)} event streams: connections to the database", backends, 20, False, ""),
        Row("the same, memory of the API per stream", grown / len(jobs) / 1024, None, False, "kB"),
        Row("the same, processor of the API while nothing happens", 100 * used / IDLE_SECONDS, None, False, "%"),
        Row("the same, event → listener, p50", 1000 * statistics.median(latencies), None, False, "ms"),
    ]


async def _open_stream(port: int, job_id: str, token: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=16 * 1024)
    head = f"GET /api/geo-jobs/{job_id}/events HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n"
    writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(answer.decode())
    return reader, writer


async def _latencies(url: str, readers: dict[str, asyncio.StreamReader]) -> list[float]:
    seen = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for job_id in random.sample(sorted(readers), EVENTS):
            await connection.execute(_EVENT, (job_id,))
            began = time.perf_counter()
            async with asyncio.timeout(30):
                while b"progress" not in await readers[job_id].readline():
                    pass
            seen.append(time.perf_counter() - began)
    return seen


def _token(caller: int) -> str:
    claims = {"sub": f"bench-{caller}", "scope": "geo-jobs:admin", "exp": int(time.time()) + 3600}
    return jwt.encode(claims, _SECRET, algorithm="HS256")


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def most_listeners() -> int:
    """Return the number of files that this process, and the API that inherits its limit, may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(LISTENERS, max(soft, hard) - 200)


if __name__ == "__main__":
    sys.exit(print_table(rows(most_listeners())))
