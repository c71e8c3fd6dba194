"""Schedules as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from geo_jobs_api.fields import Model
from geo_jobs_api.queue.records import FromRow

Overlap = Literal["allow", "skip", "cancel_old"]
FireOutcome = Literal["created", "overlap", "missed", "failed"]


class ScheduleBase(Model):
    """The columns of `schedules` that are public as they are. `upcoming` begins with `next_run_at`."""

    id: UUID
    name: str
    catch_up: int
    overlap: Overlap
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


class Schedule(ScheduleBase):
    """A row of `schedules`. `timing` is JSON, `template` JSON text."""

    owner: str
    timing: dict[str, object]
    template: str


@dataclass(frozen=True, slots=True)
class LastSource(FromRow):
    """The source validators of a schedule's latest success, and its conditional request."""

    task_type: str
    input_payload: dict[str, object]
    source_validators: dict[str, object]
    source_condition: dict[str, object] | None

    def condition_for(self, task_type: str, input_payload: Mapping[str, object]) -> dict[str, object] | None:
        """Return the conditional request for the same work. None: other work, or no validators."""
        if task_type != self.task_type or dict(input_payload) != self.input_payload:
            return None
        # A response "not modified" may lack the validators.
        before = (self.source_condition or {}) if self.source_validators.get("unchanged") else {}
        condition = {name: self.source_validators.get(name) or before.get(name) for name in ("etag", "lastModified")}
        return {name: value for name, value in condition.items() if value} or None
