"""Which names and addresses are of one's own network, and which of the wide world."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

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
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast
