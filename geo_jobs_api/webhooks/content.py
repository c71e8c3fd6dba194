"""From a requested webhook to its stored content."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from geo_jobs_api.errors import Problem, validation_problem
from geo_jobs_api.hosts import HostList
from geo_jobs_api.webhooks.http_post import check_target
from geo_jobs_api.webhooks.schemas import PutWebhook
from geo_jobs_api.webhooks.secrets import SecretCipher
from geo_jobs_api.webhooks.store import WebhookContent


@dataclass(frozen=True, slots=True)
class WebhookBuilder:
    """Checks webhooks and encrypts their secrets.

    Attributes:
        private_hosts: allowed hosts in private networks.
        cipher: encrypts the secrets.
    """

    private_hosts: HostList
    cipher: SecretCipher

    def content(self, body: PutWebhook, *, is_admin: bool, secret: str | None = None) -> WebhookContent:
        """Return the stored content. `secret` is the default for a request without one.

        Raises:
            Problem: `validation`, `not_allowed`.
        """
        try:
            destination = check_target(body.url, self.private_hosts)
        except ValueError as error:
            raise validation_problem("/url", str(error), f"The address {error}.") from error
        if body.all_owners and not is_admin:
            raise Problem("not_allowed", "A webhook for all owners requires an administrator.")
        given = secret if body.secret is None else body.secret.get_secret_value()
        return WebhookContent(
            url=body.url,
            destination=destination,
            secret=None if given is None else self.cipher.encrypt(given),
            events=list(dict.fromkeys(body.events)),
            task_types=body.task_types,
            all_owners=body.all_owners,
            paused=body.paused,
        )


def new_secret() -> str:
    """Return a random secret."""
    return f"whsec_{secrets.token_urlsafe(32)}"
