"""Who is asking: people by JSON Web Token, workers by a token of which only the hash is kept."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jwt

from geo_jobs_api.config import Settings
from geo_jobs_api.errors import ConfigurationError, Problem
from geo_jobs_api.limits import RateLimit
from geo_jobs_api.records import WorkerToken

ADMIN_SCOPE = "geo-jobs:admin"
_SECRET_ALGORITHM = "HS256"  # noqa: S105  # a name, not a secret
# Signatures by a private key. HS256 must never stand here: a public key would then do as its secret.
_KEY_SET_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_MAX_SUBJECT_CHARACTERS = 255
# A revoked token is refused at the latest after this many seconds.
_TOKEN_CACHE_SECONDS = 5.0
_TOKEN_CACHE_ENTRIES = 1000
# Tokens that were refused, for each address: guesses cost the database nothing once there were so many.
_REFUSALS_PER_SECOND = 1.0
_REFUSALS_AT_ONCE = 30


@dataclass(frozen=True, slots=True)
class Caller:
    """A person, or a program that acts for one."""

    subject: str
    is_admin: bool

    @property
    def owner_filter(self) -> str | None:
        """Whose jobs may be seen; None for all."""
        return None if self.is_admin else self.subject


def _refuse(detail: str, scheme: str) -> Problem:
    return Problem("token-invalid", detail, headers={"WWW-Authenticate": scheme})


def _credentials(authorization: str | None, scheme: str) -> str:
    given, _, token = (authorization or "").partition(" ")
    if given.lower() != scheme.lower() or not token.strip():
        raise _refuse(f"Send the header 'Authorization: {scheme} <token>'.", scheme)
    return token.strip()


class TokenVerifier:
    """Checks the tokens of people, by the settings' secret or key set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = None if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
        self._key_set = None if settings.jwks_url is None else jwt.PyJWKClient(settings.jwks_url, timeout=10)
        if self._secret is None and self._key_set is None:
            raise ConfigurationError("Set JWT_SECRET or JWKS_URL: without one nobody can be let in.")

    async def verify(self, authorization: str | None) -> Caller:
        """The caller behind an Authorization header; Problem `token-invalid` if there is none."""
        token = _credentials(authorization, "Bearer")
        try:
            claims = await self._decode(token)
        except jwt.PyJWKClientConnectionError as error:
            raise Problem(
                "unavailable", "The keys that tokens are checked with cannot be had.", headers={"Retry-After": "5"}
            ) from error
        except jwt.ExpiredSignatureError as error:
            raise _refuse("The token has expired.", "Bearer") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise _refuse("The token is not valid here.", "Bearer") from error
        subject = claims["sub"]
        if not isinstance(subject, str) or not _can_be_kept(subject):
            raise _refuse("The token's subject cannot be used.", "Bearer")
        scope = claims.get("scope", "")
        return Caller(subject, is_admin=isinstance(scope, str) and ADMIN_SCOPE in scope.split())

    async def _decode(self, token: str) -> dict[str, Any]:
        key: Any = self._secret
        algorithms = [_SECRET_ALGORITHM]
        if self._key_set is not None:
            # It may fetch the keys, and it blocks.
            key = (await asyncio.to_thread(self._key_set.get_signing_key_from_jwt, token)).key
            algorithms = _KEY_SET_ALGORITHMS
        audience, issuer = self._settings.jwt_audience, self._settings.jwt_issuer
        required = ["exp", "sub", *(["aud"] if audience else []), *(["iss"] if issuer else [])]
        return jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=audience,
            issuer=issuer,
            leeway=self._settings.jwt_leeway_seconds,
            options={"require": required, "verify_aud": audience is not None},
        )


def _can_be_kept(subject: str) -> bool:
    # JSON can say halves of letters, which UTF-8 cannot hold, and NUL, which PostgreSQL cannot.
    is_text = "\0" not in subject and not any("\ud800" <= char <= "\udfff" for char in subject)
    return is_text and 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS


def make_jwt(settings: Settings, *, subject: str, admin: bool, ttl_seconds: float, now: float) -> str:
    """A token that this API accepts, for trying things and for small installations.

    Raises:
        ConfigurationError: tokens come from somewhere else (JWKS_URL).
    """
    if settings.jwt_secret is None:
        raise ConfigurationError("JWKS_URL is set: tokens are made by whoever holds the private key.")
    claims: dict[str, Any] = {"sub": subject, "iat": int(now), "exp": int(now + ttl_seconds)}
    if admin:
        claims["scope"] = ADMIN_SCOPE
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    return jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm=_SECRET_ALGORITHM)


def new_worker_token() -> str:
    """A fresh secret for a worker: 256 bits."""
    return f"gjw_{secrets.token_urlsafe(32)}"


def worker_token_sha256(token: str) -> bytes:
    """What is kept of a token. A plain hash will do: the secret is random and long."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


class TokenSource(Protocol):
    """Where known worker tokens are looked up."""

    async def find_worker_token(self, token_sha256: bytes) -> WorkerToken | None:
        """A token that is known and not revoked."""


class WorkerVerifier:
    """Checks the tokens of workers; remembers good ones for a few seconds.

    Args:
        source: where tokens are looked up.
        clock: monotonic seconds.
    """

    def __init__(self, source: TokenSource, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._known: dict[bytes, tuple[float, WorkerToken]] = {}
        self._refusals = RateLimit(_REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE, clock)

    async def verify(self, authorization: str | None, address: str = "") -> WorkerToken:
        """The token's record.

        Args:
            authorization: the header.
            address: where the request came from; too many wrong tokens from there are not looked up any more.

        Raises:
            Problem: `token-invalid` when it is unknown or revoked, `rate-limited`.
        """
        digest = worker_token_sha256(_credentials(authorization, "Worker"))
        until, token = self._known.get(digest, (0.0, None))
        if token is not None and self._clock() < until:
            return token
        self._refusals.check(address)
        found = await self._source.find_worker_token(digest)
        if found is None:
            self._refusals.take(address)
            self._known.pop(digest, None)
            raise _refuse("The worker token is unknown or was revoked.", "Worker")
        if len(self._known) >= _TOKEN_CACHE_ENTRIES:
            self._known.clear()
        self._known[digest] = (self._clock() + _TOKEN_CACHE_SECONDS, found)
        return found
