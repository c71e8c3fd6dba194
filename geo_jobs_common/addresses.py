"""Distinguish private names and addresses from public ones."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

# IPv4 addresses as seen in networks without IPv4 (RFC 6052).
NAT64 = IPv6Network("64:ff9b::/96")
# All public IPv6 addresses of hosts.
GLOBAL_UNICAST = IPv6Network("2000::/3")
# Not reachable from the Internet (IANA's special-purpose registries). Python's own list changes with its patch
# releases. The last IPv4 network is Azure's host agent.
NOT_PUBLIC: tuple[IPv4Network | IPv6Network, ...] = (
    *map(IPv4Network, (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
    )),
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")),
)  # fmt: skip
# Suffixes without public names (RFC 6761, 6762, 8375, and ICANN's reservation of .internal).
LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa")


def parse_address(text: str) -> Address | None:
    """Return the address in a text, without an IPv6 scope, or None for a name."""
    try:
        return ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_local_name(host: str) -> bool:
    """Return whether a host name is local: no dots, a reserved suffix, or a private address."""
    address = parse_address(host)
    if address is not None:
        return not is_public(address)
    name = host.rstrip(".").lower()
    # Python parses "2130706433" and "0x7f000001" as names, the system as 127.0.0.1.
    return ("." not in name and not name[:1].isdecimal()) or name.endswith(LOCAL_ENDINGS)


def is_public(address: Address) -> bool:
    """Return whether an address is public. An embedded IPv4 address counts instead of its IPv6 address."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
        # Other embeddings, and networks that are not assigned.
        if address not in GLOBAL_UNICAST:
            return False
    return not any(address in network for network in NOT_PUBLIC)
