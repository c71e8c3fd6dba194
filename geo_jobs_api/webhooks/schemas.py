"""Requests for webhooks, and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from geo_jobs_api.fields import Boolean, Model, SecretText, StrictModel, Text
from geo_jobs_api.jobs.creation_schemas import TaskTypeName
from geo_jobs_api.webhooks.records import DeliveryState

Event = Literal[
    "job.succeeded", "job.failed", "job.cancelled", "pipeline.succeeded", "pipeline.failed", "pipeline.cancelled"
]
_JOB_EVENTS: list[Event] = ["job.succeeded", "job.failed", "job.cancelled"]


class PutWebhook(StrictModel):
    """A webhook. `allOwners`: jobs of all owners, for administrators."""

    url: Annotated[Text, Field(min_length=1, max_length=2000)]
    secret: Annotated[SecretText, Field(min_length=16, max_length=200)] | None = None
    events: list[Event] = Field(default=_JOB_EVENTS, min_length=1, max_length=20)
    task_types: Annotated[list[TaskTypeName], Field(min_length=1, max_length=100)] | None = None
    all_owners: Boolean = False
    paused: Boolean = False


class Webhook(Model):
    """A webhook, without its secret."""

    id: UUID
    owner: str
    url: str
    events: list[str]
    task_types: list[str] | None
    all_owners: bool
    paused: bool
    created_at: datetime
    updated_at: datetime


class CreatedWebhook(Webhook):
    """A new webhook with its secret, which is never shown again."""

    secret: str


class WebhookList(Model):
    """All webhooks of a caller."""

    webhooks: list[Webhook]


class Delivery(Model):
    """A delivery. `attempts` are `{at, seconds, statusCode, error}`."""

    id: int
    webhook_id: UUID
    event: str
    job_id: UUID | None
    pipeline_id: UUID | None
    state: DeliveryState
    attempt: int
    next_attempt_at: datetime | None
    attempts: list[dict[str, object]]
    created_at: datetime
    finished_at: datetime | None


class DeliveryPage(Model):
    """Deliveries, latest first. `next` is the cursor of the following page."""

    deliveries: list[Delivery]
    next: int | None


class DeliveryFilter(StrictModel):
    """Filter of a list of deliveries. `cursor` is the `next` of the previous page."""

    state: DeliveryState | None = None
    cursor: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
