"""Which hosts may be reached: lists of names as settings give them, and which addresses are of the wide world."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import unquote, urlsplit

import httpx

from geo_jobs_api.setting_values import is_short_enough

Address = IPv4Address | IPv6Address

# Networks without IPv4 reach it through these (RFC 6052).
NAT64 = IPv6Network("64:ff9b::/96")
# All of IPv6 that hosts of the wide world have.
GIVEN_OUT = IPv6Network("2000::/3")
# Not reachable from the Internet (IANA's special-purpose registries). Python's own list changes with its patch
# releases. The last of IPv4 is the host agent of Azure.
NOT_PUBLIC: tuple[IPv4Network | IPv6Network, ...] = (
    *map(IPv4Network, (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
    )),
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")),
)  # fmt: skip

_HOST_NAME = re.compile(r"[^\W_](?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*\.?")


def parse_hosts(text: str) -> HostList:
    """Read a comma-separated setting.

    Raises:
        ValueError: an entry is no host name, no address, not `*.name` and not `*`.
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
    """Whether the text can be the name of a host. Letters beyond ASCII count, since they have an ASCII form."""
    return _HOST_NAME.fullmatch(text) is not None and is_short_enough(text)


@dataclass(frozen=True, slots=True)
class HostList:
    """Hosts by name or address, all below a name (`*.example.org`), or any (`*`)."""

    names: frozenset[str]
    endings: tuple[str, ...]
    is_any: bool

    @staticmethod
    def of(entries: Iterable[str]) -> HostList:
        """A list of entries in lower case."""
        known = set(entries)
        return HostList(
            frozenset(entry for entry in known if not entry.startswith("*")),
            tuple(sorted(entry[1:] for entry in known if entry.startswith("*."))),
            "*" in known,
        )

    def names_host(self, host: str) -> bool:
        """Whether the host is listed by itself or by an ending; `*` does not count."""
        plain = host.lower().rstrip(".")
        return plain in self.names or (bool(self.endings) and plain.endswith(self.endings))

    def allows(self, host: str) -> bool:
        """Whether the host is listed, or any is."""
        return self.is_any or self.names_host(host)


def parse_address(text: str) -> Address | None:
    """The address that a text is, without an IPv6 scope; None when it is a name."""
    try:
        return ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is of the wide world, also by the IPv4 address that it carries within."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
        # Whatever else carries an address within, and what was never given out.
        if address not in GIVEN_OUT:
            return False
    return not any(address in network for network in NOT_PUBLIC)


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A URL that can be asked over HTTP: its text, its host in lower case, and the last part of its path."""

    url: str
    host: str
    port: int | None
    last_part: str


def parse_web_address(url: str, *, longest: int = 4096) -> WebAddress:
    """Read an http or https URL.

    Raises:
        ValueError: it is none, it holds a user name, or it is too long; the message is for whoever wrote it.
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
    """The host by the reading of what sends requests; None when its ASCII form stands for no name."""
    try:
        read = httpx.URL(url)
        return read.raw_host.decode("ascii").lower() if read.host else None
    except (ValueError, httpx.InvalidURL):
        return None
