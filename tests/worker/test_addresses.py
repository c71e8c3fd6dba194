"""Which addresses are of the wide world, and which names are one's own network's."""

from ipaddress import ip_address

import pytest

from geo_jobs_common.addresses import is_local_name, is_public


@pytest.mark.parametrize("text", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "2002:5db8:d822::1"])
def test_addresses_of_the_wide_world(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - an address to be refused
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::1",
    ],
)
def test_addresses_that_no_stranger_may_have_called(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("api", True),
        ("localhost", True),
        ("minio.svc.cluster.local", True),
        ("storage.internal.", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("fe80::1%eth0", True),
        ("maps.example.org", False),
        ("93.184.216.34", False),
        ("2130706433", False),
        ("0x7f000001", False),
        ("127.1", False),
    ],
)
def test_names_that_are_of_ones_own_network(host: str, local: bool) -> None:
    assert is_local_name(host) is local
