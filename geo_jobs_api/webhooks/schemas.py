"""Bodies of webhooks and of what was delivered to them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from geo_jobs_api.fields import Model, SecretText, StrictModel, Text
from geo_jobs_api.jobs.creation_schemas import TaskTypeName
from geo_jobs_api.webhooks.records import Delivery, Webhook

Event = Literal[
    "job.succeeded", "job.failed", "job.cancelled", "pipeline.succeeded", "pipeline.failed", "pipeline.cancelled"
]
_JOB_EVENTS: list[Event] = ["job.succeeded", "job.failed", "job.cancelled"]


class PutWebhook(StrictModel):
    """Where to tell of which ends. `allOwners`: of everybody's jobs, for administrators."""

    url: Annotated[Text, Field(min_length=1, max_length=2000)]
    secret: Annotated[SecretText, Field(min_length=16, max_length=200)] | None = None
    events: list[Event] = Field(default=_JOB_EVENTS, min_length=1, max_length=20)
    task_types: Annotated[list[TaskTypeName], Field(min_length=1, max_length=100)] | None = None
    all_owners: bool = False
    paused: bool = False


class WebhookView(Model):
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

    @classmethod
    def of(cls, webhook: Webhook) -> WebhookView:
        """The view of a record."""
        return cls(**{name: getattr(webhook, name) for name in cls.model_fields})


class CreatedWebhook(WebhookView):
    """A new webhook, with its secret: it is never shown again."""

    secret: str


class WebhookList(Model):
    """All webhooks of a caller."""

    webhooks: list[WebhookView]


class DeliveryView(Model):
    """What was or is to be delivered; `attempts` are `{at, seconds, statusCode, error}`."""

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

    @classmethod
    def of(cls, delivery: Delivery) -> DeliveryView:
        """The view of a record."""
        return cls(**{name: getattr(delivery, name) for name in cls.model_fields})


class DeliveryPage(Model):
    """Deliveries, the latest first; `next` is the cursor of the following page."""

    deliveries: list[DeliveryView]
    next: int | None


class DeliveryFilter(StrictModel):
    """Which deliveries to list; `cursor` is the `next` of the page before."""

    state: Literal["pending", "delivered", "failed"] | None = None
    cursor: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
