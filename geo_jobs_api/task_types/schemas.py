"""A task type as JSON, with the same format in requests, commands and the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from geo_jobs_api.database.queries import Row
from geo_jobs_api.errors import Problem
from geo_jobs_api.fields import Boolean, Payload, StrictModel, Text, field_errors
from geo_jobs_api.task_types.payload_schemas import check_schema

_DAY_SECONDS = 86_400


_APART = frozenset({"input", "outputs", "rate_limit", "payload_schema", "input_types"})


def _checked_schema(schema: dict[str, object]) -> dict[str, object]:
    check_schema(schema)
    return schema


PayloadSchema = Annotated[Payload, AfterValidator(_checked_schema)]
MediaType = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+*-]{1,100}/[A-Za-z0-9.+*-]{1,100}$")]


@cache
def builtin_rules() -> Mapping[str, Mapping[str, Any]]:
    """Return `payloadSchema` and `inputTypes` of the built-in task types, which operators may override."""
    text = resources.files("geo_jobs_api.task_types").joinpath("builtin_types.json").read_text(encoding="utf-8")
    types: dict[str, dict[str, Any]] = json.loads(text)
    return types


class OutputRule(StrictModel):
    """A possible output: the suffix of its file, and its output formats (null: all)."""

    suffix: str = Field(pattern=r"^[._-][A-Za-z0-9._-]{0,39}$")
    content_type: Annotated[Text, Field(min_length=1, max_length=200)]
    max_bytes: int = Field(gt=0, le=2**40)
    formats: list[Annotated[str, Field(pattern="^[a-z0-9]{1,20}$")]] | None = None


class ClaimRate(StrictModel):
    """At most `count` claims in any period of `periodSeconds`."""

    count: int = Field(ge=1, le=100_000)
    period_seconds: float = Field(gt=0, le=31 * _DAY_SECONDS)


class TaskType(StrictModel):
    """A task type: requirements, outputs, timeouts and limits of its jobs.

    `leaseSeconds` null: the service default. `maxConcurrentRuns` and `rateLimit` null: no limit. `backoffSeconds`:
    the longest pause after the first, second, … attempt. The last one repeats. `memoryMb`: required memory of a
    worker's job process, in MiB (null: any). `payloadSchema`: JSON Schema of `inputPayload` (null: the built-in one, or
    any object). `inputTypes`: media types of uploads (null: the built-in ones, or any).
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]{0,62}$")
    input: Literal["required", "optional", "none"] = "required"
    outputs: list[OutputRule] = Field(default_factory=list, max_length=50)
    timeout_seconds: int = Field(default=3600, ge=1, le=31 * _DAY_SECONDS)
    lease_seconds: float | None = Field(default=None, ge=1, le=_DAY_SECONDS)
    max_attempts: int = Field(default=5, ge=1, le=100)
    backoff_seconds: list[Annotated[float, Field(ge=0, le=31 * _DAY_SECONDS)]] = Field(
        default=[2, 10, 60, 300, 900], max_length=50
    )
    max_concurrent_runs: int | None = Field(default=None, ge=1, le=1_000_000)
    rate_limit: ClaimRate | None = None
    paused: Boolean = False
    default_priority: int = Field(default=0, ge=-100, le=100)
    memory_mb: int | None = Field(default=None, ge=1, le=10_000_000)
    payload_schema: PayloadSchema | None = None
    input_types: list[MediaType] | None = Field(default=None, max_length=100)

    @classmethod
    def from_row(cls, row: Row) -> TaskType:
        """Read a row of `task_types`."""
        same = {name: row[name] for name in cls.model_fields if name not in _APART}
        rate = None
        if row["rate_count"] is not None:
            rate = ClaimRate.from_fields({"count": row["rate_count"], "period_seconds": row["rate_period_seconds"]})
        outputs = [OutputRule.model_validate(rule) for rule in row["outputs"]]
        own = builtin_rules().get(row["name"], {})
        derived = {
            "input": row["input_rule"],
            "outputs": outputs,
            "rate_limit": rate,
            "payload_schema": own.get("payloadSchema") if row["payload_schema"] is None else row["payload_schema"],
            "input_types": own.get("inputTypes") if row["input_types"] is None else row["input_types"],
        }
        return cls.from_fields(same | derived)

    def as_row(self) -> dict[str, object]:
        """Return the columns of `task_types`, with the outputs as JSON values.

        Built-in values are left empty, so that they follow the next version of the program.
        """
        same = {name: getattr(self, name) for name in type(self).model_fields if name not in _APART}
        rate = self.rate_limit
        own = builtin_rules().get(self.name, {})
        return same | {
            "input_rule": self.input,
            "outputs": [rule.model_dump(by_alias=True) for rule in self.outputs],
            "rate_count": None if rate is None else rate.count,
            "rate_period_seconds": None if rate is None else rate.period_seconds,
            "payload_schema": None if self.payload_schema == own.get("payloadSchema") else self.payload_schema,
            "input_types": None if self.input_types == own.get("inputTypes") else self.input_types,
        }

    def changed(self, given: Mapping[str, object]) -> TaskType:
        """Return a copy with some fields changed, by JSON name, or raise Problem `validation`."""
        return parse_task_type(self.model_dump(by_alias=True) | dict(given) | {"name": self.name})


def parse_task_type(given: Mapping[str, object]) -> TaskType:
    """Read a task type from JSON, or raise Problem `validation` with the invalid places."""
    try:
        return _without_builtin(TaskType.model_validate(dict(given)))
    except ValidationError as error:
        raise Problem("validation", "The task type is invalid.", errors=field_errors(error.errors())) from error


def _without_builtin(task_type: TaskType) -> TaskType:
    own = builtin_rules().get(task_type.name, {})
    known = {"payload_schema": own.get("payloadSchema"), "input_types": own.get("inputTypes")}
    return task_type.model_copy(
        update={name: value for name, value in known.items() if getattr(task_type, name) is None}
    )
