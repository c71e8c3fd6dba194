"""Schemathesis against the real API, by its own OpenAPI document: `make schemathesis SEED=1`.

All checks and phases, with a real database and a real socket. The seed repeats a run. Exit code 1 on a failure.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.support import openapi_hooks
from tests.support.api import WORKER_TOKEN, RunningApi, make_jwt, make_settings, run_api
from tests.support.clients import Person, Worker, put
from tests.support.database import database_server

# Valid requests may be refused for reasons outside a schema: known task types, file sizes, uploaded outputs, NUL in
# free JSON, five fields of a cron expression.
_MEANING = "^/api/geo-jobs(/.*/upload)?$|/(complete|heartbeat|fail)$|^/(storage|api/(pipelines|schedules|webhooks))"
_MAY_BE_REFUSED = [200, 201, 204, 400, 401, 403, 404, 409, 413, 422, 429]
# Not on the command line, which would override the exceptions below.
_CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
    "object_level_authorization",
]
# Settings of an API under exploration.
SOURCE, HOOK = "https://maps.example.org/a.tif", "http://127.0.0.1:9/"
LINKED = {"source_hosts": "maps.example.org", "webhook_hosts": "127.0.0.1"}
CONFIGURATION = f"""
{chr(10).join(f"checks.{name}.enabled = true" for name in _CHECKS)}
[auth.openapi.HTTPBearer]
bearer = "{make_jwt(admin=False)}"
[auth.openapi.Worker]
api_key = "Worker {WORKER_TOKEN}"
[dictionaries.task-types]
values = ["geotiff_to_png"]
[parameters]
"body.taskType" = {{ dictionary = "task-types", probability = 0.9 }}
[[operations]]
# GET there addresses a job with that name, and answers that this is not an id.
include-path-regex = "^/api/geo-jobs/(batch|redrive|cancel)$"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
checks.positive_data_acceptance.expected-statuses = {_MAY_BE_REFUSED}
[[operations]]
include-path-regex = "{_MEANING}"
checks.positive_data_acceptance.expected-statuses = {_MAY_BE_REFUSED}
"""


def prepare(api: RunningApi, each: int) -> dict[str, list[object]]:
    """Create this many jobs in every state."""
    person, worker = Person(api), Worker(api)
    waiting = [str(person.create()["id"]) for _ in range(each)]
    uploads = [person.upload_url(job_id) for job_id in waiting]
    cancelled = [str(person.create()["id"]) for _ in range(each)]
    for job_id in cancelled:
        person.cancel(job_id, "enough").raise_for_status()
    succeeded, failed, leases = ([person.submit() for _ in range(each)] for _ in range(3))
    claimed = worker.claim_all(maxJobs=3 * each)
    downloads = [job["input"]["downloadUrl"] for job in claimed]
    by_id = {job["id"]: job for job in claimed}
    for job_id in succeeded:
        worker.complete(by_id[job_id]).raise_for_status()
    for job_id in failed:
        worker.fail(by_id[job_id], "invalid_input").raise_for_status()
    for job_id in leases:
        worker.heartbeat(by_id[job_id])
        slot = by_id[job_id]["uploads"][0]
        put(slot["url"], content=b"picture").raise_for_status()
        uploads.append(slot["url"])
    queued = [person.submit() for _ in range(each)]
    return prepare_standing(person, each) | {
        "jobs": [*waiting, *cancelled, *succeeded, *failed, *leases, *queued],
        "leases": [by_id[job_id] for job_id in leases],
        "downloads": list(downloads),
        "uploads": list(uploads),
    }


def prepare_standing(person: Person, each: int) -> dict[str, list[object]]:
    """Create pipelines, schedules that do not fire, and webhooks with a delivery each."""
    job = {"taskType": "geotiff_to_png", "inputPayload": {"sourceUrl": SOURCE}}
    stages = [{"name": "one", "jobs": [job | {"name": "a"}]}]

    def make(kind: str, body: dict[str, object]) -> list[object]:
        answers = [person.http.post(f"/api/{kind}", json=body | {"name": f"n{number}"}) for number in range(each)]
        return [answer.raise_for_status().json()["id"] for answer in answers]

    webhooks = [person.http.post("/api/webhooks", json={"url": HOOK, "events": ["job.failed"]}) for _ in range(each)]
    ids = [str(answer.raise_for_status().json()["id"]) for answer in webhooks]
    tests = [person.http.post(f"/api/webhooks/{webhook}/test").raise_for_status().json()["id"] for webhook in ids]
    return {
        "pipelines": make("pipelines", {"stages": stages}),
        "schedules": make("schedules", {"at": "2100-01-01T06:00:00Z", "template": job}),
        "webhooks": list(ids),
        "deliveries": list(zip(ids, tests, strict=True)),
    }


def explore(api: RunningApi, folder: Path, arguments: Sequence[str], each: int = 6) -> subprocess.CompletedProcess[str]:
    """Run schemathesis on a running API. Return its findings, since its exit code 0 proves nothing."""
    configuration, pool = folder / "schemathesis.toml", folder / "pool.json"
    configuration.write_text(CONFIGURATION)
    pool.write_text(json.dumps(prepare(api, each)))
    program = Path(sys.executable).with_name("schemathesis")
    environment = os.environ | {
        openapi_hooks.POOL: str(pool),
        "SCHEMATHESIS_HOOKS": openapi_hooks.__name__,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    usual = ["--request-timeout", "90", "--max-response-time", "60", "--no-color"]
    return subprocess.run(
        [program, "--config-file", configuration, "run", f"{api.base_url}/openapi.json", *usual, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1800,
        check=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run at length and print the findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=100, help="most requests for each operation and phase")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="do not stop an operation at a failure")
    parsed = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as name, database_server() as server, server.clone() as url:
        folder = Path(name)
        settings = make_settings(url, folder / "data", lease_seconds=3600, first_lease_seconds=3600, **LINKED)
        with run_api(settings) as api:
            options = ["--seed", str(parsed.seed), "--max-examples", str(parsed.examples)]
            found = explore(api, folder, [*options, *(["--continue-on-failure"] if parsed.goes_on else [])], each=33)
    sys.stdout.write(found.stdout)
    return found.returncode


if __name__ == "__main__":
    sys.exit(main())
