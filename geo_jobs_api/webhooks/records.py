"""Deliveries as claimed by the sender."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from geo_jobs_api.queue.records import FromRow


class DeliveryState(StrEnum):
    """State of a delivery. A pending one is retried."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ClaimedDelivery(FromRow):
    """A delivery to send now, with its URL and encrypted secret."""

    id: int
    webhook_id: UUID
    destination: str
    event: str
    job_id: UUID | None
    body: dict[str, Any]
    attempt: int
    url: str
    secret: bytes
