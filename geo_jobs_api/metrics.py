"""What Prometheus reads: counters of this process, and gauges that are counted in the database when asked."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, generate_latest

from geo_jobs_api.records import OpenJobs

REQUESTS = Counter("geo_jobs_http_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("geo_jobs_http_request_seconds", "Time to answer, without claims.", ["method", "route"])
JOBS_CLAIMED = Counter("geo_jobs_claimed", "Leases handed out.", ["task_type"])
JOBS_ENDED = Counter("geo_jobs_ended", "Leases ended by their workers.", ["state"])
JOBS_RESCUED = Counter("geo_jobs_rescued", "Leases that ran out.", ["kind"])
PARKED_CLAIMS = Gauge("geo_jobs_parked_claims", "Claims that wait for a job in this process.")
OPEN_JOBS = Gauge("geo_jobs_open", "Jobs that have not ended.", ["task_type", "state"])


def render(open_jobs: list[OpenJobs], parked: int) -> bytes:
    """The text that Prometheus scrapes."""
    PARKED_CLAIMS.set(parked)
    OPEN_JOBS.clear()
    for count in open_jobs:
        OPEN_JOBS.labels(count.task_type, count.state).set(count.jobs)
    return generate_latest()
