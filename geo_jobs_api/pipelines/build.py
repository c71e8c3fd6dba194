"""From a requested pipeline to its jobs, with their dependencies, parents first."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from uuid import UUID

from uuid_utils.compat import uuid7

from geo_jobs_api.errors import Problem, validation_problem
from geo_jobs_api.hosts import HostList
from geo_jobs_api.jobs.creation_store import Dependency, NewJob, PipelinePosition, Source
from geo_jobs_api.jobs.payload_checks import RequestedJob, RequestedOutput
from geo_jobs_api.jobs.submission import request_digest, source_of
from geo_jobs_api.pipelines.schemas import CreatePipeline, PipelineJob
from geo_jobs_api.pipelines.store import NewPipeline
from geo_jobs_api.queue.rules import InputKind

# Each is a row. An intermediate job joins two large stages with fewer dependencies.
MAX_DEPENDENCIES = 20_000


def build_pipeline(
    allowed: HostList, owner: str, body: CreatePipeline, idempotency_key: str | None
) -> tuple[NewPipeline, list[NewJob]]:
    """Return the pipeline and its jobs, parents before children. `allowed`: hosts of downloads.

    Raises:
        Problem: `validation` (a cycle, too many dependencies), `source_not_allowed`.
    """
    parents = _parents_of_jobs(body)
    if sum(map(len, parents.values())) > MAX_DEPENDENCIES:
        raise Problem("validation", f"The jobs wait for each other more than {MAX_DEPENDENCIES} times.")
    order = _sorted(parents)
    pipeline_id = uuid7()
    ids = {name: uuid7() for name in order}
    jobs = {
        job.name: (stage.name, job, f"/stages/{number}/jobs/{place}")
        for number, stage in enumerate(body.stages)
        for place, job in enumerate(stage.jobs)
    }
    digest = request_digest(body.model_dump(mode="json"))
    new_jobs = []
    for number, name in enumerate(order):
        stage, job, pointer = jobs[name]
        new_jobs.append(
            NewJob(
                id=ids[name],
                owner=owner,
                task_type=job.task_type,
                priority=job.priority,
                input_payload=job.input_payload,
                idempotency_key=None if idempotency_key is None else f"{idempotency_key}/pipeline/{number}",
                request_digest=digest,
                source=_source(allowed, job, ids, pointer),
                dependencies=tuple(Dependency(ids[parent], policy) for parent, policy in parents[name].items()),
                notify_at=job.notify_at,
                place=PipelinePosition(pipeline_id, stage, name),
            )
        )
    stages = [{"name": stage.name, "jobs": [job.name for job in stage.jobs]} for stage in body.stages]
    return NewPipeline(pipeline_id, owner, body.name, stages), new_jobs


def requested_jobs(body: CreatePipeline, pointer: str = "") -> list[RequestedJob]:
    """Return the jobs of a pipeline, each with its place in the request."""
    return [
        RequestedJob(f"{pointer}/stages/{number}/jobs/{place}", job.task_type, job.input_payload)
        for number, stage in enumerate(body.stages)
        for place, job in enumerate(stage.jobs)
    ]


def requested_outputs(body: CreatePipeline, pointer: str = "") -> list[RequestedOutput]:
    """Return the outputs that are inputs of other jobs of the pipeline, each with its place in the request."""
    jobs = {job.name: job for stage in body.stages for job in stage.jobs}
    return [
        RequestedOutput(
            f"{pointer}/stages/{number}/jobs/{place}/inputFrom/output",
            job.input_from.output,
            jobs[job.input_from.job].task_type,
            jobs[job.input_from.job].input_payload,
        )
        for number, stage in enumerate(body.stages)
        for place, job in enumerate(stage.jobs)
        if job.input_from is not None
    ]


def _parents_of_jobs(body: CreatePipeline) -> dict[str, dict[str, str]]:
    """Return the parents of each job, with the effect of their failure."""
    parents: dict[str, dict[str, str]] = {}
    before: Sequence[PipelineJob] = ()
    for stage in body.stages:
        for job in stage.jobs:
            parents[job.name] = _parents(job, before)
        before = stage.jobs
    return parents


def _parents(job: PipelineJob, before: Sequence[PipelineJob]) -> dict[str, str]:
    source = None if job.input_from is None else job.input_from.job
    if job.depends_on is not None:
        parents: dict[str, str] = {edge.job: edge.on_parent_failure for edge in job.depends_on}
    else:
        # A job with its own input is a branch. It waits for the previous stage, but only that input must succeed.
        policy = job.on_parent_failure if source is None else "run"
        parents = {other.name: policy for other in before}
        parents.pop(source or "", None)
    if source is not None:
        parents.setdefault(source, job.on_parent_failure)
        if parents[source] == "run":
            raise validation_problem(
                "/stages", f"{job.name!r} cannot run without its input, which comes from {source!r}."
            )
    return parents


def _sorted(parents: Mapping[str, Mapping[str, str]]) -> list[str]:
    try:
        return list(graphlib.TopologicalSorter(parents).static_order())
    except graphlib.CycleError as error:
        circle = " waits for ".join(repr(name) for name in reversed(error.args[1]))
        raise validation_problem("/stages", f"Jobs wait for each other in a circle: {circle}.") from error


def _source(allowed: HostList, job: PipelineJob, ids: Mapping[str, UUID], pointer: str) -> Source:
    if job.input_from is None:
        return source_of(allowed, job.input_payload, f"{pointer}/inputPayload/sourceUrl")
    if "sourceUrl" in job.input_payload:
        raise validation_problem("/stages", f"{job.name!r} has one input: inputFrom, or inputPayload.sourceUrl.")
    return Source(InputKind.OUTPUT, parent_id=ids[job.input_from.job], output=job.input_from.output)
