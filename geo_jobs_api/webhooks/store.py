"""Webhooks and their deliveries in PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import fetch_all, load_queries, transaction_if
from geo_jobs_api.queue.job_store import LimitExceededError, lock_owner
from geo_jobs_api.webhooks.records import ClaimedDelivery, DeliveryState
from geo_jobs_api.webhooks.schemas import Delivery, Webhook

_webhooks = load_queries("webhooks.sql")
# Each test is a row for a month.
MAX_PENDING_TESTS = 10
MAX_TESTS_PER_HOUR = 60


@dataclass(frozen=True, slots=True)
class WebhookContent:
    """What a webhook's owner decides; the columns of the same names. Without a secret it keeps its own."""

    url: str
    destination: str
    secret: bytes | None
    events: Sequence[str]
    task_types: Sequence[str] | None
    all_owners: bool
    paused: bool

    def columns(self) -> dict[str, Any]:
        """The parameters of a statement."""
        lists = {"events": list(self.events), "task_types": self.task_types and list(self.task_types)}
        return {name: getattr(self, name) for name in self.__slots__} | lists


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """How much is sent at once.

    Attributes:
        destinations: to so many at most, one to each.
        lease_seconds: who has not said by then what came of it is given up.
        per_second: to each destination, in the mean.
    """

    destinations: int
    lease_seconds: float
    per_second: float


class WebhookStore:
    """Everything about webhooks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_webhook(self, webhook_id: UUID, owner: str, content: WebhookContent, *, limit: int = 0) -> Webhook:
        """Register a webhook; it must have a secret.

        Raises:
            LimitExceededError: the owner would have more than `limit`, if that is not 0.
        """
        async with self._pool.connection() as connection, transaction_if(connection, limit):
            row = await _webhooks.insert_webhook(connection, id=webhook_id, owner=owner, **content.columns())
            if limit:
                await lock_owner(connection, owner)
                if (await _webhooks.count_webhooks(connection, owner=owner))["count"] > limit:
                    raise LimitExceededError
        return Webhook.from_row(row)

    async def replace_webhook(self, webhook: Webhook, content: WebhookContent) -> Webhook | None:
        """Give a webhook another content; None when it has been deleted."""
        async with self._pool.connection() as connection:
            row = await _webhooks.replace_webhook(connection, id=webhook.id, owner=webhook.owner, **content.columns())
        return None if row is None else Webhook.from_row(row)

    async def find_webhook(self, webhook_id: UUID, owner: str | None = None) -> Webhook | None:
        """One webhook; with an owner, only if it is that owner's."""
        async with self._pool.connection() as connection:
            row = await _webhooks.get_webhook(connection, id=webhook_id, owner=owner)
        return None if row is None else Webhook.from_row(row)

    async def list_webhooks(self, *, owner: str | None, limit: int) -> list[Webhook]:
        """Up to `limit` webhooks in the order they were made."""
        async with self._pool.connection() as connection:
            rows = await fetch_all(_webhooks.list_webhooks(connection, owner=owner, limit=limit))
        return [Webhook.from_row(row) for row in rows]

    async def delete_webhook(self, webhook_id: UUID) -> bool:
        """Delete a webhook with all its deliveries; False when there is none."""
        async with self._pool.connection() as connection:
            deleted: int = await _webhooks.delete_webhook(connection, id=webhook_id)
        return deleted == 1

    async def list_deliveries(
        self, webhook_id: UUID, *, state: DeliveryState | None, before: int | None, limit: int
    ) -> list[Delivery]:
        """Up to `limit` deliveries, the latest first, made before the one with the id `before`."""
        async with self._pool.connection() as connection:
            rows = await fetch_all(
                _webhooks.list_deliveries(
                    connection, webhook_id=webhook_id, state=state and state.value, before=before, limit=limit
                )
            )
        return [Delivery.from_row(row) for row in rows]

    async def add_test(self, webhook_id: UUID, body: Mapping[str, Any]) -> Delivery | None:
        """Note a test to be delivered. None when there is no such webhook.

        Raises:
            LimitExceededError: `MAX_PENDING_TESTS` wait, or there were `MAX_TESTS_PER_HOUR` in the last hour.
        """
        async with self._pool.connection() as connection, connection.transaction():
            # The count needs a snapshot from after the lock.
            await _webhooks.lock_webhook(connection, id=webhook_id)
            tests = await _webhooks.count_tests(connection, webhook_id=webhook_id)
            if tests["waiting"] >= MAX_PENDING_TESTS or tests["lately"] >= MAX_TESTS_PER_HOUR:
                raise LimitExceededError
            row = await _webhooks.insert_delivery(
                connection, webhook_id=webhook_id, event="test", body=Jsonb(dict(body))
            )
        return None if row is None else Delivery.from_row(row)

    async def redeliver(self, webhook_id: UUID, delivery_id: int) -> Delivery | None:
        """Try again from the beginning; None when it is being tried, or there is none."""
        async with self._pool.connection() as connection:
            row = await _webhooks.redeliver(connection, id=delivery_id, webhook_id=webhook_id)
        return None if row is None else Delivery.from_row(row)

    async def claim_deliveries(self, limits: DeliveryLimits, busy: Collection[str]) -> list[ClaimedDelivery]:
        """Take what is due, but for destinations that are busy."""
        async with self._pool.connection() as connection:
            rows = await fetch_all(
                _webhooks.claim_deliveries(
                    connection,
                    limit=limits.destinations,
                    busy=list(busy),
                    lease_seconds=limits.lease_seconds,
                    per_second=limits.per_second,
                )
            )
        return [ClaimedDelivery.from_row(row) for row in rows]

    async def settle_delivery(
        self, claimed: ClaimedDelivery, state: DeliveryState, delay_seconds: float, outcome: Mapping[str, Any]
    ) -> bool:
        """Note what came of a try; False when somebody else has taken it meanwhile."""
        async with self._pool.connection() as connection:
            settled: int = await _webhooks.settle_delivery(
                connection,
                id=claimed.id,
                attempt=claimed.attempt,
                state=state.value,
                delay_seconds=delay_seconds,
                outcome=Jsonb([dict(outcome)]),
            )
        return settled == 1

    async def seconds_until_due(self, busy: Collection[str]) -> float | None:
        """How long until something may be sent to a destination that is not busy; None when nothing waits."""
        async with self._pool.connection() as connection:
            seconds: float | None = (await _webhooks.seconds_until_due(connection, busy=list(busy)))["seconds"]
        return seconds
