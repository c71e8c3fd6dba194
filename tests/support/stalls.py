"""Measure how long the event loop of a running API is busy at once, and fill its database to the limits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from geo_jobs_api.http.server import tune_garbage_collection
from tests.support.api import RunningApi

# A payload and metadata of as many small values as their limits allow, which cost most per byte.
PAYLOAD: dict[str, Any] = {"a": [[]] * 16_000}
METADATA = {"a": [{"b": 1}] * 25_000}
SOURCE = "https://maps.example.org/a.tif"
BIG_TEMPLATE: dict[str, Any] = {
    "name": "p",
    "stages": [
        {
            "name": "s",
            "jobs": [
                {"name": f"j{n}", "taskType": "anything", "inputPayload": {"a": [[]] * 220, "sourceUrl": SOURCE}}
                for n in range(1000)
            ],
        }
    ],
}
TIMES: dict[str, Any] = {
    "rules": [{"times": [f"{n // 2:02}:{n % 2 * 30:02}" for n in range(48)]}],
    "timeZone": "Europe/Berlin",
}


# CPU time of `_reference` on an idle core of 2024. Other load on the host doubles it.
_REFERENCE_SECONDS = 0.0025


@dataclass(slots=True)
class Stall:
    """The longest stretch, in seconds of the loop's own CPU time, scaled to a core of 2024."""

    seconds: float = 0.0


def _reference() -> float:
    """Return the CPU time of fixed work like the API's: decoding JSON into many objects, and freeing them."""
    text = json.dumps(METADATA)
    began = time.thread_time()
    json.loads(text)
    return time.thread_time() - began


def slowness() -> float:
    """Return how many times slower than the reference this core is now, at least 1."""
    return max(1.0, sorted(_reference() for _ in range(5))[2] / _REFERENCE_SECONDS)


@contextlib.contextmanager
def longest_stall(api: RunningApi) -> Iterator[Stall]:
    """Measure for the block. CPU time of the loop's thread: other processes and threads do not count.

    The garbage collector is set as in a server. A round over all objects of pytest takes longer than most requests.
    """
    thresholds = gc.get_threshold()
    tune_garbage_collection()
    loop = api.server.servers[0].get_loop()
    stall = Stall()
    is_over = False

    async def tick() -> None:
        last = time.thread_time()
        while not is_over:
            # Each round of the loop runs the ready callbacks, then this one.
            await asyncio.sleep(0)
            now = time.thread_time()
            stall.seconds = max(stall.seconds, now - last)
            last = now

    before = slowness()
    ticking = asyncio.run_coroutine_threadsafe(tick(), loop)
    try:
        yield stall
    finally:
        is_over = True
        ticking.result(timeout=20)
        stall.seconds /= max(before, slowness())
        gc.unfreeze()
        gc.set_threshold(*thresholds)


_ERROR = {"class": "internal", "code": "went_wrong", "message": "m" * 2000, "detail": {"a": [[]] * 4000}}
_OUTPUTS = [
    {"name": "n" * 200 + str(n), "sizeBytes": 1, "sha256": "0" * 64, "contentType": "image/png"} for n in range(100)
]
_JOBS = """
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, input_file_name, input_size_bytes,
        uploaded_at, finished_at, started_at, outputs, output_lease_seq, lease_seq, metadata, error
    )
    SELECT gen_random_uuid(), 'ada', 'geotiff_to_png', %(state)s, 0, %(payload)s, 9, 'a.tif', 1, now(),
        CASE WHEN %(state)s <> 'queued' THEN now() END, CASE WHEN %(state)s <> 'queued' THEN now() END,
        CASE WHEN %(state)s = 'succeeded' THEN %(outputs)s::jsonb END, CASE WHEN %(state)s = 'succeeded' THEN 1 END, 5,
        %(metadata)s, %(error)s
    FROM generate_series(1, %(number)s)
"""
_PIPELINES = """
    INSERT INTO pipelines (id, owner, name, stages)
    SELECT gen_random_uuid(), 'ada', 'p' || n, (
        SELECT jsonb_build_array(jsonb_build_object('name', 's', 'jobs', jsonb_agg('j' || m)))
        FROM generate_series(1, 1000) AS m
    )
    FROM generate_series(1, 50) AS n;
    INSERT INTO jobs (
        id, owner, task_type, state, priority, input_payload, max_attempts, pipeline_id, pipeline_stage, pipeline_job
    )
    SELECT gen_random_uuid(), 'ada', 'geotiff_to_png', 'awaiting_upload', 0, '{}', 5, pipelines.id, 's', 'j' || n
    FROM pipelines, generate_series(1, 1000) AS n;
"""


