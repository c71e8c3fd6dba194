"""Hosts, host lists and web addresses, in settings and requests."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import AfterValidator

from geo_jobs_common.addresses import parse_address
from geo_jobs_common.setting_values import check_host_entry, is_host_name

_MAX_URL = 4096


def parse_hosts(text: str) -> HostList:
    """Read a comma-separated setting.

    Raises:
        ValueError: an entry is not a host name, an address, `*.name` or `*`.
    """
    entries = [entry.strip().lower().rstrip(".") for entry in text.split(",") if entry.strip()]
    return HostList.of(map(check_host_entry, entries))


@dataclass(frozen=True, slots=True)
class HostList:
    """Host names, addresses, domains with all subdomains (`*.example.org`), or any host (`*`)."""

    names: frozenset[str]
    endings: tuple[str, ...]
    is_any: bool

    @staticmethod
    def of(entries: Iterable[str]) -> HostList:
        """Return the list of these lower-case entries."""
        known = set(entries)
        return HostList(
            frozenset(entry for entry in known if not entry.startswith("*")),
            tuple(sorted(entry[1:] for entry in known if entry.startswith("*."))),
            "*" in known,
        )

    def names_host(self, host: str) -> bool:
        """Return whether the host is listed by name or by domain. `*` does not count."""
        plain = host.lower().rstrip(".")
        return plain in self.names or (bool(self.endings) and plain.endswith(self.endings))

    def allows(self, host: str) -> bool:
        """Return whether the host is listed, or `*` is."""
        return self.is_any or self.names_host(host)


@dataclass(frozen=True, slots=True)
class WebAddress:
    """An HTTP URL, with its host in lower case and the last part of its path."""

    url: str
    host: str
    port: int | None
    last_part: str


def parse_web_address(url: str) -> WebAddress:
    """Read an http or https URL.

    Raises:
        ValueError: the URL is invalid, too long, or has a user name. The message is for its author.
    """
    if len(url) > _MAX_URL:
        raise ValueError(f"must have at most {_MAX_URL} characters")
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise ValueError("must be ASCII without spaces, with other characters percent-encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("is not a valid URL") from error
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    if not host:
        raise ValueError("must have a host")
    if _host_sent_to(url) != host.lower():
        raise ValueError("must have an unambiguous host")
    if "\\" in url:
        raise ValueError("must not contain a backslash, which is ambiguous")
    last = unquote(parts.path.rsplit("/", 1)[-1], errors="replace")
    return WebAddress(url, host.lower().rstrip("."), port, last)


def _host_sent_to(url: str) -> str | None:
    """Return the host as HTTP clients read it, or None when its ASCII form is no host name."""
    try:
        read = httpx.URL(url)
        return read.raw_host.decode("ascii").lower() if read.host else None
    except (ValueError, httpx.InvalidURL):
        return None


def _check_hosts(text: str) -> str:
    parse_hosts(text)
    return text


def _check_listen_host(text: str) -> str:
    if parse_address(text) is None and not is_host_name(text):
        raise ValueError("must be an address or host name without scheme and port, such as 127.0.0.1 or 0.0.0.0")
    return text


def _check_networks(text: str) -> str:
    for network in filter(None, (part.strip() for part in text.split(","))):
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ValueError(f"{network!r} is not an address or network, such as 10.0.0.5 or 10.0.0.0/24") from None
    return text


def _check_web_url(text: str) -> str:
    parse_web_address(text)
    return text


def _check_base_url(text: str) -> str:
    parse_web_address(text)
    if "?" in text or "#" in text:
        raise ValueError("must have no query and no fragment, such as https://maps.example.org")
    return text.rstrip("/")


# Types of settings.
HostNames = Annotated[str, AfterValidator(_check_hosts)]
ListenHost = Annotated[str, AfterValidator(_check_listen_host)]
Networks = Annotated[str, AfterValidator(_check_networks)]
WebUrl = Annotated[str, AfterValidator(_check_web_url)]
BaseUrl = Annotated[str, AfterValidator(_check_base_url)]
