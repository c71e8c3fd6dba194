"""Authentication: people by JSON Web Token, workers by a token that is stored as a hash."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import jwt

from geo_jobs_api.config import Settings
from geo_jobs_api.errors import ConfigurationError, Problem
from geo_jobs_api.queue.records import Caller, WorkerToken

ADMIN_SCOPE = "geo-jobs:admin"
_SECRET_ALGORITHM = "HS256"  # noqa: S105  # a name, not a secret
# Asymmetric algorithms only. With HS256 in the list, a public key would be accepted as its secret.
_KEY_SET_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_MAX_SUBJECT_CHARACTERS = 255
# Upper bound for the time that a revoked token stays valid.
_TOKEN_RELOAD_SECONDS = 5.0
# Unknown tokens trigger a reload. This pause bounds the queries that guesses can cause.
_TOKEN_RELOAD_PAUSE_SECONDS = 1.0


def _token_invalid(detail: str, scheme: str) -> Problem:
    return Problem("token_invalid", detail, headers={"WWW-Authenticate": scheme})


def _credentials(authorization: str | None, scheme: str) -> str:
    given, _, token = (authorization or "").partition(" ")
    if given.lower() != scheme.lower() or not token.strip():
        raise _token_invalid(f"Send the header 'Authorization: {scheme} <token>'.", scheme)
    return token.strip()


class TokenVerifier:
    """Verifies people's tokens with the secret or the key set of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = None if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
        self._key_set = None if settings.jwks_url is None else jwt.PyJWKClient(settings.jwks_url, timeout=10)
        if self._secret is None and self._key_set is None:
            raise ConfigurationError("No secret verifies tokens. Set JWT_SECRET or JWKS_URL.")

    async def verify(self, authorization: str | None) -> Caller:
        """Return the caller of an Authorization header, or raise Problem `token_invalid`."""
        token = _credentials(authorization, "Bearer")
        try:
            claims = await self._decode(token)
        except jwt.PyJWKClientConnectionError as error:
            raise Problem(
                "unavailable", "The keys that tokens are checked with cannot be had.", headers={"Retry-After": "5"}
            ) from error
        except jwt.ExpiredSignatureError as error:
            raise _token_invalid("The token has expired.", "Bearer") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise _token_invalid("The token is not valid here.", "Bearer") from error
        subject = claims["sub"]
        if not isinstance(subject, str) or not _can_be_kept(subject):
            raise _token_invalid("The token's subject cannot be used.", "Bearer")
        scope = claims.get("scope", "")
        return Caller(subject, is_admin=isinstance(scope, str) and ADMIN_SCOPE in scope.split())

    async def _decode(self, token: str) -> dict[str, Any]:
        key: Any = self._secret
        algorithms = [_SECRET_ALGORITHM]
        if self._key_set is not None:
            # This may fetch the keys, and blocks.
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
    # JSON allows lone surrogates, which UTF-8 rejects, and NUL, which PostgreSQL rejects.
    is_text = "\0" not in subject and not any("\ud800" <= char <= "\udfff" for char in subject)
    return is_text and 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS


def make_jwt(settings: Settings, *, subject: str, admin: bool, ttl_seconds: float, now: float) -> str:
    """Return a token that this API accepts, for tests and small installations.

    Raises:
        ConfigurationError: an identity provider issues the tokens (JWKS_URL).
    """
    if settings.jwt_secret is None:
        raise ConfigurationError("JWKS_URL is set. Get tokens from the identity provider.")
    claims: dict[str, Any] = {"sub": subject, "iat": int(now), "exp": int(now + ttl_seconds)}
    if admin:
        claims["scope"] = ADMIN_SCOPE
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    return jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm=_SECRET_ALGORITHM)


def new_worker_token() -> str:
    """Return a new worker token of 256 random bits."""
    return f"gjw_{secrets.token_urlsafe(32)}"


def worker_token_sha256(token: str) -> bytes:
    """Return the stored form of a token. A plain hash is enough for a long random secret."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


class TokenSource(Protocol):
    """Source of the valid worker tokens."""

    async def list_valid_tokens(self) -> dict[bytes, WorkerToken]:
        """Return all tokens that are not revoked, by SHA-256."""


class WorkerVerifier:
    """Verifies worker tokens by an in-memory copy of all valid hashes.

    A valid token needs no query and passes no rate limit, so guesses from the same address cannot delay it. All unknown
    tokens of this process wait for one shared reload, at most one query a second.

    Args:
        source: source of the hashes.
        clock: monotonic seconds.
        sleep: pause until the next reload.
    """

    def __init__(
        self,
        source: TokenSource,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._clock = clock
        self._sleep = sleep
        self._valid: dict[bytes, WorkerToken] = {}
        self._loaded_at = -math.inf
        self._loading = asyncio.Lock()

    async def verify(self, authorization: str | None) -> WorkerToken:
        """Return the token of an Authorization header, or raise Problem `token_invalid`."""
        digest = worker_token_sha256(_credentials(authorization, "Worker"))
        asked_at = self._clock()
        if asked_at - self._loaded_at >= _TOKEN_RELOAD_SECONDS:
            await self._load(asked_at - _TOKEN_RELOAD_SECONDS)
        if digest not in self._valid:
            await self._load(asked_at)
        found = self._valid.get(digest)
        if found is None:
            raise _token_invalid("The worker token is unknown or was revoked.", "Worker")
        return found

    async def _load(self, since: float) -> None:
        """Reload unless a reload began after `since`. Reloads start at least a second apart."""
        async with self._loading:
            if self._loaded_at > since:
                return
            await self._sleep(max(0.0, self._loaded_at + _TOKEN_RELOAD_PAUSE_SECONDS - self._clock()))
            began = self._clock()
            self._valid = await self._source.list_valid_tokens()
            self._loaded_at = began
