"""The endpoints for webhooks: create, read, change, delete, deliveries, redelivery."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from uuid_utils.compat import uuid7

from geo_jobs_api.errors import Problem, or_404
from geo_jobs_api.http.auth import ADMIN_SCOPE
from geo_jobs_api.http.paging import answer, read_page
from geo_jobs_api.http.routes import Route
from geo_jobs_api.http.services import CallerOf, Services, ServicesOf
from geo_jobs_api.jobs.payload_checks import unknown_task_type
from geo_jobs_api.jobs.submission import limit_exceeded
from geo_jobs_api.queue.job_store import LimitExceededError
from geo_jobs_api.queue.records import Caller
from geo_jobs_api.webhooks.content import new_secret
from geo_jobs_api.webhooks.schemas import (
    CreatedWebhook,
    Delivery,
    DeliveryFilter,
    DeliveryPage,
    PutWebhook,
    Webhook,
    WebhookList,
)
from geo_jobs_api.webhooks.store import MAX_PENDING_TESTS, MAX_TESTS_PER_HOUR

router = APIRouter(prefix="/api/webhooks", tags=["webhooks"], route_class=Route)

_MAX_WEBHOOKS = 1000
# The end of a job is delivered to all webhooks of its owner.
MAX_PER_OWNER = 100
DeliveryId = Annotated[int, Path(ge=0, lt=2**63)]


async def _find(services: Services, caller: Caller, webhook_id: UUID) -> Webhook:
    return or_404(await services.webhooks.find_webhook(webhook_id, caller.owner_filter), "webhook")


async def _find_readable(services: Services, caller: Caller, webhook_id: UUID) -> Webhook:
    """Return a webhook with deliveries that the caller may read. Those of all owners are for administrators."""
    webhook = await _find(services, caller, webhook_id)
    if webhook.all_owners and not caller.is_admin:
        raise Problem(
            "not_allowed", f"This webhook is for all owners, so it requires a token with the scope {ADMIN_SCOPE}."
        )
    return webhook


async def _check_task_types(services: Services, body: PutWebhook) -> None:
    wanted = body.task_types or []
    known = await services.creation.find_task_types(wanted)
    for place, name in enumerate(wanted):
        if name not in known:
            raise await unknown_task_type(services.creation, name, f"/taskTypes/{place}")


@router.post("", status_code=201, response_model=CreatedWebhook, summary="Register a webhook")
async def create_webhook(
    body: PutWebhook, response: Response, caller: CallerOf, services: ServicesOf
) -> CreatedWebhook:
    """Send the ends of your jobs to a URL. The signing secret is in this response only."""
    await _check_task_types(services, body)
    secret = new_secret() if body.secret is None else body.secret.get_secret_value()
    content = services.webhook_builder.content(body, is_admin=caller.is_admin, secret=secret)
    try:
        webhook = await services.webhooks.create_webhook(uuid7(), caller.subject, content, limit=MAX_PER_OWNER)
    except LimitExceededError as error:
        raise limit_exceeded("webhooks", MAX_PER_OWNER) from error
    response.headers["Location"] = f"/api/webhooks/{webhook.id}"
    return CreatedWebhook(**dict(webhook), secret=secret)


@router.get("", response_model=WebhookList, summary="List webhooks")
async def list_webhooks(caller: CallerOf, services: ServicesOf) -> Response:
    """Return your webhooks. Administrators get all webhooks."""
    found = await services.webhooks.list_webhooks(owner=caller.owner_filter, limit=_MAX_WEBHOOKS)
    return await answer(lambda: WebhookList(webhooks=found))


@router.get("/{webhook_id}", response_model=Webhook, summary="Get a webhook")
async def get_webhook(webhook_id: UUID, caller: CallerOf, services: ServicesOf) -> Webhook:
    """Return a webhook without its secret."""
    return await _find(services, caller, webhook_id)


@router.put("/{webhook_id}", response_model=Webhook, summary="Replace a webhook")
async def replace_webhook(webhook_id: UUID, body: PutWebhook, caller: CallerOf, services: ServicesOf) -> Webhook:
    """Replace the content of a webhook. Without `secret`, it keeps its own.

    A webhook with `allOwners` pauses unless an administrator stores it again within `WEBHOOK_RENEWAL_DAYS`.
    """
    webhook = await _find(services, caller, webhook_id)
    await _check_task_types(services, body)
    content = services.webhook_builder.content(body, is_admin=caller.is_admin)
    return await services.webhooks.replace_webhook(webhook, content) or webhook


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook")
async def delete_webhook(webhook_id: UUID, caller: CallerOf, services: ServicesOf) -> Response:
    """Delete a webhook with its queued deliveries and its log."""
    await _find(services, caller, webhook_id)
    await services.webhooks.delete_webhook(webhook_id)
    return Response(status_code=204)


@router.post("/{webhook_id}/test", status_code=201, response_model=Delivery, summary="Test a webhook")
async def test_webhook(webhook_id: UUID, caller: CallerOf, services: ServicesOf) -> Delivery:
    """Deliver an event `test`. A webhook accepts 60 an hour, and 10 in the queue."""
    webhook = await _find_readable(services, caller, webhook_id)
    body = {"event": "test", "time": datetime.now(UTC).isoformat(), "webhook": {"id": str(webhook.id)}}
    try:
        return or_404(await services.webhooks.add_test(webhook_id, body), "webhook")
    except LimitExceededError as error:
        raise Problem(
            "quota_exceeded",
            f"A webhook accepts {MAX_TESTS_PER_HOUR} tests an hour, and {MAX_PENDING_TESTS} pending. Try again later.",
            headers={"Retry-After": "60"},
        ) from error


@router.get("/{webhook_id}/deliveries", response_model=DeliveryPage, summary="List a webhook's deliveries")
async def list_deliveries(
    webhook_id: UUID, caller: CallerOf, services: ServicesOf, query: Annotated[DeliveryFilter, Query()]
) -> Response:
    """Return the deliveries: sent, retried and failed, with the result of each attempt."""
    await _find_readable(services, caller, webhook_id)

    async def fetch(before: int | None, limit: int) -> list[Delivery]:
        return await services.webhooks.list_deliveries(webhook_id, state=query.state, before=before, limit=limit)

    return await read_page("deliveries", fetch, lambda delivery: delivery, after=query.cursor, limit=query.limit)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", response_model=Delivery, summary="Repeat a delivery")
async def redeliver(webhook_id: UUID, delivery_id: DeliveryId, caller: CallerOf, services: ServicesOf) -> Delivery:
    """Start the attempts anew, under the same `Webhook-Id`."""
    await _find_readable(services, caller, webhook_id)
    delivery = await services.webhooks.redeliver(webhook_id, delivery_id)
    if delivery is None:
        raise Problem("invalid_state", "There is no such delivery, or an attempt is under way.")
    return delivery
