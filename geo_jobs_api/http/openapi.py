"""The OpenAPI document with the payloads of the task types."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from geo_jobs_api.task_types.schemas import TaskType

# Bodies with a `taskType` and its `inputPayload`.
_BODIES = ("CreateJob", "PipelineJob", "ScheduledJob")
_SCHEMAS = "#/components/schemas/"


def with_payloads(document: dict[str, Any], kinds: Sequence[TaskType]) -> dict[str, Any]:
    """Return the document with a schema `Payload_NAME` for each task type that has one.

    Args:
        document: is not modified.
        kinds: all task types.
    """
    changed = copy.deepcopy(document)
    schemas: dict[str, Any] = changed["components"]["schemas"]
    allowed: list[dict[str, Any]] = []
    for kind in kinds:
        if kind.payload_schema is None:
            allowed = [{"type": "object"}]
            break
        allowed.append({"$ref": f"{_SCHEMAS}{_name(kind)}"})
    for kind in kinds:
        if kind.payload_schema is not None:
            schemas[_name(kind)] = {"title": kind.name} | _rebase_references(kind.payload_schema, _name(kind))
    for body in _BODIES:
        properties = schemas[body]["properties"]
        properties["inputPayload"] = {
            "anyOf": allowed,
            "description": "As the task type wants it: " + ", ".join(_name(kind) for kind in kinds) + ".",
        }
        properties["taskType"] = properties["taskType"] | {"examples": [kind.name for kind in kinds]}
    return changed


def _name(kind: TaskType) -> str:
    return f"Payload_{kind.name}"


def _rebase_references(schema: Any, name: str) -> Any:
    """Return the schema with its references adjusted to the new place."""
    if isinstance(schema, list):
        return [_rebase_references(item, name) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"{_SCHEMAS}{name}{value[1:]}"
        if key == "$ref" and isinstance(value, str)
        else _rebase_references(value, name)
        for key, value in schema.items()
    }
