"""Deliveries as the sender claims them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from geo_jobs_api.queue.records import FromRow


class DeliveryState(StrEnum):
    """State of a delivery; a pending one is tried again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ClaimedDelivery(FromRow):
    """A delivery to be tried now, with its URL and the encrypted secret of its signature."""

    id: int
    webhook_id: UUID
    destination: str
    event: str
    job_id: UUID | None
    body: dict[str, Any]
    attempt: int
    url: str
    secret: bytes
