"""Checks of a queue after a storm, by the database, the objects and the workers' folders."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.support.api import bearer
from tests.support.clients import rows
from tests.support.receiver import Received

# Changes of the number of running jobs, by event.
RUNNING = {
    "claimed": 1,
    **dict.fromkeys(
        ("succeeded", "failed", "cancelled", "retry_scheduled", "interrupted", "worker_lost", "claim_lost"), -1
    ),
    "claim_released": -1,
}


class Kind(StrEnum):
    """The kinds of complaints."""

    LOST = "lost"
    TWICE = "twice"
    SPENT = "spent"
    OTHER = "other"


def count(complaints: Sequence[str], kind: Kind) -> int:
    """The number of complaints of one kind."""
    return sum(line.startswith(f"{kind}: ") for line in complaints)


@dataclass(frozen=True)
class Harm:
    """A worker that lost its leases or a child by a fault. Attempts that its jobs lose meanwhile are expected.

    Attributes:
        worker: its name.
        began: seconds of the wall clock.
        ended: likewise.
    """

    worker: str
    began: float
    ended: float


def spent_attempts(database_url: str, harms: Sequence[Harm]) -> Iterator[str]:
    """Attempts that jobs lost although no fault met their worker or its children during the lease.

    Args:
        database_url: behind the API.
        harms: the faults of workers and children.
    """
    found = rows(
        database_url,
        """
        SELECT event.job_id, event.type, outcome.worker_name,
            extract(epoch FROM event.created_at)::float AS ended,
            extract(epoch FROM (
                SELECT max(created_at) FROM job_events AS claim
                WHERE claim.job_id = event.job_id AND claim.type = 'claimed' AND claim.id < event.id
            ))::float AS claimed,
            event.data -> 'error' ->> 'code' AS code, event.data -> 'error' ->> 'message' AS message,
            event.data -> 'error' -> 'detail' AS detail
        FROM job_events AS event
        LEFT JOIN lease_outcomes AS outcome
            ON outcome.job_id = event.job_id AND outcome.ended_at = event.created_at
        WHERE event.type IN ('retry_scheduled', 'worker_lost', 'failed')
        ORDER BY event.id
        """,
    )
    for row in found:
        excused = any(
            harm.worker == row["worker_name"] and harm.began <= row["ended"] and harm.ended >= row["claimed"]
            for harm in harms
        )
        if not excused:
            words = f"{row['code']}: {row['message']} {row['detail']}"
            yield f"{Kind.SPENT}: {row['job_id']}: {row['type']} at {row['worker_name']}, {words}"


def complaints(
    database_url: str,
    api_url: str,
    colors: dict[str, tuple[int, int, int]],
    limit: int,
    told: Sequence[Received] = (),
) -> list[str]:
    """Return all complaints.

    Args:
        database_url: behind the API.
        api_url: of the API itself, not of a proxy.
        colors: of each job's picture, by job id.
        limit: of jobs that may run at once.
        told: the deliveries to the webhook, if there is one.
    """
    return [
        *_of_the_queue(database_url, set(colors), limit),
        *_of_the_order(database_url),
        *_of_the_webhook(database_url, set(colors), told),
        *_of_the_outputs(api_url, database_url, colors),
    ]


def _of_the_order(database_url: str) -> Iterator[str]:
    """No child may have run before its parent's end."""
    found = rows(
        database_url,
        """
        SELECT edge.child_id FROM job_dependencies AS edge
        WHERE (SELECT min(id) FROM job_events WHERE job_id = edge.child_id AND type = 'claimed')
            < coalesce(
                (SELECT min(id) FROM job_events WHERE job_id = edge.parent_id AND type = 'succeeded'),
                9223372036854775807
            )
        """,
    )
    yield from (f"{Kind.OTHER}: {row['child_id']}: ran before the job that it waits for" for row in found)


def _of_the_webhook(database_url: str, ids: set[str], told: Sequence[Received]) -> Iterator[str]:
    """Check that each end has a delivery, and all its repetitions the same id."""
    if not rows(database_url, "SELECT id FROM webhooks LIMIT 1"):
        return
    heard: dict[str, set[str]] = {}
    for one in told:
        heard.setdefault(one.json["job"]["id"], set()).add(one.headers["webhook-id"])
    for job_id in sorted(ids):
        if len(heard.get(job_id, ())) != 1:
            kind = Kind.TWICE if job_id in heard else Kind.LOST
            yield f"{kind}: {job_id}: its end was told under {len(heard.get(job_id, ()))} ids"


