"""Delivers webhooks: signed, rate-limited per destination, retried for a day.

At least once: a process that dies after sending repeats the delivery, under the same `Webhook-Id`. Any number of
processes may do this concurrently.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import httpx
import psycopg

from geo_jobs_api.log import get_logger
from geo_jobs_api.periodic import Periodic
from geo_jobs_api.queue.rules import output_key
from geo_jobs_api.webhooks.http_post import AddressRefusedError, WebhookClient
from geo_jobs_api.webhooks.records import ClaimedDelivery, DeliveryState
from geo_jobs_api.webhooks.secrets import DecryptionError, SecretCipher, sign
from geo_jobs_api.webhooks.store import DeliveryLimits, WebhookStore

_log = get_logger(__name__)
# Upper bounds of the pause after the first, second, … attempt. After 25 hours in all, the delivery fails.
BACKOFF_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 36_000.0)
_LONGEST_RETRY_AFTER_SECONDS = 3600.0
# More concurrent requests to one destination would look like an attack.
_MAX_PER_DESTINATION = 4
_MAX_CONCURRENT = 100
_DESTINATIONS = 20
# Longer than an attempt can take.
_LEASE_SECONDS = 60.0
_MAX_SLEEP_SECONDS = 60.0
_CLAIM_PAUSE_SECONDS = 0.005

Links = Callable[[UUID, int, str, str], str | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt: the status of the response, or the error."""

    status: int | None
    error: str | None
    retry_after: float = 0.0
    is_final: bool = False

    @property
    def is_delivered(self) -> bool:
        """Return whether the receiver accepted the delivery."""
        return self.status is not None and 200 <= self.status < 300


