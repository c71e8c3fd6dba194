"""jobs: read and change jobs of all owners."""

from __future__ import annotations

import argparse
from typing import get_args
from uuid import UUID

from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_json, print_line, print_object, print_result, print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.errors import Problem
from geo_jobs_api.fields import Model
from geo_jobs_api.jobs.explanation import build_explanation
from geo_jobs_api.jobs.schemas import JobView
from geo_jobs_api.queue.job_store import JobQuery, JobStore
from geo_jobs_api.queue.operator_schemas import CancelFilter, OpenState, RedriveFilter
from geo_jobs_api.queue.operator_store import OperatorStore
from geo_jobs_api.queue.records import Job
from geo_jobs_api.queue.rules import ErrorClass, JobState


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    jobs = commands.group("jobs", "Read and change jobs.")
    command = jobs.add_action("list", "List jobs, newest first.", _list)
    command.add_argument("--state", type=JobState, choices=list(JobState))
    command.add_argument("--type", metavar="NAME", help="of this task type")
    command.add_argument("--owner", metavar="NAME", help="of this caller")
    command.add_argument("--code", metavar="CODE", help="with this error code")
    command.add_argument("--limit", type=int, default=50, metavar="N", help="limit (default: 50)")
    for name, text, act in (
        ("show", "Show a job.", _show),
        ("explain", "Explain a job's state, and its reasons for waiting.", _explain),
        ("retry", "Requeue a failed job with all its attempts.", _retry),
        ("unlock", "End the lease on a job without spending the attempt.", _unlock),
    ):
        jobs.add_action(name, text, act).add_argument("id", type=UUID, metavar="ID")
    _add_cancel(jobs)
    command = jobs.add_action("priority", "Change the priority of an open job.", _priority)
    command.add_argument("id", type=UUID, metavar="ID")
    command.add_argument("priority", type=int, metavar="PRIORITY", help="-100 to 100, one point is worth a minute")
    _add_redrive(jobs)


def _add_cancel(jobs: Group) -> None:
    text = "Cancel a job, or all matching jobs, oldest first. Workers of running jobs are asked to stop."
    command = jobs.add_action("cancel", text, _cancel)
    command.add_argument("id", type=UUID, metavar="ID", nargs="?", help="this job only")
    command.add_argument("--state", choices=get_args(OpenState))
    command.add_argument("--type", dest="task_type", metavar="NAME", help="of this task type")
    command.add_argument("--owner", metavar="NAME", help="of this caller")
    command.add_argument("--after", dest="created_after", metavar="TIME", help="created since, 2030-01-31T08:00:00Z")
    command.add_argument("--before", dest="created_before", metavar="TIME", help="created before")
    command.add_argument("--limit", type=int, metavar="N", help="limit (default: 10000)")
    command.add_argument("--reason", metavar="TEXT")


def _add_redrive(jobs: Group) -> None:
    command = jobs.add_action("redrive", "Requeue failed jobs, oldest failures first.", _redrive)
    command.add_argument("--type", dest="task_type", metavar="NAME", help="of this task type")
    command.add_argument("--owner", metavar="NAME", help="of this caller")
    command.add_argument("--class", dest="error_class", choices=[one.value for one in ErrorClass])
    command.add_argument("--code", dest="error_code", metavar="CODE", help="with this error code, such as worker_lost")
    command.add_argument("--after", dest="ended_after", metavar="TIME", help="that failed since, 2030-01-31T08:00:00Z")
    command.add_argument("--before", dest="ended_before", metavar="TIME", help="that failed before")
    command.add_argument("--limit", type=int, metavar="N", help="limit (default: 1000)")


