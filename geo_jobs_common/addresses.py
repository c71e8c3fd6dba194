"""Which names and addresses are of one's own network, and which of the wide world."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
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
# Endings that no public name has (RFC 6761, 6762, 8375 and ICANN's word on .internal).
LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa")


def parse_address(text: str) -> Address | None:
    """The address that a text is, without an IPv6 scope; None when it is a name."""
    try:
        return ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_local_name(host: str) -> bool:
    """Whether a host is of one's own network by its very name: no dots, a reserved ending, or a private address."""
    address = parse_address(host)
    if address is not None:
        return not is_public(address)
    name = host.rstrip(".").lower()
    # "2130706433" and "0x7f000001" are names to Python and 127.0.0.1 to the system.
    return ("." not in name and not name[:1].isdecimal()) or name.endswith(LOCAL_ENDINGS)


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
