"""Requests that create jobs."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, model_validator

from geo_jobs_api.fields import Boolean, Integer, Model, Payload, StrictModel, Text, Timestamp
from geo_jobs_api.jobs.schemas import JobView

LARGEST_BATCH = 1000
_MAX_PARENTS = 1000

OnParentFailure = Literal["cancel", "run", "hold"]
TaskTypeName = Annotated[Text, Field(min_length=1, max_length=63)]
OutputName = Annotated[Text, Field(min_length=1, max_length=255)]
DedupKey = Annotated[Text, Field(min_length=1, max_length=255)]


class DependsOn(StrictModel):
    """A parent job, and the effect of its failure or cancellation."""

    job_id: UUID
    on_parent_failure: OnParentFailure = "cancel"


class InputFrom(StrictModel):
    """An output of another job as input, by suffix (`.tif`) or full name."""

    job_id: UUID
    output: OutputName


class JobTemplate(StrictModel):
    """The common fields of all requests that create jobs."""

    task_type: TaskTypeName
    priority: Integer | None = Field(default=None, ge=-100, le=100)
    input_payload: Payload = Field(default_factory=dict)


class CreateJob(JobTemplate):
    """A new job. Its input is an upload, `inputPayload.sourceUrl`, or another job's output.

    `awaitUpload` announces an upload to a task type that does not require one.
    """

    await_upload: Boolean = False
    dedup_key: DedupKey | None = None
    depends_on: list[DependsOn] = Field(default_factory=list, max_length=_MAX_PARENTS, fail_fast=True)
    input_from: InputFrom | None = None
    run_at: Timestamp | None = None
    notify_at: Timestamp | None = None

    @model_validator(mode="after")
    def _parents_fit(self) -> CreateJob:
        parents = [parent.job_id for parent in self.depends_on]
        if len(set(parents)) != len(parents):
            raise ValueError("dependsOn contains a job twice")
        if self.input_from is not None:
            for parent in self.depends_on:
                if parent.job_id == self.input_from.job_id and parent.on_parent_failure == "run":
                    raise ValueError("a job cannot run after the failure of the job with its input")
        return self


class CreateBatch(StrictModel):
    """New jobs: all of them are created, or none."""

    jobs: list[CreateJob] = Field(min_length=1, max_length=LARGEST_BATCH)


class CreatedBatch(Model):
    """The jobs in request order. `created` is false for existing ones."""

    jobs: list[JobView]
    created: list[bool]