def _of_the_queue(database_url: str, ids: set[str], limit: int) -> Iterator[str]:
    jobs = {str(row["id"]): row for row in rows(database_url, "SELECT * FROM jobs")}
    yield from (f"{Kind.LOST}: {job_id}: is not there" for job_id in ids - set(jobs))
    outcomes = rows(database_url, "SELECT * FROM lease_outcomes")
    won = Counter(str(row["job_id"]) for row in outcomes if row["state"] in ("succeeded", "failed", "cancelled"))
    events = rows(database_url, "SELECT id, job_id, type FROM job_events ORDER BY id")
    ended = Counter(str(row["job_id"]) for row in events if row["type"] == "succeeded")
    spent = Counter(str(row["job_id"]) for row in events if row["type"] in ("retry_scheduled", "worker_lost"))
    for job_id in sorted(ids & set(jobs)):
        job = jobs[job_id]
        if job["state"] != "succeeded":
            yield f"{Kind.LOST}: {job_id}: is {job['state']} ({job['error']})"
            continue
        if won[job_id] != 1 or ended[job_id] != 1:
            yield f"{Kind.TWICE}: {job_id}: has {won[job_id]} outcomes and succeeded {ended[job_id]} times"
        if job["attempt"] != spent[job_id] + 1:
            before = spent[job_id]
            yield f"{Kind.OTHER}: {job_id}: counts {job['attempt']} attempts, but {before} were spent before the last"
    running = most = 0
    for event in events:
        running += RUNNING.get(event["type"], 0)
        most = max(most, running)
    if most > limit:
        yield f"{Kind.OTHER}: {most} jobs ran at once, of which {limit} may"
    if running != 0:
        yield f"{Kind.OTHER}: {running} jobs still run, by the events"


def _of_the_outputs(api_url: str, database_url: str, colors: dict[str, tuple[int, int, int]]) -> Iterator[str]:
    winners = {
        str(row["job_id"]): int(row["lease_seq"])
        for row in rows(database_url, "SELECT job_id, lease_seq FROM lease_outcomes WHERE state = 'succeeded'")
    }
    with httpx.Client(base_url=api_url, headers=bearer(), timeout=120) as person, httpx.Client(timeout=120) as storage:

        def look(job_id: str) -> list[str]:
            answer = person.get(f"/api/geo-jobs/{job_id}/download/output")
            if not answer.is_success:
                return [f"{Kind.LOST}: {job_id}: no outputs ({answer.status_code})"]
            found = answer.json()["outputs"]
            return [*_of_one(storage.get, job_id, found, winners.get(job_id, 0), colors[job_id])]

        with ThreadPoolExecutor(4) as pool:
            for lines in pool.map(look, colors):
                yield from lines


def _of_one(
    get: Callable[[str], httpx.Response],
    job_id: str,
    outputs: list[dict[str, Any]],
    lease_seq: int,
    color: tuple[int, int, int],
) -> Iterator[str]:
    if len(outputs) != 6:
        yield f"{Kind.LOST}: {job_id}: {len(outputs)} outputs"
    for output in outputs:
        if f"/{job_id}/outputs/{lease_seq}/" not in output["url"]:
            yield f"{Kind.OTHER}: {job_id}: {output['name']} is not of the lease that won ({lease_seq})"
        content = get(output["url"]).content
        if (len(content), hashlib.sha256(content).hexdigest()) != (output["sizeBytes"], output["sha256"]):
            yield f"{Kind.LOST}: {job_id}: {output['name']} is not whole"
        elif output["name"].endswith(".png"):
            with Image.open(io.BytesIO(content)) as picture:
                shown = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))
            if shown != color:
                yield f"{Kind.LOST}: {job_id}: {output['name']} shows {shown}, not {color}"


def left_files(folder: Path) -> list[str]:
    """Return the files that workers left in their TEMP_DIRs."""
    return [str(path) for pattern in ("geojob_*", "outbox/*") for path in folder.glob(f"*/jobs/{pattern}")]
