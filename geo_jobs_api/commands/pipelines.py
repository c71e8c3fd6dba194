"""pipelines: named stages of jobs."""

from __future__ import annotations

import argparse
from uuid import UUID

from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_json, print_line, print_result, print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.pipelines.schemas import PipelineJobView, PipelineView
from geo_jobs_api.pipelines.store import PipelineStore


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    pipelines = commands.group("pipelines", "Pipelines: named stages of jobs.")
    command = pipelines.add_action("list", "List the latest pipelines.", _list)
    command.add_argument("--owner", metavar="NAME", help="only this caller's")
    command.add_argument("--limit", type=int, default=20, metavar="N", help="limit (default: 20)")
    command = pipelines.add_action("show", "Show the progress of a pipeline and of its jobs.", _show)
    command.add_argument("id", type=UUID, metavar="ID")
    command = pipelines.add_action("cancel", "Cancel all open jobs of a pipeline.", _cancel)
    command.add_argument("id", type=UUID, metavar="ID")
    command.add_argument("--reason", metavar="TEXT", default="Its pipeline was cancelled by an operator.")


async def _list(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    store = PipelineStore(pool)
    found = await store.list_pipelines(owner=arguments.owner, before=None, limit=arguments.limit)
    columns = {
        "ID": lambda view: view.id,
        "NAME": lambda view: view.name,
        "STATE": lambda view: view.state,
        "PERCENT": lambda view: view.percent,
        "JOBS": lambda view: ", ".join(f"{number} {state}" for state, number in sorted(view.counts.items())),
        "CREATED": lambda view: view.created_at,
    }
    print_table(found, columns, as_json=arguments.json)
    return 0


async def _show(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    store = PipelineStore(pool)
    pipeline = await store.find_pipeline(arguments.id)
    if pipeline is None:
        print_line(f"There is no pipeline {arguments.id}.", to_error=True)
        return 1
    view = PipelineView.of(pipeline, await store.list_jobs(pipeline.id))
    if arguments.json:
        print_json(view.model_dump(mode="json", by_alias=True))
        return 0
    stages = {job.id: stage.name for stage in view.stages for job in stage.jobs}
    columns = {
        "STAGE": lambda job: stages[job.id],
        "JOB": lambda job: job.name,
        "STATE": lambda job: job.state,
        "PERCENT": lambda job: job.percent,
        "ID": lambda job: job.id,
        "WHY": _why,
    }
    print_table([job for stage in view.stages for job in stage.jobs], columns, as_json=False)
    return 0


def _why(job: PipelineJobView) -> str | None:
    return job.cancel_reason if job.error is None else str(job.error.get("message", ""))


async def _cancel(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    number = await PipelineStore(pool).cancel_pipeline(arguments.id, arguments.reason)
    print_result(f"Cancelled {number} jobs.", {"jobs": number}, as_json=arguments.json)
    return 0
