"""Webhooks and their deliveries in PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.types.json import Jsonb

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import load_queries, transaction_if
from geo_jobs_api.queue.job_store import LimitExceededError, lock_owner
from geo_jobs_api.webhooks.records import ClaimedDelivery, DeliveryState
from geo_jobs_api.webhooks.schemas import Delivery, Webhook

_webhooks = load_queries("webhooks.sql")
# Each test is a row for a month.
MAX_PENDING_TESTS = 10
MAX_TESTS_PER_HOUR = 60


@dataclass(frozen=True, slots=True)
class WebhookContent:
    """The columns that a webhook's owner sets. Without a secret it keeps its own."""

    url: str
    destination: str
    secret: bytes | None
    events: Sequence[str]
    task_types: Sequence[str] | None
    all_owners: bool
    paused: bool

    def columns(self) -> dict[str, object]:
        """Return the parameters of a statement."""
        lists = {"events": list(self.events), "task_types": self.task_types and list(self.task_types)}
        return {name: getattr(self, name) for name in self.__slots__} | lists


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Limits of one round.

    Attributes:
        destinations: maximum number of destinations, with one delivery each.
        lease_seconds: time until a delivery without outcome is retried.
        per_second: mean rate to each destination.
    """

    destinations: int
    lease_seconds: float
    per_second: float


class WebhookStore:
    """Everything about webhooks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create_webhook(self, webhook_id: UUID, owner: str, content: WebhookContent, *, limit: int = 0) -> Webhook:
        """Register a webhook with a secret.

        Raises:
            LimitExceededError: the owner's webhooks would exceed `limit` (0: no limit).
        """
        async with self._pool.connection() as connection, transaction_if(connection, limit):
            row = await _webhooks.insert_webhook(connection, id=webhook_id, owner=owner, **content.columns())
            if limit:
                await lock_owner(connection, owner)
                if (await _webhooks.count_webhooks(connection, owner=owner))["count"] > limit:
                    raise LimitExceededError
        return Webhook.from_row(row)

    async def replace_webhook(self, webhook: Webhook, content: WebhookContent) -> Webhook | None:
        """Replace the content of a webhook. Return None when it has been deleted."""
        return await self._pool.fetch_one(
            _webhooks.replace_webhook, Webhook, id=webhook.id, owner=webhook.owner, **content.columns()
        )

    async def find_webhook(self, webhook_id: UUID, owner: str | None = None) -> Webhook | None:
        """Return one webhook. With an owner, only that owner's."""
        return await self._pool.fetch_one(_webhooks.get_webhook, Webhook, id=webhook_id, owner=owner)

    async def list_webhooks(self, *, owner: str | None, limit: int) -> list[Webhook]:
        """Return up to `limit` webhooks, oldest first."""
        return await self._pool.fetch(_webhooks.list_webhooks, Webhook, owner=owner, limit=limit)

    async def delete_webhook(self, webhook_id: UUID) -> bool:
        """Delete a webhook with all its deliveries. Return False when there is none."""
        return await self._pool.execute(_webhooks.delete_webhook, id=webhook_id) == 1

    async def list_deliveries(
        self, webhook_id: UUID, *, state: DeliveryState | None, before: int | None, limit: int
    ) -> list[Delivery]:
        """Return up to `limit` deliveries older than the delivery `before`, latest first."""
        return await self._pool.fetch(
            _webhooks.list_deliveries,
            Delivery,
            webhook_id=webhook_id,
            state=state and state.value,
            before=before,
            limit=limit,
        )

    async def add_test(self, webhook_id: UUID, body: Mapping[str, object]) -> Delivery | None:
        """Enqueue a test delivery. Return None when the webhook does not exist.

        Raises:
            LimitExceededError: `MAX_PENDING_TESTS` are pending, or there were `MAX_TESTS_PER_HOUR` in the last hour.
        """
        async with self._pool.connection() as connection, connection.transaction():
            # The count needs a snapshot taken after the lock.
            await _webhooks.lock_webhook(connection, id=webhook_id)
            tests = await _webhooks.count_tests(connection, webhook_id=webhook_id)
            if tests["waiting"] >= MAX_PENDING_TESTS or tests["lately"] >= MAX_TESTS_PER_HOUR:
                raise LimitExceededError
            row = await _webhooks.insert_delivery(
                connection, webhook_id=webhook_id, event="test", body=Jsonb(dict(body))
            )
        return None if row is None else Delivery.from_row(row)

    async def redeliver(self, webhook_id: UUID, delivery_id: int) -> Delivery | None:
        """Restart a delivery. Return None when an attempt is under way, or it does not exist."""
        return await self._pool.fetch_one(_webhooks.redeliver, Delivery, id=delivery_id, webhook_id=webhook_id)

    async def claim_deliveries(self, limits: DeliveryLimits, busy: Collection[str]) -> list[ClaimedDelivery]:
        """Lease due deliveries, except to busy destinations."""
        return await self._pool.fetch(
            _webhooks.claim_deliveries,
            ClaimedDelivery,
            limit=limits.destinations,
            busy=list(busy),
            lease_seconds=limits.lease_seconds,
            per_second=limits.per_second,
        )

    async def settle_delivery(
        self, claimed: ClaimedDelivery, state: DeliveryState, delay_seconds: float, outcome: Mapping[str, object]
    ) -> bool:
        """Store the outcome of an attempt. Return False when another process has leased the delivery since."""
        settled = await self._pool.execute(
            _webhooks.settle_delivery,
            id=claimed.id,
            attempt=claimed.attempt,
            state=state.value,
            delay_seconds=delay_seconds,
            outcome=Jsonb([dict(outcome)]),
        )
        return settled == 1

    async def seconds_until_due(self, busy: Collection[str]) -> float | None:
        """Return the seconds until a delivery to an idle destination is due. None: none is pending."""
        async with self._pool.connection() as connection:
            seconds: float | None = (await _webhooks.seconds_until_due(connection, busy=list(busy)))["seconds"]
        return seconds
