"""Webhooks and what is delivered to them; frozen, each made of one row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from geo_jobs_api.queue.records import FromRow


@dataclass(frozen=True, slots=True)
class Webhook(FromRow):
    """A webhook, as `webhooks` holds it, without its secret."""

    id: UUID
    owner: str
    url: str
    events: list[str]
    task_types: list[str] | None
    all_owners: bool
    paused: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery(FromRow):
    """Something that was or is to be told to a webhook; `attempts` says what came of each try."""

    id: int
    webhook_id: UUID
    event: str
    job_id: UUID | None
    pipeline_id: UUID | None
    state: str
    attempt: int
    next_attempt_at: datetime | None
    attempts: list[dict[str, Any]]
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery(FromRow):
    """A delivery to be tried now, with where it goes and the sealed secret that it is signed with."""

    id: int
    webhook_id: UUID
    destination: str
    event: str
    job_id: UUID | None
    body: dict[str, Any]
    attempt: int
    url: str
    secret: bytes
