"""The interface of object stores, and the signatures of the API's own store."""

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
    """A request that any client may send until it expires."""

    url: str
    method: str
    headers: dict[str, str]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SizeRule:
    """The size of an uploaded object: exactly `size_bytes`, or at most."""

    size_bytes: int
    exact: bool


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Size and digest of a stored object."""

    size_bytes: int
    sha256: str


class Storage(Protocol):
    """An object store. Keys are relative paths with `/`. Base URLs do not end with a slash."""

    def sign_put(self, base_url: str, key: str, rule: SizeRule, seconds: float) -> SignedRequest:
        """Return the signed request for one upload."""

    def sign_get(self, base_url: str, key: str, seconds: float) -> SignedRequest:
        """Return the signed request for one download."""

    async def put_small(self, objects: Mapping[str, bytes]) -> None:
        """Store small objects of one job's lease by key, each atomically, replacing older ones.

        Raises:
            Problem: `storage_full`.
        """

    async def stat(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        """Return size and digest of each object. None: no such object."""

    async def delete_prefix(self, prefix: str) -> None:
        """Remove all objects below a prefix, if any exist."""

    async def remove_broken_uploads(self) -> int:
        """Remove abandoned partial uploads. Return their number."""

    async def list_jobs(self, after: str, limit: int, older_than_seconds: float) -> list[str]:
        """Return sorted ids after `after` of jobs with objects that have not changed for this long."""

    async def check(self) -> None:
        """Raise OSError when the store cannot be written."""

    async def free_bytes(self) -> int | None:
        """Return the free bytes, or None if unlimited."""


@dataclass(frozen=True, slots=True)
class SignatureQuery:
    """The query of a signed URL as received. A PUT has exactly one of the sizes, a GET none."""

    expires: int
    signature: str
    size: int | None = None
    max_size: int | None = None

    @property
    def rule(self) -> SizeRule | None:
        """Return the size that the URL allows."""
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
        """Return seconds since the epoch, by the clock of the signatures."""
        return self._clock()

    def _signature(self, method: str, key: str, rule: SizeRule | None, expires: int) -> str:
        size = "" if rule is None else f"{'size' if rule.exact else 'maxSize'}={rule.size_bytes}"
        message = "\n".join(("geo-jobs-storage-v1", method, key, size, str(expires)))
        digest = hmac.new(self._secret, message.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def sign(self, base_url: str, method: str, key: str, rule: SizeRule | None, seconds: float) -> SignedRequest:
        """Return a URL that allows one method on one key for some seconds."""
        expires = int(self._clock() + seconds)
        query: dict[str, str | int] = {"expires": expires}
        if rule is not None:
            query["size" if rule.exact else "maxSize"] = rule.size_bytes
        query["signature"] = self._signature(method, key, rule, expires)
        url = f"{base_url}/storage/{quote(key)}?{urlencode(query)}"
        return SignedRequest(url, method, {}, datetime.fromtimestamp(expires, UTC))

    def verify(self, method: str, key: str, query: SignatureQuery) -> None:
        """Raise a Problem unless this request was signed and has not expired."""
        expected = self._signature(method, key, query.rule, query.expires)
        # As bytes, since compare_digest rejects non-ASCII text, and the caller chooses the text.
        if not hmac.compare_digest(expected.encode(), query.signature.encode()):
            raise Problem(
                "signature_invalid", "The signature does not match this method, address and size. Request a new URL."
            )
        if query.expires <= self._clock():
            raise Problem("signature_expired", "The signed URL has expired. Request a new one.")
