"""A task type as JSON: the same shape in calls, commands and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from geo_jobs_api.errors import FieldError, Problem
from geo_jobs_api.wire_types import Model, Text

_DAY_SECONDS = 86_400


class OutputRule(Model):
    """Something that a job may leave: its file's suffix after the stem, and for which output formats (null: all)."""

    model_config = ConfigDict(extra="forbid")

    suffix: str = Field(pattern=r"^[._-][A-Za-z0-9._-]{0,39}$")
    content_type: Annotated[Text, Field(min_length=1, max_length=200)]
    max_bytes: int = Field(gt=0, le=2**40)
    formats: list[Annotated[str, Field(pattern="^[a-z0-9]{1,20}$")]] | None = None


class ClaimRate(Model):
    """At most `count` claims in any stretch of `periodSeconds`."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(ge=1, le=100_000)
    period_seconds: float = Field(gt=0, le=31 * _DAY_SECONDS)


class TaskType(Model):
    """What a kind of job needs and leaves, how long, how often and how many at once it may run.

    `leaseSeconds` null: the service's own. `maxConcurrentRuns` and `rateLimit` null: as many as there are workers.
    `backoffSeconds`: the longest wait after the first, second, … attempt; the last one repeats.
    """

    # A misspelt limit must not go unnoticed.
    model_config = ConfigDict(extra="forbid")

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
    paused: bool = False
    default_priority: int = Field(default=0, ge=-100, le=100)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TaskType:
        """Read a row of `task_types`."""
        same = {name: row[name] for name in cls.model_fields if name not in {"input", "outputs", "rate_limit"}}
        rate = None
        if row["rate_count"] is not None:
            rate = ClaimRate(count=row["rate_count"], period_seconds=row["rate_period_seconds"])
        outputs = [OutputRule.model_validate(rule) for rule in row["outputs"]]
        return cls(**same, input=row["input_rule"], outputs=outputs, rate_limit=rate)

    def as_row(self) -> dict[str, Any]:
        """The columns of `task_types`, with the outputs as JSON values."""
        same = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name not in {"input", "outputs", "rate_limit"}
        }
        rate = self.rate_limit
        return same | {
            "input_rule": self.input,
            "outputs": [rule.model_dump(by_alias=True) for rule in self.outputs],
            "rate_count": None if rate is None else rate.count,
            "rate_period_seconds": None if rate is None else rate.period_seconds,
        }

    def changed(self, given: Mapping[str, Any]) -> TaskType:
        """The same with some fields changed, given by their JSON names; Problem `validation` if that cannot be."""
        return parse_task_type(self.model_dump(by_alias=True) | dict(given) | {"name": self.name})


def parse_task_type(given: Mapping[str, Any]) -> TaskType:
    """Read one from JSON; Problem `validation`, which names the wrong places, if it is none."""
    try:
        return TaskType.model_validate(dict(given))
    except ValidationError as error:
        raise Problem(
            "validation",
            "This cannot be a task type.",
            errors=[
                FieldError("/" + "/".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()
            ],
        ) from error
