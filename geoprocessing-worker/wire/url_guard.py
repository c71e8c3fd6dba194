"""SSRF protection and bounds on answers, as httpx event hooks for one client each.

The URLs of a job come from the API. A forged one could make the worker send requests inside its own network.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx

from geo_jobs_common.addresses import Network, is_local_name, is_public, parse_address
from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input

# Bytes. A claim of 64 jobs with all URLs has about 1 MB.
LARGEST_ANSWER = 8 * 1024 * 1024
_RESOLVE_SECONDS = 10


class StorageGuard:
    """Allows requests to configured hosts only, and checks the addresses of their connections.

    The peer address is checked after connecting and before anything is sent, against DNS rebinding (TOCTOU).
    Connections through the operator's proxy are not checked: there the proxy decides.

    With its own refusal, a guard also resolves the name before it connects. Open and closed ports of a private address
    then get the same answer, so sourceUrl cannot scan ports.

    Args:
        hosts: allowed names or addresses, in lower case. `*.example.org` allows all subdomains.
        any_host: allow all hosts. Their addresses are still checked.
        networks: private networks in which storage with a public name is allowed.
        setting: name of the setting behind `hosts`, for messages.
        refusal: builds the error. The default blames the API.
    """

    def __init__(
        self,
        hosts: Collection[str],
        *,
        any_host: bool = False,
        networks: Collection[Network] = (),
        setting: str = "STORAGE_HOSTS",
        refusal: Callable[..., JobError] | None = None,
    ) -> None:
        self._setting = setting
        self._refusal = refusal or _refusal
        self._hides_ports = refusal is not None
        known = [as_sent(host) for host in hosts]
        self._hosts = frozenset(host for host in known if not host.startswith("*."))
        self._endings = tuple(host[1:] for host in known if host.startswith("*."))
        self._any_host = any_host
        self._networks = tuple(networks)

    async def __call__(self, request: httpx.Request) -> None:
        """Check one request before it is sent.

        Raises:
            JobError: `address_refused`.
        """
        url = request.url
        # In ASCII, as sent. `url.host` has internationalized names decoded.
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        if url.scheme not in {"http", "https"}:
            raise self._refusal("Use an http:// or https:// address.", scheme=url.scheme)
        if url.userinfo:
            raise self._refusal("Remove the user name from it.", host=host)
        if not (self._any_host or host in self._hosts or host.endswith(self._endings or ("/",))):
            raise self._refusal(f"The host {host} is not in the worker's {self._setting}.", host=host)

        connecting_to = ""

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal connecting_to
            if event == "connection.connect_tcp.started":
                connecting_to = str(info["host"])
                if self._hides_ports and connecting_to.lower().rstrip(".") == host:
                    await self._check_name(host, info["port"])
            elif event == "connection.connect_tcp.complete" and connecting_to.lower().rstrip(".") == host:
                await self._check_peer(request, host, info["return_value"])

        request.extensions = {**request.extensions, "trace": trace}

    async def _check_name(self, host: str, port: int) -> None:
        peers: list[Any] = []
        with suppress(OSError):  # connecting fails with a better message
            resolve = asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            peers = await asyncio.wait_for(resolve, _RESOLVE_SECONDS)
        if not all(self._is_allowed(host, str(peer[0])) for *_, peer in peers):
            raise self._refusal(f"The host {host} has a private address.", host=host)

    async def _check_peer(self, request: httpx.Request, host: str, stream: Any) -> None:
        peer = str(stream.get_extra_info("server_addr")[0])
        if self._is_allowed(host, peer):
            return
        await stream.aclose()
        if self._hides_ports:
            # DNS rebinding: the name resolved to a public address a moment ago. A closed port fails in the same way.
            raise httpx.ConnectError("connection refused by the guard", request=request)
        raise self._refusal(
            f"The public name {host} resolves to the private address {peer}. "
            "If storage belongs there, add its network to STORAGE_NETWORKS.",
            host=host,
            address=peer,
        )

    def _is_allowed(self, host: str, peer: str) -> bool:
        address = parse_address(peer)
        # A local name in the list of allowed hosts may have a private address.
        is_intended = host in self._hosts and is_local_name(host)
        return address is not None and (is_intended or is_public(address) or self._in_networks(address))

    def _in_networks(self, address: Any) -> bool:
        return any(address.version == network.version and address in network for network in self._networks)


def as_sent(host: str) -> str:
    """Return a configured host as sent: internationalized names in ASCII."""
    if host.isascii():
        return host
    name = host.removeprefix("*.")
    return host[: len(host) - len(name)] + httpx.URL(scheme="http", host=name).raw_host.decode("ascii")


def _refusal(why: str, **detail: str) -> JobError:
    return JobError(
        "address_refused", f"The worker does not fetch from the job's address. {why}", ErrorClass.INTERNAL, detail
    )


def forget_cookies(client: httpx.AsyncClient) -> None:
    """Disable cookies, which would pass from one job to the next."""
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))


def source_refusal(why: str, **detail: str) -> JobError:
    """Return the error for a refused sourceUrl, which is not retried."""
    return invalid_input("source_not_allowed", f"The file's address may not be fetched from here. {why}", **detail)


async def bound_answer(response: httpx.Response) -> None:
    """Limit the length of an answer of the API, and reject compressed ones (decompression bombs).

    Raises:
        httpx.DecodingError: compressed. The stream raises `httpx.ReadError` when it is too long.
    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise httpx.DecodingError("compressed without being requested", request=response.request)
    if isinstance(response.stream, httpx.AsyncByteStream):
        response.stream = _Bounded(response.stream, response.request)


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, request: httpx.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > LARGEST_ANSWER:
                raise httpx.ReadError(f"an answer of more than {LARGEST_ANSWER} bytes", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
