"""Prometheus metrics: counters of all processes of this service, and gauges computed on request."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from geo_jobs_api.queue.operator_records import OpenJobs

REQUESTS = Counter("geo_jobs_http_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("geo_jobs_http_request_seconds", "Time to answer, without claims.", ["method", "route"])
JOBS_CLAIMED = Counter("geo_jobs_claimed", "Leases handed out.", ["task_type"])
JOBS_ENDED = Counter("geo_jobs_ended", "Leases ended by their workers.", ["state"])
JOBS_RESCUED = Counter("geo_jobs_rescued", "Leases that ran out.", ["kind"])
PARKED_CLAIMS = Gauge("geo_jobs_parked_claims", "Claims that wait for a job.", multiprocess_mode="livesum")

# The metrics library reads this variable on import. Processes with the same folder share their counters.
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def share_metrics(folder: str) -> None:
    """Share counters among the processes started from now on, in an empty folder."""
    os.environ[_METRICS_DIR] = folder


class _OpenJobs(Collector):
    """Computed from the database, for all processes on all hosts."""

    def __init__(self, counts: Sequence[OpenJobs]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("geo_jobs_open", "Jobs that have not ended.", labels=["task_type", "state"])
        for count in self._counts:
            family.add_metric([count.task_type, count.state], count.jobs)
        yield family


def render(open_jobs: Sequence[OpenJobs]) -> bytes:
    """Return the Prometheus text. With several processes, any of them returns the sum."""
    counted = CollectorRegistry()
    counted.register(_OpenJobs(open_jobs))
    folder = os.environ.get(_METRICS_DIR)
    if folder is None:
        return generate_latest(REGISTRY) + generate_latest(counted)
    MultiProcessCollector(counted, path=folder)  # type: ignore[no-untyped-call]  # the library's
    return generate_latest(counted)


def drop_process_metrics(pid: int) -> None:
    """Drop the gauges of a dead process. Its counters stay."""
    if (folder := os.environ.get(_METRICS_DIR)) is not None:
        mark_process_dead(pid, path=folder)  # type: ignore[no-untyped-call]  # the library's
