"""The monitoring endpoints: health, metrics, documentation."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from geo_jobs_api.http import docs_page, openapi
from geo_jobs_api.http.services import ServicesOf
from geo_jobs_api.queue import metrics

router = APIRouter(tags=["monitoring"])


def program_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("geoprocessing-worker")
    except PackageNotFoundError:
        return "unknown"


@router.get(
    "/health",
    responses={503: {"description": "The same body with the trouble.", "content": {"application/json": {}}}},
    summary="Check the service",
)
async def health(services: ServicesOf) -> JSONResponse:
    """Return 200 when the database and the storage accept writes, else 503, within two seconds.

    `warnings` lists future problems: a disk that is nearly full, transactions that hold back vacuum.
    """
    vitals = await services.vitals.read()
    status = "draining" if services.room.is_draining else "ok" if vitals.is_healthy else "unhealthy"
    body: dict[str, object] = {
        "status": status,
        "database": vitals.database,
        "storage": vitals.storage,
        "version": program_version(),
    }
    if vitals.warnings:
        # The service still works, so the status stays 200.
        body["warnings"] = vitals.warnings
    return JSONResponse(body, 200 if status == "ok" else 503)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def read_metrics(services: ServicesOf) -> Response:
    """Return counters of this host's processes, and the open jobs of the whole queue."""
    body = metrics.render(await services.open_jobs.read())
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/docs", include_in_schema=False)
async def read_docs(request: Request) -> HTMLResponse:
    """Return all endpoints as a page for people."""
    page = await asyncio.to_thread(lambda: docs_page.render(request.app.openapi()))
    return HTMLResponse(page, headers=docs_page.HEADERS)


@router.get("/openapi.json", include_in_schema=False)
async def read_openapi(request: Request, services: ServicesOf) -> JSONResponse:
    """Return the OpenAPI document, with the payloads of the existing task types."""
    kinds = await services.task_types.list_task_types()
    return await asyncio.to_thread(lambda: JSONResponse(openapi.with_payloads(request.app.openapi(), kinds)))
