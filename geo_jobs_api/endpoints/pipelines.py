"""The endpoints for pipelines: create, read, list, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from geo_jobs_api.errors import Problem, or_404
from geo_jobs_api.http.paging import answer, read_page
from geo_jobs_api.http.routes import Route
from geo_jobs_api.http.services import CallerOf, Services, ServicesOf
from geo_jobs_api.jobs.creation_store import NewJob
from geo_jobs_api.jobs.payload_checks import check_outputs, check_payloads
from geo_jobs_api.jobs.schemas import CancelJob
from geo_jobs_api.jobs.submission import IdempotencyKey, check_task_types, quota_exceeded
from geo_jobs_api.pipelines.build import build_pipeline, requested_jobs, requested_outputs
from geo_jobs_api.pipelines.schemas import (
    CreatePipeline,
    PipelineFilter,
    PipelinePage,
    PipelineSummary,
    PipelineView,
)
from geo_jobs_api.pipelines.store import IncompletePipelineError, NewPipeline
from geo_jobs_api.queue.job_store import QuotaExceededError
from geo_jobs_api.queue.records import Caller, Pipeline

router = APIRouter(prefix="/api/pipelines", tags=["pipelines"], route_class=Route)


@router.post("", status_code=201, response_model=PipelineView, summary="Create a pipeline")
async def create_pipeline(
    body: CreatePipeline, caller: CallerOf, services: ServicesOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create all jobs of a pipeline, or none. Stages run in sequence, jobs of one stage concurrently.

    Upload to a job of a pipeline as to others: `POST /api/geo-jobs/{id}/upload`.
    """
    new, jobs = await asyncio.to_thread(
        build_pipeline, services.settings.sources_allowed, caller.subject, body, idempotency_key
    )
    await check_payloads(services.creation, requested_jobs(body))
    await check_outputs(services.creation, requested_outputs(body))
    pipeline_id, status = new.id, 201
    try:
        await services.pipelines.create_pipeline(new, jobs, max_open=services.settings.max_open_jobs_per_caller)
    except QuotaExceededError as error:
        raise quota_exceeded(services.settings, error.has) from error
    except IncompletePipelineError:
        pipeline_id = await _earlier_pipeline(services, new, jobs)
        status = 200
    headers = {"Location": f"/api/pipelines/{pipeline_id}"}
    return await _view(services, await _find(services, caller, pipeline_id), status, headers)


async def _earlier_pipeline(services: Services, new: NewPipeline, jobs: list[NewJob]) -> UUID:
    """Return the pipeline of an earlier request with this key."""
    await check_task_types(services.creation, jobs)
    key = jobs[0].idempotency_key or ""
    job = (await services.creation.find_by_idempotency_keys(new.owner, [key])).get(key)
    if job is None or job.pipeline_id is None:
        raise Problem("unavailable", "The pipeline was not created. Try again.", headers={"Retry-After": "1"})
    if job.request_digest != jobs[0].request_digest:
        raise Problem("idempotency_conflict", "This Idempotency-Key was used with another body. Use a new one.")
    return job.pipeline_id


async def _find(services: Services, caller: Caller, pipeline_id: UUID) -> Pipeline:
    return or_404(await services.pipelines.find_pipeline(pipeline_id, caller.owner_filter), "pipeline")


async def _view(
    services: Services, pipeline: Pipeline, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    jobs = await services.pipelines.list_jobs(pipeline.id)
    return await answer(lambda: PipelineView.of(pipeline, jobs), status, headers)


@router.get("", response_model=PipelinePage, summary="List pipelines")
async def list_pipelines(caller: CallerOf, services: ServicesOf, query: Annotated[PipelineFilter, Query()]) -> Response:
    """Return your pipelines without their jobs, newest first. Administrators get all pipelines."""

    async def fetch(before: UUID | None, limit: int) -> list[PipelineSummary]:
        return await services.pipelines.list_pipelines(owner=caller.owner_filter, before=before, limit=limit)

    return await read_page("pipelines", fetch, lambda pipeline: pipeline, after=query.cursor, limit=query.limit)


@router.get("/{pipeline_id}", response_model=PipelineView, summary="Get a pipeline")
async def get_pipeline(pipeline_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Return the progress of the pipeline and of each job."""
    return await _view(services, await _find(services, caller, pipeline_id))


@router.post("/{pipeline_id}/cancel", response_model=PipelineView, summary="Cancel a pipeline")
async def cancel_pipeline(
    pipeline_id: UUID, caller: CallerOf, services: ServicesOf, body: CancelJob | None = None
) -> Response:
    """Cancel waiting jobs at once, and ask the workers of running ones to stop. Ended jobs do not change."""
    pipeline = await _find(services, caller, pipeline_id)
    reason = None if body is None else body.reason
    await services.pipelines.cancel_pipeline(pipeline_id, reason or "Its pipeline was cancelled.")
    return await _view(services, pipeline)