def fill(url: str) -> None:
    """Fill a database with rows of the user `ada` that are as large and as many as the API takes."""
    values = {"payload": json.dumps(PAYLOAD), "outputs": None, "metadata": None, "error": None}
    error = json.dumps(_ERROR)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO task_types (name, input_rule) VALUES ('anything', 'optional')")
        connection.execute(
            "INSERT INTO task_types (name, payload_schema) SELECT 'type_' || n, %s FROM generate_series(1, 50) AS n",
            [json.dumps({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1500)}})],
        )
        done = {"state": "succeeded", "number": 210, "metadata": json.dumps(METADATA), "outputs": json.dumps(_OUTPUTS)}
        connection.execute(_JOBS, values | done)
        connection.execute(_JOBS, values | {"state": "failed", "number": 210, "error": error})
        connection.execute(_JOBS, values | {"state": "queued", "number": 340, "error": error})
        connection.execute(
            "INSERT INTO lease_outcomes (job_id, lease_seq, lease_secret, attempt, ended_by, request_digest, state,"
            " error, next_attempt_at) SELECT id, n, 'k', n, 'fail', '', 'queued', %s, now() FROM jobs,"
            " generate_series(1, 5) AS n WHERE error IS NOT NULL",
            [error],
        )
        connection.execute(
            "INSERT INTO job_events (job_id, type, state, data) SELECT id, 'failed', 'failed', %s"
            " FROM (SELECT id FROM jobs WHERE state = 'failed' ORDER BY id LIMIT 1) AS one, generate_series(1, 1000)",
            [json.dumps({"error": _ERROR})],
        )
        connection.execute(_PIPELINES.encode())
        connection.execute(
            "INSERT INTO schedules (id, owner, name, timing, template, catch_up, overlap, jitter_seconds,"
            " skip_unchanged, paused, next_run_at) SELECT gen_random_uuid(), 'ada', 's' || n, %s, %s,"
            " 10000, 'allow', 0, false, false, now() + interval '1 day' FROM generate_series(1, 30) AS n",
            [json.dumps(TIMES), json.dumps(BIG_TEMPLATE)],
        )
        connection.execute(
            "INSERT INTO schedules (id, owner, name, timing, template, catch_up, overlap, jitter_seconds,"
            " skip_unchanged, paused, next_run_at) SELECT gen_random_uuid(), 'eve', 's' || n, %s, %s,"
            " 10000, 'allow', 0, false, false, now() + interval '1 day' FROM generate_series(1, 210) AS n",
            [json.dumps(TIMES | {"rules": TIMES["rules"] * 20}), json.dumps({"taskType": "anything"})],
        )
        connection.execute(
            "INSERT INTO schedule_fires (schedule_id, fire_time, outcome, error)"
            " SELECT schedules.id, now() - n * interval '1 minute', 'failed', repeat('e', 500)"
            " FROM (SELECT id FROM schedules WHERE owner = 'ada' ORDER BY id LIMIT 1) AS schedules,"
            " generate_series(1, 500) AS n"
        )
        connection.execute("INSERT INTO webhook_destinations (destination) VALUES ('https://hooks.example.org:443')")
        connection.execute(
            "INSERT INTO webhooks (id, owner, url, destination, secret, events, all_owners, paused)"
            " SELECT gen_random_uuid(), owner, 'https://hooks.example.org/' || repeat('a', 1900),"
            " 'https://hooks.example.org:443', 'x', '{job.succeeded}', false, true"
            " FROM (VALUES ('ada', 100), ('eve', 900)) AS many (owner, number), generate_series(1, number)"
        )
        tries = [{"at": "2030-01-01T00:00:00Z", "seconds": 1.0, "statusCode": 500, "error": "e" * 200}] * 50
        connection.execute(
            "INSERT INTO webhook_deliveries (webhook_id, destination, event, body, state, attempts, finished_at)"
            " SELECT id, destination, 'job.failed', %s, 'failed', %s, now()"
            " FROM (SELECT * FROM webhooks WHERE owner = 'ada' ORDER BY id LIMIT 1) AS one, generate_series(1, 210)",
            [json.dumps({"a": [{"b": 1}] * 10_000}), json.dumps(tries)],
        )
        connection.execute(
            "INSERT INTO workers (id, name, task_types, capabilities) SELECT 'w' || n, 'w', '{geotiff_to_png}', %s"
            " FROM generate_series(1, 1000) AS n",
            [json.dumps({"sourceHosts": [f"h{n}.example.org" for n in range(100)], "maxFileSize": 1})],
        )
        connection.execute("VACUUM ANALYZE")


def first_id(url: str, query: str, *parameters: Any) -> UUID | int:
    """Return the first column of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None, query
    return row[0]  # type: ignore[no-any-return]
