"""Host lists of settings, and the web addresses checked against them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import httpx

from geo_jobs_common.addresses import parse_address
from geo_jobs_common.setting_values import is_short_enough

_HOST_NAME = re.compile(r"[^\W_](?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*\.?")


def parse_hosts(text: str) -> HostList:
    """Read a comma-separated setting.

    Raises:
        ValueError: an entry is not a host name, an address, `*.name` or `*`.
    """
    entries = [entry.strip().lower().rstrip(".") for entry in text.split(",") if entry.strip()]
    for entry in entries:
        name = entry.removeprefix("*.")
        if entry != "*" and parse_address(name) is None and not is_host_name(name):
            raise ValueError(
                f"{entry!r} is no host name: give names without scheme, port and path, separated by commas, "
                "for example maps.example.org,*.example.org"
            )
    return HostList.of(entries)


def is_host_name(text: str) -> bool:
    """Return whether the text is a valid host name. Non-ASCII letters are valid, since they have an ASCII form."""
    return _HOST_NAME.fullmatch(text) is not None and is_short_enough(text)


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


def parse_web_address(url: str, *, longest: int = 4096) -> WebAddress:
    """Read an http or https URL.

    Raises:
        ValueError: the URL is invalid, too long, or has a user name. The message is for its author.
    """
    if len(url) > longest:
        raise ValueError(f"must have at most {longest} characters")
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise ValueError("must be ASCII without spaces; anything else is percent-encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("is no URL that can be read") from error
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password")
    if not host:
        raise ValueError("must name a host")
    if _host_sent_to(url) != host.lower():
        raise ValueError("must name a host that can be read in one way only")
    if "\\" in url:
        raise ValueError("must not hold a backslash, which is read in different ways")
    last = unquote(parts.path.rsplit("/", 1)[-1], errors="replace")
    return WebAddress(url, host.lower().rstrip("."), port, last)


def _host_sent_to(url: str) -> str | None:
    """Return the host as HTTP clients read it, or None when its ASCII form is no host name."""
    try:
        read = httpx.URL(url)
        return read.raw_host.decode("ascii").lower() if read.host else None
    except (ValueError, httpx.InvalidURL):
        return None
