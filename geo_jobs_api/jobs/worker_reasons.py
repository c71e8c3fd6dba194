"""Why no worker takes a waiting job now: wrong types, missing capabilities, trouble, or all busy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from geo_jobs_api.queue.capabilities import Capabilities, Requirements
from geo_jobs_api.queue.operator_records import PossibleWorker
from geo_jobs_api.queue.operator_schemas import Reason

# Workers and jobs named in a reason. Further ones are only counted.
_MAX_NAMED = 10


def list_worker_reasons(
    task_type: str, need: Requirements, workers: Sequence[PossibleWorker], viewer: str | None
) -> list[Reason]:
    """Return the reasons. Empty if a capable worker is free.

    Args:
        task_type: the job's.
        need: the job's requirements.
        workers: those seen recently or with jobs.
        viewer: the caller, with access to the types of other callers' jobs only. None: an operator, with access to all.
    """
    offering = [worker for worker in workers if worker.does_type]
    if not offering:
        return [Reason(code="no_worker", text=_no_worker(task_type, workers))]
    unfit = [worker for worker in offering if _lacking(worker, need)]
    troubled = [worker for worker in offering if worker.trouble and worker not in unfit]
    able = [worker for worker in offering if worker not in unfit and worker not in troubled]
    if any(not _is_busy(worker) for worker in able):
        return []
    return [
        *_shortened("unfit", (f"Worker {worker.name} {_lacking(worker, need)[0]}." for worker in unfit)),
        *_shortened("worker_trouble", (_trouble(worker, viewer) for worker in troubled)),
        *([Reason(code="busy", text=_busy(task_type, able, viewer))] if able else []),
    ]


def _shortened(code: str, texts: Iterator[str]) -> Iterator[Reason]:
    parts = list(texts)
    for text in parts[:_MAX_NAMED]:
        yield Reason(code=code, text=text)
    if len(parts) > _MAX_NAMED:
        yield Reason(code=code, text=f"{len(parts) - _MAX_NAMED} more workers have the same reason.")


def _no_worker(task_type: str, workers: Sequence[PossibleWorker]) -> str:
    sentence = f"No worker for {task_type} has called in the last minutes. Start one."
    others = [f"{worker.name} runs only {', '.join(worker.task_types)}" for worker in workers[:_MAX_NAMED]]
    return f"{sentence} Worker {'; worker '.join(others)}." if others else sentence


def _lacking(worker: PossibleWorker, need: Requirements) -> list[str]:
    return list(Capabilities.from_json(worker.capabilities).list_mismatches(need))


def _is_busy(worker: PossibleWorker) -> bool:
    # Without declared concurrency, a worker counts as busy with one job.
    return len(worker.jobs) >= (Capabilities.from_json(worker.capabilities).concurrent_jobs or 1)


def _trouble(worker: PossibleWorker, viewer: str | None) -> str:
    troubles = worker.trouble or []
    codes = ", ".join(str(trouble.get("code")) for trouble in troubles)
    # The sentences contain paths and addresses of the worker's host.
    details = "" if viewer is not None else " " + " ".join(str(trouble.get("message")) for trouble in troubles)
    return f"Worker {worker.name} claims nothing because of trouble on its host ({codes}).{details}".rstrip()


def _busy(task_type: str, able: Sequence[PossibleWorker], viewer: str | None) -> str:
    parts = [f"{worker.name} with {_jobs(worker.jobs, viewer)}" for worker in able[:_MAX_NAMED]]
    if len(able) > _MAX_NAMED:
        parts.append(f"{len(able) - _MAX_NAMED} more")
    first = "The worker" if len(able) == 1 else f"All {len(able)} workers"
    return f"{first} that can take {task_type} {'is' if len(able) == 1 else 'are'} busy: {'; '.join(parts)}."


def _jobs(jobs: Sequence[dict[str, Any]], viewer: str | None) -> str:
    named = [job for job in jobs if viewer is None or job["owner"] == viewer]
    others = [job for job in jobs if job not in named]
    parts = [f"job {job['id']} ({job['taskType']}, since {_time(job['since'])})" for job in named[:_MAX_NAMED]]
    if len(named) > _MAX_NAMED:
        parts.append(f"{len(named) - _MAX_NAMED} more")
    for kind in sorted({job["taskType"] for job in others}):
        same = [job for job in others if job["taskType"] == kind]
        since = _time(min(job["since"] for job in same))
        parts.append(f"{len(same)} {kind} of other callers (since {since})")
    return ", ".join(parts)


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
