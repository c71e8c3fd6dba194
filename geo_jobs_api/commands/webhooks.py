"""webhooks: notifications of ended jobs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from uuid import UUID

from uuid_utils.compat import uuid7

from geo_jobs_api.app import webhook_builder
from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_object, print_result, print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.errors import Problem
from geo_jobs_api.webhooks.content import new_secret
from geo_jobs_api.webhooks.records import DeliveryState
from geo_jobs_api.webhooks.schemas import CreatedWebhook, Delivery, PutWebhook
from geo_jobs_api.webhooks.store import WebhookStore


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    webhooks = commands.group("webhooks", "Webhooks, which notify other programs of ended jobs.")
    command = webhooks.add_action("list", "List the webhooks.", _list)
    command.add_argument("--owner", metavar="NAME", help="only this caller's")
    command = webhooks.add_action("create", "Register a webhook and print its secret, this once only.", _create)
    command.add_argument("url", metavar="URL")
    command.add_argument("--owner", required=True, metavar="NAME", help="owner of the webhook")
    command.add_argument("--all-owners", action="store_true", help="report jobs of all owners")
    command.add_argument("--event", action="append", metavar="EVENT", help="such as job.failed, may be repeated")
    command = webhooks.add_action("deliveries", "Show deliveries with the outcome of each attempt.", _deliveries)
    command.add_argument("id", type=UUID, metavar="ID")
    command.add_argument("--state", type=DeliveryState, choices=list(DeliveryState))
    command.add_argument("--limit", type=int, default=50, metavar="N", help="limit (default: 50)")
    command = webhooks.add_action("redeliver", "Repeat ended deliveries.", _redeliver)
    command.add_argument("id", type=UUID, metavar="ID", help="of the webhook")
    command.add_argument("delivery", type=int, nargs="*", metavar="DELIVERY", help="its id (default: all failed ones)")
    command = webhooks.add_action("delete", "Delete a webhook with its deliveries.", _delete)
    command.add_argument("id", type=UUID, metavar="ID")


async def _list(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    found = await WebhookStore(pool).list_webhooks(owner=arguments.owner, limit=1000)
    columns = {
        "ID": lambda view: view.id,
        "OWNER": lambda view: view.owner,
        "URL": lambda view: view.url,
        "EVENTS": lambda view: " ".join(view.events),
        "TASK TYPES": lambda view: " ".join(view.task_types or ()) or "all",
        "PAUSED": lambda view: view.paused,
    }
    print_table(found, columns, as_json=arguments.json)
    return 0


async def _create(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    given = {"url": arguments.url, "all_owners": arguments.all_owners}
    body = PutWebhook.from_fields(given | ({"events": arguments.event} if arguments.event else {}))
    secret = new_secret()
    content = webhook_builder(settings).content(body, is_admin=True, secret=secret)
    webhook = await WebhookStore(pool).create_webhook(uuid7(), arguments.owner, content)
    print_object(CreatedWebhook(**dict(webhook), secret=secret), as_json=arguments.json)
    return 0


async def _deliveries(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    found = await WebhookStore(pool).list_deliveries(
        arguments.id, state=arguments.state, before=None, limit=arguments.limit
    )
    columns = {
        "ID": lambda view: view.id,
        "EVENT": lambda view: view.event,
        "OF": lambda view: view.job_id or view.pipeline_id,
        "STATE": lambda view: view.state,
        "TRIES": lambda view: len(view.attempts),
        "NEXT TRY": lambda view: view.next_attempt_at,
        "LAST ANSWER": _last_answer,
    }
    print_table(found, columns, as_json=arguments.json)
    return 0


def _last_answer(view: Delivery) -> object:
    last = view.attempts[-1] if view.attempts else {}
    return last.get("error") or last.get("statusCode")


async def _redeliver(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    store = WebhookStore(pool)
    delivery_ids: Sequence[int] = arguments.delivery
    if not delivery_ids:
        failed = await store.list_deliveries(arguments.id, state=DeliveryState.FAILED, before=None, limit=10_000)
        delivery_ids = [delivery.id for delivery in failed]
    done = [number for number in delivery_ids if await store.redeliver(arguments.id, number) is not None]
    print_result(f"{len(done)} deliveries are tried again.", {"deliveries": len(done)}, as_json=arguments.json)
    return 0 if len(done) == len(delivery_ids) else 1


async def _delete(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    if not await WebhookStore(pool).delete_webhook(arguments.id):
        raise Problem("webhook_not_found", f"There is no webhook {arguments.id}.")
    print_result("Deleted.", {"deleted": str(arguments.id)}, as_json=arguments.json)
    return 0
