"""Checks of a schedule before it is stored, so that its fires cannot fail later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from geo_jobs_api.errors import validation_problem
from geo_jobs_api.hosts import HostList
from geo_jobs_api.jobs.creation_store import CreationStore
from geo_jobs_api.jobs.payload_checks import RequestedJob, check_outputs, check_payloads
from geo_jobs_api.jobs.submission import source_of
from geo_jobs_api.pipelines.build import build_pipeline, requested_jobs, requested_outputs
from geo_jobs_api.pipelines.schemas import CreatePipeline
from geo_jobs_api.queue.rules import InputKind
from geo_jobs_api.schedules.schemas import PutSchedule, ScheduledJob


async def check_schedule(
    creation: CreationStore, allowed: HostList, owner: str, body: PutSchedule, now: datetime
) -> Sequence[datetime]:
    """Check a schedule that begins now. Return its next fire times.

    Raises:
        Problem: `validation`, `source_not_allowed`, `unknown_task_type`.
    """
    await _check_template(creation, allowed, owner, body)
    upcoming = await asyncio.to_thread(body.timing(body.start_at, body.end_at).upcoming, now)
    if not upcoming:
        raise validation_problem("/at" if body.at is not None else "/cron", "The schedule has no future fire time.")
    return upcoming


async def _check_template(creation: CreationStore, allowed: HostList, owner: str, body: PutSchedule) -> None:
    requested, sources = await asyncio.to_thread(_jobs_of_template, allowed, owner, body.template)
    rules = await check_payloads(creation, requested)
    if not isinstance(body.template, ScheduledJob):
        await check_outputs(creation, requested_outputs(body.template, "/template"))
    if any(kind is None and rules[task_type].input == "required" for task_type, kind in sources):
        raise validation_problem(
            "/template", "The template needs inputPayload.sourceUrl, since a schedule cannot upload files."
        )


def _jobs_of_template(
    allowed: HostList, owner: str, template: ScheduledJob | CreatePipeline
) -> tuple[list[RequestedJob], list[tuple[str, InputKind | None]]]:
    """Return the jobs that a template makes, and each job's task type with its kind of input."""
    if isinstance(template, ScheduledJob):
        source = source_of(allowed, template.input_payload, "/template/inputPayload/sourceUrl")
        return [RequestedJob("/template", template.task_type, template.input_payload)], [
            (template.task_type, source.kind)
        ]
    jobs = build_pipeline(allowed, owner, template, None)[1]
    return requested_jobs(template, "/template"), [(job.task_type, job.source.kind) for job in jobs]
