"""A server with a wrong certificate receives no byte. Real TLS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from geo_jobs_api.hosts import parse_hosts
from geo_jobs_api.webhooks.http_post import WebhookClient
from geoprocessing_worker.cli import health
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError
from geoprocessing_worker.worker import api_client, source_client, storage_client
from tests.support.certificates import DAY, Authority, secure_server

Maker = Callable[..., httpx.AsyncClient]
# Faults of the certificate: unknown authority, another address, expired.
WRONG: list[tuple[str, bool, str, timedelta]] = [
    ("unknown authority", False, "127.0.0.1", DAY),
    ("another address", True, "127.0.0.2", DAY),
    ("run out", True, "127.0.0.1", -DAY),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def settings(bundle: Path | None) -> Settings:
    return Settings(ca_bundle=bundle, storage_hosts="127.0.0.1", source_hosts="127.0.0.1")


@pytest.mark.parametrize("make", [api_client, storage_client, source_client])
@pytest.mark.parametrize(("wrong", "is_known", "address", "until"), WRONG, ids=[one[0] for one in WRONG])
async def test_a_wrong_certificate_ends_the_connection(
    make: Maker, wrong: str, is_known: bool, address: str, until: timedelta, authority: Authority
) -> None:
    """Before any request, by each of the worker's clients."""
    named = settings(authority.bundle if is_known else None)
    with secure_server(authority.certify(address=address, until=until)) as server:
        async with make(named, named.trust()) as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get(f"{server.url}/map.tif")
    assert server.asked == []


async def test_only_the_configured_authority_is_trusted(authority: Authority) -> None:
    named = settings(authority.bundle)
    with secure_server(authority.certify()) as server:
        for make in (api_client, storage_client, source_client):
            async with make(named, named.trust()) as http:
                assert (await http.get(f"{server.url}/map.tif")).content == b"x" * 10
        for bundle in (authority.bundle, None):
            checked = Settings(ca_bundle=bundle, api_base_url=server.url, worker_auth_token="t")
            finding = health._finding("Api", functools.partial(health._api, checked, lambda _: None))
            assert finding.healthy is (bundle is not None), finding.message
            assert finding.healthy or "CERTIFICATE_VERIFY_FAILED" in finding.message


async def test_a_webhooks_receiver_needs_a_publicly_trusted_certificate(authority: Authority) -> None:
    with secure_server(authority.certify()) as server:
        async with WebhookClient(parse_hosts("127.0.0.1")) as outgoing:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await outgoing.post(f"{server.url}/hook", b"{}", {})
    assert server.asked == []


def test_a_bundle_without_certificates_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("none")
    for bundle in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigurationError, match="CA_BUNDLE"):
            settings(bundle).trust()
