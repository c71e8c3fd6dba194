"""The endpoints for those who watch: health and metrics."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import psycopg
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from psycopg_pool import PoolTimeout

from geo_jobs_api import docs_page, metrics, openapi
from geo_jobs_api.records import VacuumBlocker
from geo_jobs_api.services import ServicesOf

router = APIRouter(tags=["monitoring"])

# Room for so many of the largest uploads, with their results, leaves an operator time to act.
_FILES_OF_ROOM = 10


def program_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("geoprocessing-worker")
    except PackageNotFoundError:
        return "unknown"


@router.get(
    "/health",
    responses={503: {"description": "The same body, with what is wrong.", "content": {"application/json": {}}}},
    summary="Is the service able to work?",
)
async def health(services: ServicesOf) -> JSONResponse:
    """200 when the database and the storage answer, else 503; the body tells which of them does not.

    `warnings` lists trouble to come: a disk that is nearly full, transactions that hold back vacuum.
    """
    checks = {"database": "ok", "storage": "ok"}
    warnings: list[str] = []
    try:
        blockers = await services.upkeep.list_vacuum_blockers(services.settings.vacuum_warning_seconds)
    except (psycopg.Error, PoolTimeout):
        checks["database"] = "unreachable"
    else:
        warnings += [_vacuum_warning(blocker) for blocker in blockers]
    try:
        await services.storage.check()
        warnings += _room_warnings(await services.storage.free_bytes(), services.settings.max_file_size)
    except OSError:
        checks["storage"] = "not writable"
    healthy = all(state == "ok" for state in checks.values())
    status = "draining" if services.room.is_draining else "ok" if healthy else "unhealthy"
    body: dict[str, object] = {"status": status, **checks, "version": program_version()}
    if warnings:
        # The service still works, so the status stays 200.
        body["warnings"] = warnings
    return JSONResponse(body, 200 if status == "ok" else 503)


def _room_warnings(free_bytes: int | None, max_file_size: int) -> list[str]:
    if free_bytes is None or free_bytes >= _FILES_OF_ROOM * max_file_size:
        return []
    told = f"The storage has {free_bytes / 1e6:.0f} MB free, less than {_FILES_OF_ROOM} times MAX_FILE_SIZE"
    cure = "Make room with `python -m geo_jobs_api cleanup DAYS`, or move DATA_DIR to a larger disk."
    return [f"{told}: uploads will soon be refused (507). {cure}"]


def _vacuum_warning(blocker: VacuumBlocker) -> str:
    since = "" if blocker.seconds is None else f" for {blocker.seconds:.0f} s"
    return f"The {blocker.who} has held back vacuum{since}: claims slow down. End it, or have its owner end it."


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def read_metrics(services: ServicesOf) -> Response:
    """Counters of this service's processes on this host, and the open jobs of the whole queue."""
    body = metrics.render(await services.upkeep.count_open_jobs())
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/docs", include_in_schema=False)
async def read_docs(request: Request) -> HTMLResponse:
    """All endpoints, for people."""
    return HTMLResponse(docs_page.render(request.app.openapi()), headers=docs_page.HEADERS)


@router.get("/openapi.json", include_in_schema=False)
async def read_openapi(request: Request, services: ServicesOf) -> JSONResponse:
    """All endpoints, for programs, with the payloads of the task types that there are."""
    kinds = await services.task_types.list_task_types()
    return JSONResponse(openapi.with_payloads(request.app.openapi(), kinds))
