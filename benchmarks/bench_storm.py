"""One caller's storm and another's calls: p99 without and during it. Exit code 1 beyond a factor of five.

The caller has 300,000 jobs and sends its most expensive requests in parallel, at the rate limit. The API runs as a
process as in operation, on an embedded server with its default durability. The quiet p99 is measured before and after.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

import httpx
import jwt

from benchmarks.queue_load import api_process, database_server, execute
from benchmarks.queue_table import Row, print_table

SECRET = "a secret of a benchmark, with 32 bytes and more"  # noqa: S105  # of a throw-away service
CALLS_A_SECOND = 100
_FILL = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, finished_at, error
    )
    SELECT gen_random_uuid(), 'storm', 'geotiff_to_png', 'failed', 0, '{}', 5, 'a.tif', 1, now(), now(),
        '{"class": "internal", "code": "usual"}'
    FROM generate_series(1, %s)
"""
STORM: list[tuple[str, str, object]] = [
    ("GET", "/api/geo-jobs?errorCode=none&limit=200", None),
    ("GET", "/api/geo-jobs?state=failed&limit=200", None),
    ("GET", "/api/geo-jobs?state=failed&taskType=geotiff_info", None),
    ("POST", "/api/geo-jobs", {"taskType": "geotiff_to_png"}),
    ("GET", "/metrics", None),
]


def client_of(base_url: str, subject: str) -> httpx.Client:
    """Return a client of one caller."""
    token = jwt.encode({"sub": subject, "exp": int(time.time()) + 3600}, SECRET, algorithm="HS256")
    return httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def p99(call: Callable[[], httpx.Response], seconds: float) -> float:
    """Return the p99 in milliseconds, at ten calls a second."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        call().raise_for_status()
        times.append((time.monotonic() - began) * 1000)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - began)))
    return statistics.quantiles(times, n=100)[98]


class Storm:
    """Parallel requests of one caller, until stopped."""

    def __init__(self, base_url: str, threads: int) -> None:
        self._base_url = base_url
        self._stop = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._run, args=(n, threads)) for n in range(threads)]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, threads: int) -> None:
        with client_of(self._base_url, "storm") as client:
            while not self._stop.is_set():
                began = time.monotonic()
                method, path, body = STORM[number % len(STORM)]
                self.statuses.append(client.request(method, path, json=body).status_code)
                number += 1
                self._stop.wait(max(0.0, threads / CALLS_A_SECOND - (time.monotonic() - began)))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300_000, help="jobs of the caller (default: 300000)")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (default: 20)")
    parser.add_argument("--threads", type=int, default=16, help="requests at once (default: 16)")
    arguments = parser.parse_args()
    with database_server() as server:
        url = server.url("postgres")
        with api_process(url, JWT_SECRET=SECRET, MAX_OPEN_JOBS_PER_CALLER="1000000") as api:
            execute(url, _FILL, arguments.jobs)
            execute(url, "VACUUM ANALYZE jobs")
            with client_of(api.base_url, "quiet") as client:

                def look() -> httpx.Response:
                    return client.get("/api/geo-jobs")

                look()
                before = p99(look, arguments.seconds)
                with Storm(api.base_url, arguments.threads) as storm:
                    time.sleep(2)
                    under = p99(look, arguments.seconds)
                after = p99(look, arguments.seconds)
    quiet = max(before, after)
    served = sum(status < 400 for status in storm.statuses) / len(storm.statuses) * 100
    return print_table(
        [
            Row("another caller's p99, quiet", quiet, None, at_least=False, unit="ms"),
            Row("another caller's p99 under the storm", under, 5 * quiet, at_least=False, unit="ms"),
            Row("requests of the storm that were served", served, None, at_least=True, unit="%"),
            Row("requests of the storm", float(len(storm.statuses)), None, at_least=True, unit=""),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
