"""Requests for pipelines, and their progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import Field, model_validator

from geo_jobs_api.database.queries import Row
from geo_jobs_api.fields import Model, Name, StrictModel, Timestamp
from geo_jobs_api.jobs.creation_schemas import JobTemplate, OnParentFailure, OutputName
from geo_jobs_api.queue.records import Pipeline
from geo_jobs_api.queue.rules import FINAL_STATES, JobState

LARGEST_PIPELINE = 1000


class DependsOnName(StrictModel):
    """A parent job in the same pipeline."""

    job: Name
    on_parent_failure: OnParentFailure = "cancel"


class InputFromName(StrictModel):
    """An output of another job of the pipeline as input, by suffix or full name."""

    job: Name
    output: OutputName


class PipelineJob(JobTemplate):
    """One job. By default it waits for the previous stage. `onParentFailure`: the effect of a failure there."""

    name: Name
    input_from: InputFromName | None = None
    depends_on: list[DependsOnName] | None = Field(default=None, max_length=LARGEST_PIPELINE, fail_fast=True)
    on_parent_failure: OnParentFailure = "cancel"
    notify_at: Timestamp | None = None


class PipelineStage(StrictModel):
    """Jobs that may run concurrently."""

    name: Name
    jobs: list[PipelineJob] = Field(min_length=1, max_length=LARGEST_PIPELINE)


class CreatePipeline(StrictModel):
    """Stages in sequence."""

    name: Name
    stages: list[PipelineStage] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _names_fit(self) -> CreatePipeline:
        jobs = Counter(job.name for stage in self.stages for job in stage.jobs)
        if jobs.total() > LARGEST_PIPELINE:
            raise ValueError(f"a pipeline has at most {LARGEST_PIPELINE} jobs")
        for names in (jobs, Counter(stage.name for stage in self.stages)):
            twice = next((name for name, number in names.items() if number > 1), None)
            if twice is not None:
                raise ValueError(f"the name {twice!r} is given twice")
        for job in (job for stage in self.stages for job in stage.jobs):
            references = [edge.job for edge in job.depends_on or ()] + ([job.input_from.job] if job.input_from else [])
            unknown = next((name for name in references if name not in jobs), None)
            if unknown is not None:
                raise ValueError(f"{job.name!r} names {unknown!r}, which is no job of this pipeline")
        return self


class PipelineJobView(Model):
    """The progress of one job. `error` comes without its details."""

    name: str = Field(validation_alias="pipeline_job")
    id: UUID
    task_type: str
    state: JobState
    percent: float
    stage: str | None
    error: dict[str, object] | None
    cancel_reason: str | None
    started_at: datetime | None
    finished_at: datetime | None


class PipelineStageView(Model):
    """The progress of one stage."""

    name: str
    state: JobState
    percent: float
    jobs: list[PipelineJobView]


class PipelineSummary(Model):
    """The progress of a pipeline.

    `state` is `running` until every job has ended. Then it is `failed` if any job has failed, else `cancelled` if any
    was cancelled, else `succeeded`. `counts` are jobs by state.
    """

    id: UUID
    name: str
    state: JobState
    percent: float
    counts: dict[str, int]
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Return the summary of a row, with the state that follows from its counts."""
        return super().from_row({**row, "state": _state(row["counts"])})


class PipelineView(PipelineSummary):
    """The progress of a pipeline and of each job."""

    stages: list[PipelineStageView]

    @classmethod
    def of(cls, pipeline: Pipeline, jobs: Sequence[PipelineJobView]) -> PipelineView:
        """Return the view of a pipeline with all its jobs."""
        by_name = {job.name: job for job in jobs}
        stages = []
        for stage in pipeline.stages:
            own = [by_name[name] for name in stage["jobs"] if name in by_name]
            stages.append(
                PipelineStageView(
                    name=stage["name"],
                    state=_state(job.state for job in own),
                    percent=_percent(own),
                    jobs=own,
                )
            )
        finished = [job.finished_at for job in jobs if job.finished_at is not None]
        return cls(
            id=pipeline.id,
            name=pipeline.name,
            state=_state(job.state for job in jobs),
            percent=_percent(jobs),
            counts=dict(Counter(job.state for job in jobs)),
            created_at=pipeline.created_at,
            finished_at=max(finished) if finished and len(finished) == len(jobs) else None,
            stages=stages,
        )


class PipelinePage(Model):
    """Pipelines without their jobs, newest first. `next` is the cursor of the following page."""

    pipelines: list[PipelineSummary]
    next: UUID | None


class PipelineFilter(StrictModel):
    """Filter of a list of pipelines. `cursor` is the `next` of the previous page."""

    cursor: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=50)] = 20


def _state(states_of_jobs: Iterable[str]) -> JobState:
    states = set(states_of_jobs)
    if states - FINAL_STATES:
        return JobState.RUNNING
    worst = (state for state in (JobState.FAILED, JobState.CANCELLED) if state in states)
    return next(worst, JobState.SUCCEEDED)


def _percent(jobs: Sequence[PipelineJobView]) -> float:
    done = sum(100.0 if job.finished_at is not None else job.percent for job in jobs)
    return done / len(jobs) if jobs else 100.0