class Deliverer:
    """Sends due deliveries, then sleeps until the next one.

    Args:
        store: of the deliveries.
        client: sends the requests.
        cipher: decrypts the secrets.
        links: returns a signed URL for an output of a job (by id, lease and name), or None.
        per_second: mean rate of deliveries to one destination.
        wake: set when a delivery may be due.
    """

    def __init__(  # noqa: PLR0913  # its parts are handed in
        self,
        store: WebhookStore,
        client: WebhookClient,
        cipher: SecretCipher,
        *,
        links: Links,
        per_second: float,
        wake: asyncio.Event,
    ) -> None:
        self._store = store
        self._client = client
        self._cipher = cipher
        self._links = links
        self._limits = DeliveryLimits(_DESTINATIONS, _LEASE_SECONDS, per_second)
        self._wake = wake
        self._busy: Counter[str] = Counter()

    async def run(self) -> None:
        """Work until cancelled. Deliveries in flight are abandoned, and repeated when their leases end."""
        async with asyncio.TaskGroup() as sending:
            await Periodic(lambda: self._claim_due(sending), "delivery_poll_failed", wake=self._wake).run()

    async def _claim_due(self, sending: asyncio.TaskGroup) -> float:
        """Start sending due deliveries. Return the seconds until the next ones are due."""
        # A slow destination blocks no other.
        busy = [destination for destination, number in self._busy.items() if number >= _MAX_PER_DESTINATION]
        if self._busy.total() >= _MAX_CONCURRENT:
            return _MAX_SLEEP_SECONDS
        due = await self._store.seconds_until_due(busy)
        if due is not None and due <= 0:
            for claimed in await self._store.claim_deliveries(self._limits, busy):
                self._busy[claimed.destination] += 1
                sending.create_task(self._deliver(claimed))
            # With a pause, since another process may be claiming the same.
            return _CLAIM_PAUSE_SECONDS
        # A query a millisecond early finds nothing.
        return _MAX_SLEEP_SECONDS if due is None else min(_MAX_SLEEP_SECONDS, due + _CLAIM_PAUSE_SECONDS)

    async def _deliver(self, claimed: ClaimedDelivery) -> None:
        try:
            began = time.monotonic()
            outcome = await self._send(claimed)
            await self._settle(claimed, outcome, time.monotonic() - began)
        except (psycopg.Error, OSError) as error:
            # It is repeated when its lease ends.
            _log.warning("delivery_not_noted", delivery_id=claimed.id, reason=type(error).__name__)
        finally:
            self._busy[claimed.destination] -= 1
            self._busy += Counter()
            self._wake.set()

    async def _send(self, claimed: ClaimedDelivery) -> Outcome:
        timestamp = int(time.time())
        try:
            body = json.dumps(self._body(claimed), separators=(",", ":")).encode()
            signature = sign(self._cipher.decrypt(claimed.secret), timestamp, body)
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "geo-jobs",
                "Webhook-Id": str(claimed.id),
                "Webhook-Event": claimed.event,
                "Webhook-Attempt": str(claimed.attempt),
                "Webhook-Timestamp": str(timestamp),
                "Webhook-Signature": f"v1={signature}",
            }
            response = await self._client.post(claimed.url, body, headers)
        except (DecryptionError, AddressRefusedError) as error:
            return Outcome(None, str(error))
        except TimeoutError:
            return Outcome(None, "There was no answer in time.")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Outcome(None, f"{type(error).__name__}: {error}"[:500])
        except Exception:  # noqa: BLE001  # whatever one webhook holds, it keeps no other back
            _log.exception("delivery_crashed", delivery_id=claimed.id)
            return Outcome(None, "It could not be sent. The log of the API has the error.")
        error_text = None if response.is_success else f"The receiver answered {response.status_code}."
        return Outcome(
            response.status_code,
            error_text,
            retry_after=_retry_after(response),
            # Gone: the receiver wants no further attempts.
            is_final=response.status_code == 410,
        )

    def _body(self, claimed: ClaimedDelivery) -> dict[str, object]:
        """Return the body with new links to the results."""
        job = dict(claimed.body.get("job") or {})
        lease_seq = job.pop("outputLeaseSeq", None)
        if lease_seq is None or claimed.job_id is None:
            return claimed.body | ({"job": job} if job else {})
        outputs = [
            output | {"url": self._links(claimed.job_id, lease_seq, output["sha256"], output["name"])}
            for output in job.get("outputs") or ()
        ]
        return claimed.body | {"job": job | {"outputs": outputs}}

    async def _settle(self, claimed: ClaimedDelivery, outcome: Outcome, seconds: float) -> None:
        record = {
            "at": datetime.now(UTC).isoformat(),
            "seconds": round(seconds, 3),
            "statusCode": outcome.status,
            "error": outcome.error,
        }
        state, delay = decide_delivery(outcome, claimed.attempt, random.SystemRandom())
        await self._store.settle_delivery(claimed, state, delay, record)
        _log.info(
            "webhook_delivery",
            delivery_id=claimed.id,
            webhook_id=str(claimed.webhook_id),
            state=state,
            attempt=claimed.attempt,
            status=outcome.status,
            error=outcome.error,
        )


def decide_delivery(outcome: Outcome, attempt: int, source: random.Random) -> tuple[DeliveryState, float]:
    """Return the state after an attempt, and the pause of a `pending` one. `source`: of the jitter."""
    if outcome.is_delivered:
        return DeliveryState.DELIVERED, 0.0
    if outcome.is_final or attempt > len(BACKOFF_SECONDS):
        return DeliveryState.FAILED, 0.0
    ceiling = BACKOFF_SECONDS[attempt - 1]
    return DeliveryState.PENDING, max(source.uniform(ceiling / 2, ceiling), outcome.retry_after)


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    seconds = float(text) if text.isascii() and text.isdecimal() else 0.0
    return min(seconds, _LONGEST_RETRY_AFTER_SECONDS)


def output_links(sign_get: Callable[[str], str] | None) -> Links:
    """Return the function that signs links to results. Without `sign_get` there are no links."""

    def link(job_id: UUID, lease_seq: int, sha256: str, name: str) -> str | None:
        return None if sign_get is None else sign_get(output_key(job_id, lease_seq, sha256, name))

    return link
