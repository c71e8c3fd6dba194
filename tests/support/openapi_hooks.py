"""Values that schemathesis cannot generate: existing jobs, held leases, signed URLs.

Its command line loads this module. Half of the valid requests get one of these, so that they come further than "no such
job". Invalid ones stay unchanged.
"""

from __future__ import annotations

import json
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import schemathesis

POOL = "OPENAPI_POOL"  # file of the pool
# Path parameters, with their keys in the pool.
OWN = {"job_id": "jobs", "pipeline_id": "pipelines", "schedule_id": "schedules", "webhook_id": "webhooks"}


@cache
def _pool() -> dict[str, Any]:
    pool: dict[str, Any] = json.loads(Path(os.environ[POOL]).read_text())
    return pool


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Insert real values, chosen by the request itself, so that a seed repeats it."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    seconds = case.body.get("waitSeconds") if isinstance(case.body, dict) else None
    if isinstance(case.body, dict) and isinstance(seconds, int | float):
        # Waiting is not under test.
        case.body["waitSeconds"] = min(seconds, 0.1)
    choice = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode())
    if choice % 2:
        return
    choice //= 2
    operation = case.operation
    if operation.path.startswith("/storage/"):
        _sign(case, choice)
    elif operation.path.startswith("/api/internal/geo-jobs/{job_id}"):
        lease = _pick("leases", choice)
        case.path_parameters["job_id"] = lease["id"]
        case.headers["lease-token"] = lease["leaseToken"]
    elif "delivery_id" in case.path_parameters:
        case.path_parameters["webhook_id"], case.path_parameters["delivery_id"] = _pick("deliveries", choice)
    else:
        for name in OWN.keys() & case.path_parameters.keys():
            case.path_parameters[name] = _pick(OWN[name], choice)


def _pick(kind: str, choice: int) -> Any:
    return _pool()[kind][choice % len(_pool()[kind])]


def _sign(case: schemathesis.Case[Any], choice: int) -> None:
    url = urlsplit(_pick({"GET": "downloads", "PUT": "uploads"}[case.operation.method.upper()], choice))
    case.path_parameters["key"] = unquote(url.path.removeprefix("/storage/"))
    case.query.clear()
    case.query.update(parse_qsl(url.query))
