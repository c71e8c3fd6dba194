"""Authentication of people and workers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from geo_jobs_api.errors import Problem
from geo_jobs_api.http.auth import WorkerVerifier, worker_token_sha256
from geo_jobs_api.queue.records import WorkerToken
from tests.support.api import JWT_SECRET, RunningApi, make_jwt, make_settings, worker_header
from tests.support.clients import code_of, rows
from tests.support.markdown import blocks
from tests.support.processes import ROOT, clean_environment


def ask(api: RunningApi, authorization: str | None) -> httpx.Response:
    return api.client().get("/api/geo-jobs", headers={"Authorization": authorization} if authorization else {})


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unsigned(claims: dict[str, Any]) -> str:
    header = {"alg": "none", "typ": "JWT"}
    return f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}."


def hmac_signed(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """A token that an attacker signs with a public key. PyJWT itself refuses to create one."""
    signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
    return f"{signed}.{encoded(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def pem_of(private: rsa.RSAPrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


FUTURE = int(time.time()) + 3600


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="missing"),
        pytest.param("Bearer", id="no token"),
        pytest.param("Bearer nonsense", id="not a JWT"),
        pytest.param("Basic YTpi", id="another scheme"),
        pytest.param(f"Worker {make_jwt()}", id="as a worker"),
        pytest.param(f"Bearer {make_jwt(ttl_seconds=-60)}", id="expired"),
        pytest.param(f"Bearer {make_jwt()[:-4]}AAAA", id="forged signature"),
        pytest.param(f"Bearer {jwt.encode({'sub': 'ada'}, JWT_SECRET, algorithm='HS256')}", id="no exp"),
        pytest.param(f"Bearer {jwt.encode({'exp': FUTURE}, JWT_SECRET, algorithm='HS256')}", id="no sub"),
        pytest.param(f"Bearer {make_jwt('')}", id="empty sub"),
        pytest.param(f"Bearer {make_jwt('x' * 256)}", id="sub too long"),
        pytest.param(
            f"Bearer {jwt.encode({'sub': 'ada', 'exp': FUTURE}, JWT_SECRET * 2, algorithm='HS512')}",
            id="another algorithm",
        ),
        pytest.param(
            f"Bearer {jwt.encode({'sub': 'ada', 'exp': FUTURE}, JWT_SECRET[::-1], algorithm='HS256')}",
            id="another secret",
        ),
        pytest.param(f"Bearer {unsigned({'sub': 'ada', 'exp': FUTURE})}", id="unsigned"),
    ],
)
def test_a_missing_expired_forged_or_wrong_kind_of_token_is_rejected(
    api: RunningApi, authorization: str | None
) -> None:
    """401 with the scheme to use, and no reason why a signature failed."""
    answer = ask(api, authorization)
    assert code_of(answer) == (401, "token_invalid")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_few_seconds_of_clock_skew_are_forgiven(api: RunningApi) -> None:
    """Ten seconds of clock difference are accepted."""
    assert ask(api, f"Bearer {make_jwt(ttl_seconds=-3)}").status_code == 200


def test_a_token_made_as_documented_is_accepted(api: RunningApi) -> None:
    """The block of docs/OPERATIONS.md, run verbatim with the API's secret: an administrator called ada."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    (made,) = [block.text for block in blocks(text, "python") if "jwt.encode" in block.text]
    ran = subprocess.run(
        [sys.executable, "-c", made],
        env=clean_environment(JWT_SECRET=JWT_SECRET),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    answer = api.client().get("/api/admin/workers", headers={"Authorization": f"Bearer {ran.stdout.strip()}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({}, 200),
        ({"nbf": 0, "iat": 0, "aud": "another", "iss": "another"}, 200),
        ({"sub": "x" * 255}, 200),
        ({"exp": int(time.time()) - 500}, 401),
        ({"nbf": FUTURE}, 401),
        ({"iat": FUTURE}, 401),
        ({"sub": 7}, 401),
        ({"sub": None}, 401),
    ],
)
def test_the_claims_of_a_token_count_as_documented(api: RunningApi, claims: dict[str, Any], status: int) -> None:
    """The rows of the table in docs/OPERATIONS.md that need no setting."""
    told = {"sub": "ada", "exp": FUTURE} | claims
    if isinstance(told["sub"], str):
        token = jwt.encode(told, JWT_SECRET, algorithm="HS256")
    else:  # PyJWT itself creates none.
        token = hmac_signed({"alg": "HS256", "typ": "JWT"}, told, JWT_SECRET.encode())
    assert ask(api, f"Bearer {token}").status_code == status


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("geo-jobs:admin", 200),
        ("openid geo-jobs:admin email", 200),
        ("openid", 403),
        (["geo-jobs:admin"], 403),
        (None, 403),
    ],
)
def test_the_scope_is_a_space_separated_list(api: RunningApi, scope: object, status: int) -> None:
    token = jwt.encode({"sub": "ada", "exp": FUTURE, "scope": scope}, JWT_SECRET, algorithm="HS256")
    answer = api.client().get("/api/admin/workers", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status


def test_audience_and_issuer_count_when_they_are_configured(api_server: Callable[..., RunningApi]) -> None:
    """Tokens for another service, of another issuer, or without issuer are rejected."""
    api = api_server(jwt_audience="maps", jwt_issuer="https://id.example")
    good: dict[str, Any] = {"aud": "maps", "iss": "https://id.example"}
    assert ask(api, f"Bearer {make_jwt(**good)}").status_code == 200
    claims: dict[str, Any]
    for claims in ({}, good | {"aud": "mail"}, good | {"iss": "https://evil.example"}, {"aud": "maps"}):
        assert code_of(ask(api, f"Bearer {make_jwt(**claims)}")) == (401, "token_invalid")


def test_a_key_set_accepts_its_tokens_and_its_public_key_is_no_secret_for_hs256(
    api_server: Callable[..., RunningApi],
) -> None:
    """RS256 with a fetched key works. The same key as HMAC secret is rejected, and so is a token without key id."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True) | {"kid": "k1", "use": "sig", "alg": "RS256"}
    answers: list[str] = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": [public]}).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
            pass

    with HTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = api_server(jwt_secret=None, jwks_url=f"http://127.0.0.1:{server.server_port}/keys")
        claims = {"sub": "ada", "exp": FUTURE}
        assert ask(api, f"Bearer {jwt.encode(claims, private, 'RS256', {'kid': 'k1'})}").status_code == 200
        forged = hmac_signed({"alg": "HS256", "typ": "JWT", "kid": "k1"}, claims, pem_of(private))
        assert code_of(ask(api, f"Bearer {forged}")) == (401, "token_invalid")
        assert code_of(ask(api, f"Bearer {make_jwt()}")) == (401, "token_invalid")
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        assert code_of(ask(api, f"Bearer {jwt.encode(claims, stranger, 'RS256', {'kid': 'k1'})}")) == (
            401,
            "token_invalid",
        )
        server.shutdown()
    assert answers


def test_keys_that_cannot_be_fetched_are_an_outage(api_server: Callable[..., RunningApi]) -> None:
    """The token may be valid, so the response is 503."""
    api = api_server(jwt_secret=None, jwks_url="http://127.0.0.1:9/keys")
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    token = jwt.encode({"sub": "ada", "exp": FUTURE}, private, "RS256", {"kid": "k1"})
    assert code_of(ask(api, f"Bearer {token}")) == (503, "unavailable")


@pytest.mark.parametrize(
    "authorization",
    ["", "Worker", "Worker wrong-token-of-a-worker", pytest.param(f"Bearer {make_jwt()}", id="a person")],
)
def test_a_worker_without_a_valid_token_is_rejected_everywhere(api: RunningApi, authorization: str) -> None:
    """All five endpoints. A person's token is not a worker's."""
    http = api.client("/api/internal/geo-jobs", headers={"Authorization": authorization, "Lease-Token": "1.x"})
    body = {"claimId": str(uuid4()), "workerId": "w", "workerName": "w", "taskTypes": ["geotiff_to_png"]}
    assert code_of(http.post("/claim", json=body)) == (401, "token_invalid")
    for verb, content in (("heartbeat", {}), ("progress", {"percent": 1})):
        assert code_of(http.patch(f"/{uuid4()}/{verb}", json=content)) == (401, "token_invalid")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_a_get_of_the_claim_separates_good_tokens_from_bad_ones(api: RunningApi, method: str) -> None:
    """405 with `Allow: POST` for a good token, else 401. No job is claimed."""
    http = api.client("/api/internal/geo-jobs")
    good = http.request(method, "/claim", headers=worker_header())
    assert (good.status_code, good.headers["Allow"]) == (405, "POST")
    if method != "HEAD":
        assert good.json()["code"] == "method_not_allowed"
        assert good.json()["detail"].startswith("The worker token is valid.")
    for bad in ({}, {"Authorization": "Worker wrong-token-of-a-worker"}, {"Authorization": f"Bearer {make_jwt()}"}):
        refused = http.request(method, "/claim", headers=bad)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Worker")


def test_an_unknown_job_and_a_malformed_lease_token_have_different_codes(api: RunningApi) -> None:
    """404 for an unknown job, 409 for a token of another format, 422 without a token."""
    http = api.client("/api/internal/geo-jobs", headers=worker_header())
    path = f"/{uuid4()}/heartbeat"
    assert code_of(http.patch(path, headers={"Lease-Token": "1.abc"})) == (404, "job_not_found")
    assert code_of(http.patch(path, headers={"Lease-Token": "nonsense"})) == (409, "lease_lost")
    assert code_of(http.patch(path)) == (422, "validation")


def test_tokens_are_kept_as_hashes_only(api: RunningApi) -> None:
    """A reader of the table cannot act as a worker."""
    (row,) = rows(api.settings.conninfo or "", "SELECT * FROM worker_tokens")
    assert bytes(row["token_sha256"]) == worker_token_sha256("test-worker-token")
    assert "test-worker-token" not in str(row)


class Tokens:
    """A source of worker tokens that counts its queries, with a clock."""

    def __init__(self, *secrets: str) -> None:
        self.now = 0.0
        self.queries = 0
        self.valid = {worker_token_sha256(secret) for secret in secrets}

    async def list_valid_tokens(self) -> dict[bytes, WorkerToken]:
        """Return the tokens, as the store does."""
        self.queries += 1
        return {
            digest: WorkerToken(id=uuid4(), name="w", created_at=datetime.now(UTC), revoked_at=None)
            for digest in self.valid
        }

    async def sleep(self, seconds: float) -> None:
        """Advance the clock at once."""
        self.now += seconds

    def verifier(self) -> WorkerVerifier:
        """Return a verifier with this source."""
        return WorkerVerifier(self, lambda: self.now, self.sleep)


async def test_a_revoked_token_is_rejected_after_a_few_seconds_and_the_new_one_works_meanwhile() -> None:
    """Rotation: both are valid at the same time, and a revoked token is rejected within five seconds."""
    tokens = Tokens("old", "new")
    verifier = tokens.verifier()
    await verifier.verify("Worker old")
    await verifier.verify("Worker new")
    tokens.valid.remove(worker_token_sha256("old"))
    tokens.now = 5.0
    await verifier.verify("Worker new")
    with pytest.raises(Problem, match="token_invalid"):
        await verifier.verify("Worker old")


async def test_a_new_token_is_valid_at_its_first_request() -> None:
    """A token created after the last reload triggers another one, within a second."""
    tokens = Tokens("old")
    verifier = tokens.verifier()
    await verifier.verify("Worker old")
    tokens.valid.add(worker_token_sha256("new"))
    await verifier.verify("Worker new")
    assert tokens.now <= 1.0


async def test_guesses_share_one_query_a_second_and_a_valid_token_needs_none() -> None:
    """A hundred concurrent guesses wait for the same reload. A valid token is accepted without any."""
    tokens = Tokens("good")
    verifier = tokens.verifier()
    await verifier.verify("Worker good")
    for _ in range(3):
        guesses = [verifier.verify(f"Worker guess {number}") for number in range(100)]
        refusals = await asyncio.gather(*guesses, return_exceptions=True)
        assert all(isinstance(refusal, Problem) for refusal in refusals)
    assert tokens.queries <= 1 + tokens.now
    before = tokens.queries
    await verifier.verify("Worker good")
    assert tokens.queries == before


def test_secrets_do_not_show_when_settings_are_printed(tmp_path: Any) -> None:
    """Logs and tracebacks may contain a representation of the settings."""
    settings = make_settings("postgresql://u:hunter2@h/d", tmp_path)
    assert not any(secret in repr(settings) for secret in ("hunter2", JWT_SECRET, "test-worker-token"))