async def _list(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    found = await JobStore(pool).list_jobs(
        JobQuery(arguments.state, arguments.type, arguments.code),
        owner=arguments.owner,
        before=None,
        limit=arguments.limit,
    )
    owners = {job.id: job.owner for job in found}
    columns = {
        "ID": lambda job: job.id,
        "TYPE": lambda job: job.task_type,
        "STATE": lambda job: job.state,
        "OWNER": lambda job: owners[job.id],
        "PRIORITY": lambda job: job.priority,
        "ATTEMPT": lambda job: f"{job.attempt}/{job.max_attempts}",
        "CREATED": lambda job: job.created_at,
        "NOW": _now,
    }
    print_table([JobView.of(job) for job in found], columns, as_json=arguments.json)
    return 0


def _now(job: JobView) -> str:
    if job.error is not None:
        return f"{job.error.get('code')}: {job.error.get('message', '')}"
    return f"{job.percent:.0f} % {job.stage or ''}" if job.state == JobState.RUNNING else ""


async def _find(pool: Pool, job_id: UUID) -> Job:
    job = await JobStore(pool).find_job(job_id)
    if job is None:
        raise Problem("job_not_found", f"There is no job {job_id}.")
    return job


async def _show(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    print_object(JobView.of(await _find(pool, arguments.id)), as_json=arguments.json)
    return 0


async def _explain(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    job = await _find(pool, arguments.id)
    explanation = await build_explanation(JobStore(pool), OperatorStore(pool, settings.lease_seconds), job, None)
    if arguments.json:
        print_json(explanation.model_dump(mode="json", by_alias=True))
        return 0
    print_line(f"{explanation.state}: {explanation.why}".replace("POST …/retry", f"`jobs retry {job.id}`"))
    for reason in explanation.reasons:
        print_line(f"- {reason.text}")
    if explanation.leases:
        columns = {
            "ATTEMPT": lambda lease: lease.attempt,
            "WORKER": lambda lease: lease.worker_name,
            "ENDED": lambda lease: lease.ended_at,
            "BY": lambda lease: lease.ended_by,
            "THEN": lambda lease: lease.state,
            "ERROR": lambda lease: f"{lease.error.get('code')}: {lease.error.get('message')}" if lease.error else "",
        }
        print_table(explanation.leases, columns, as_json=False)
    return 0


async def _cancel(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    if arguments.id is None:
        return await _cancel_matching(OperatorStore(pool, settings.lease_seconds), arguments)
    if given := _given(arguments, CancelFilter).keys() - {"reason"}:
        raise Problem("validation", f"Give a job or a filter, not both: {', '.join(sorted(given))}.")
    job = await JobStore(pool).request_cancel(arguments.id, arguments.reason)
    if job is None:
        job = await _find(pool, arguments.id)
        raise Problem("invalid_state", f"The job cannot be cancelled: it is {job.state}.")
    done = "It is cancelled." if job.state is JobState.CANCELLED else f"{job.worker_name} was asked to stop."
    print_result(done, JobView.of(job), as_json=arguments.json)
    return 0


async def _cancel_matching(store: OperatorStore, arguments: argparse.Namespace) -> int:
    query = CancelFilter.from_fields(_given(arguments, CancelFilter))
    done = await store.cancel_matching(query.owner, query)
    parts = [f"{count} of {name} cancelled" for name, count in done.cancelled.items()]
    parts += [f"workers of {count} of {name} asked to stop" for name, count in done.stopping.items()]
    sentence = f"{', '.join(parts)}." if parts else "No open job matches."
    sentence += " There may be more: run it again." if done.more else ""
    print_result(sentence, done, as_json=arguments.json)
    return 0


async def _retry(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    job = await JobStore(pool).retry_failed(arguments.id)
    if job is None:
        job = await _find(pool, arguments.id)
        raise Problem("invalid_state", f"Only a failed job can be retried. This one is {job.state}.")
    print_result("It is queued again, with all its attempts.", JobView.of(job), as_json=arguments.json)
    return 0


async def _unlock(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    job = await OperatorStore(pool, settings.lease_seconds).unlock_job(arguments.id)
    if job is None:
        job = await _find(pool, arguments.id)
        raise Problem("invalid_state", f"The job is not leased: it is {job.state}.")
    print_result(f"It is {job.state}. {job.worker_name} has lost its lease.", JobView.of(job), as_json=arguments.json)
    return 0


async def _priority(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    if not -100 <= arguments.priority <= 100:
        raise Problem("validation", "The priority must be between -100 and 100.")
    store = OperatorStore(pool, settings.lease_seconds)
    job = await store.change_priority(arguments.id, None, arguments.priority)
    if job is None:
        job = await _find(pool, arguments.id)
        raise Problem("invalid_state", f"The job has already ended: it is {job.state}.")
    print_result(f"Its priority is {job.priority}.", JobView.of(job), as_json=arguments.json)
    return 0


def _given(arguments: argparse.Namespace, model: type[Model]) -> dict[str, object]:
    values = {name: getattr(arguments, name) for name in model.model_fields}
    return {name: value for name, value in values.items() if value is not None}


async def _redrive(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    query = RedriveFilter.from_fields(_given(arguments, RedriveFilter))
    jobs = await OperatorStore(pool, settings.lease_seconds).redrive_failed(arguments.owner, query)
    counts = ", ".join(f"{count} of {name}" for name, count in jobs.items())
    print_result(
        f"Queued again: {counts}." if counts else "No failed job matches.", {"jobs": jobs}, as_json=arguments.json
    )
    return 0
