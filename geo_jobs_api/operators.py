"""The endpoints for task types: everybody may look, administrators may change."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from geo_jobs_api.errors import Problem
from geo_jobs_api.services import ServicesOf, admin_of, caller_of
from geo_jobs_api.task_types import TaskType, parse_task_type

router = APIRouter(prefix="/api/task-types", tags=["task types"], dependencies=[Depends(caller_of)])


@router.get("", response_model=list[TaskType], summary="List the task types")
async def list_task_types(services: ServicesOf) -> list[TaskType]:
    """What kinds of jobs there are, and their limits."""
    return await services.task_types.list_task_types()


@router.get("/{name}", response_model=TaskType, summary="Look at a task type")
async def get_task_type(name: str, services: ServicesOf) -> TaskType:
    """One of them."""
    return _found(await services.task_types.find_task_type(name), name)


@router.put("/{name}", response_model=TaskType, summary="Set a task type", dependencies=[Depends(admin_of)])
async def put_task_type(name: str, body: dict[str, Any], services: ServicesOf) -> TaskType:
    """Make it exactly so; what is not given gets its default. Running workers hear of it at their next call."""
    task_type = parse_task_type({**body, "name": name})
    await services.task_types.put_task_type(task_type)
    return task_type


@router.patch("/{name}", response_model=TaskType, summary="Change a task type", dependencies=[Depends(admin_of)])
async def change_task_type(name: str, body: dict[str, Any], services: ServicesOf) -> TaskType:
    """Change what is given and leave the rest: `{"paused": true}` pauses it."""
    return _found(await services.task_types.change_task_type(name, body), name)


def _found(task_type: TaskType | None, name: str) -> TaskType:
    if task_type is None:
        raise Problem("task-type-not-found", f"There is no task type {name!r}.")
    return task_type
