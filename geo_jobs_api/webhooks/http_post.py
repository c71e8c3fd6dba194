"""Requests to URLs of callers, with protection against SSRF: allowed addresses only, small responses, no redirects."""

from __future__ import annotations

import asyncio
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx

from geo_jobs_api.errors import ApiError
from geo_jobs_api.hosts import HostList, parse_web_address
from geo_jobs_api.log import get_logger
from geo_jobs_common.addresses import is_public, parse_address

_log = get_logger(__name__)
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 10.0
# Total time, however slowly the response arrives.
_TOTAL_SECONDS = 15.0
_LARGEST_ANSWER = 16 * 1024


class AddressRefusedError(ApiError):
    """The address is not allowed. The message contains the reason, and the setting that allows it."""


def check_target(url: str, private_hosts: HostList) -> str:
    """Check the text of a URL. Return its host and port.

    Raises:
        ValueError: it is not allowed. The message is for its author.
    """
    address = parse_web_address(url)
    number = parse_address(address.host)
    is_private_host = private_hosts.names_host(address.host)
    if url.startswith("http://") and not is_private_host:
        raise ValueError("must begin with https://, unless WEBHOOK_HOSTS lists its host")
    if not is_private_host and number is None and "." not in address.host:
        raise ValueError("must have a public host, or one that WEBHOOK_HOSTS lists")
    if number is not None and not is_private_host and not is_public(number):
        raise ValueError("must not lead to a private address, unless WEBHOOK_HOSTS lists it")
    return f"{address.host}:{address.port or (443 if url.startswith('https') else 80)}"


class WebhookClient:
    """Posts to URLs of callers. Open it as a context.

    The address is checked after connecting and before sending, which prevents DNS rebinding. Private addresses and
    failed connections look alike to callers, so webhooks do not reveal hosts of the private network.

    Args:
        private_hosts: allowed hosts in private networks.
    """

    def __init__(self, private_hosts: HostList) -> None:
        self._private_hosts = private_hosts
        timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS, pool=None)
        # No proxies of the environment, since a proxy would choose the address.
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout)
        # Receivers must not see each other's cookies.
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    async def __aenter__(self) -> WebhookClient:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """Send a body. Return the head of the response, with any status.

        Raises:
            AddressRefusedError: nothing was sent.
            httpx.HTTPError, httpx.InvalidURL, TimeoutError: no response in time.
        """
        try:
            destination = check_target(url, self._private_hosts)
        except ValueError as error:
            raise AddressRefusedError(f"The address {error}.") from error
        host = destination.rpartition(":")[0]
        request = self._client.build_request("POST", url, content=body, headers=headers)
        gate = None if self._private_hosts.names_host(host) else _Gate(host)
        if gate is not None:
            request.extensions = {**request.extensions, "trace": gate}
        async with asyncio.timeout(_TOTAL_SECONDS):
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if gate is None or gate.has_opened:
                    raise
                raise _unreachable(host) from error
            try:
                await _read_little(response)
            finally:
                await response.aclose()
        return response


class _Gate:
    """Allows only connections to public addresses, by httpx's trace of one request."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.has_opened = False

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        if event != "connection.connect_tcp.complete":
            return
        stream = info["return_value"]
        peer = str(stream.get_extra_info("server_addr")[0])
        address = parse_address(peer)
        if address is None or not is_public(address):
            _log.warning("webhook_address_refused", host=self._host, address=peer)
            await stream.aclose()
            raise _unreachable(self._host)
        self.has_opened = True


def _unreachable(host: str) -> AddressRefusedError:
    return AddressRefusedError(
        f"{host} cannot be reached at a public address. WEBHOOK_HOSTS lists the allowed hosts in private networks."
    )


async def _read_little(response: httpx.Response) -> None:
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > _LARGEST_ANSWER:
            return
