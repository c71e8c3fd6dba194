"""What the API needs of an object store, and the signatures of the one that it serves itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote, urlencode

from geo_jobs_api.errors import Problem


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that anyone who has it may make until it expires."""

    url: str
    method: str
    headers: dict[str, str]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SizeRule:
    """How large an uploaded object may be: exactly `size_bytes`, or up to it."""

    size_bytes: int
    exact: bool


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is really there under a key."""

    size_bytes: int
    sha256: str


class Storage(Protocol):
    """An object store. Keys are relative paths with `/`; base URLs have no slash at the end."""

    def sign_put(self, base_url: str, key: str, rule: SizeRule, seconds: float) -> SignedRequest:
        """Allow one object to be uploaded."""

    def sign_get(self, base_url: str, key: str, seconds: float) -> SignedRequest:
        """Allow one object to be downloaded."""

    async def put_small(self, objects: Mapping[str, bytes]) -> None:
        """Keep small objects by their keys, each whole, replacing what stood there.

        Raises:
            Problem: `storage_full`.
        """

    async def stat(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        """Size and digest of each object; None for one that is not there."""

    async def delete_prefix(self, prefix: str) -> None:
        """Remove all objects below a prefix; nothing happens if there are none."""

    async def remove_broken_uploads(self, older_than_seconds: float) -> int:
        """Remove what was uploaded in part and not touched for so long; how many there were."""

    async def list_jobs(self, after: str, limit: int, older_than_seconds: float) -> list[str]:
        """Ids of jobs that have objects and whose objects were not touched for so long, sorted, those after `after`."""

    async def check(self) -> None:
        """Raise OSError when the store cannot be written."""

    async def free_bytes(self) -> int | None:
        """Return the room for further objects, in bytes; None where it has no bound."""


@dataclass(frozen=True, slots=True)
class SignatureQuery:
    """The query of a signed URL, as it came. Exactly one of both sizes stands in a PUT, none in a GET."""

    expires: int
    signature: str
    size: int | None = None
    max_size: int | None = None

    @property
    def rule(self) -> SizeRule | None:
        """The size that the URL allows."""
        if self.size is not None:
            return SizeRule(self.size, exact=True)
        return None if self.max_size is None else SizeRule(self.max_size, exact=False)


class UrlSigner:
    """Signs and verifies requests to the API's own object store: HMAC-SHA256 over method, key, size and expiry.

    Args:
        secret: at least 32 bytes, the same in all API processes.
        clock: seconds since the epoch.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock

    def now(self) -> float:
        """Seconds since the epoch, by the clock that signatures expire by."""
        return self._clock()

    def _signature(self, method: str, key: str, rule: SizeRule | None, expires: int) -> str:
        size = "" if rule is None else f"{'size' if rule.exact else 'maxSize'}={rule.size_bytes}"
        message = "\n".join(("geo-jobs-storage-v1", method, key, size, str(expires)))
        digest = hmac.new(self._secret, message.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def sign(self, base_url: str, method: str, key: str, rule: SizeRule | None, seconds: float) -> SignedRequest:
        """A URL that allows one method on one key for some seconds."""
        expires = int(self._clock() + seconds)
        query: dict[str, str | int] = {"expires": expires}
        if rule is not None:
            query["size" if rule.exact else "maxSize"] = rule.size_bytes
        query["signature"] = self._signature(method, key, rule, expires)
        url = f"{base_url}/storage/{quote(key)}?{urlencode(query)}"
        return SignedRequest(url, method, {}, datetime.fromtimestamp(expires, UTC))

    def verify(self, method: str, key: str, query: SignatureQuery) -> None:
        """Raise a Problem unless this very request was signed and has not expired."""
        expected = self._signature(method, key, query.rule, query.expires)
        # As bytes: compare_digest refuses text that is not ASCII, and the text is the caller's.
        if not hmac.compare_digest(expected.encode(), query.signature.encode()):
            raise Problem("signature_invalid", "The signature does not fit this method, address and size.")
        if query.expires <= self._clock():
            raise Problem("signature_expired", "The signed URL has expired; ask for a new one.")
