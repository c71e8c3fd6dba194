"""Schedules and what was decided for their moments; frozen, each made of one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from geo_jobs_api.queue.records import FromRow


@dataclass(frozen=True, slots=True)
class Schedule(FromRow):
    """A schedule, as `schedules` holds it; `timing` is JSON, `template` JSON text.

    `upcoming` begins with `next_run_at`, unless a program of the release before wrote the row.
    """

    id: UUID
    owner: str
    name: str
    timing: dict[str, Any]
    template: str
    catch_up: int
    overlap: str
    jitter_seconds: int
    start_at: datetime | None
    end_at: datetime | None
    skip_unchanged: bool
    paused: bool
    next_run_at: datetime | None
    upcoming: list[datetime]
    last_run_at: datetime | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ScheduleFire(FromRow):
    """What was decided for one moment of a schedule."""

    fire_time: datetime
    outcome: str
    manual: bool
    job_id: UUID | None
    pipeline_id: UUID | None
    error: str | None
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class LastSource(FromRow):
    """What the latest success of a schedule told of its source, and what it had been asked for."""

    task_type: str
    input_payload: dict[str, Any]
    source_validators: dict[str, Any]
    source_condition: dict[str, Any] | None

    def condition_for(self, task_type: str, input_payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """What to ask the source with for the same work again; None when it is other work, or nothing was told."""
        if task_type != self.task_type or dict(input_payload) != self.input_payload:
            return None
        # A "not modified" need not repeat the validators.
        before = (self.source_condition or {}) if self.source_validators.get("unchanged") else {}
        told = {name: self.source_validators.get(name) or before.get(name) for name in ("etag", "lastModified")}
        return {name: value for name, value in told.items() if value} or None
