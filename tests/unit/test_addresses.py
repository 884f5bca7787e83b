"""Which addresses are public: by IANA's registries, for every form in which an address can come."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.egress.addresses import AddressRules, embedded_ipv4, is_public, parse_allowed

V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
# Random addresses hardly ever meet a special network: these are drawn from the networks themselves.
SPECIAL = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
    "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
    "::/128", "::1/128", "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:2::/48",
    "2001:10::/28", "2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip


def within(network: str) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    parsed = ip_network(network)
    first, last = int(parsed.network_address), int(parsed.broadcast_address)
    return st.integers(first, last).map(type(parsed.network_address))


@pytest.mark.parametrize("network", SPECIAL)
def test_every_address_of_a_special_network_is_refused(network: str) -> None:
    @given(within(network))
    def check(address: IPv4Address | IPv6Address) -> None:
        assert not is_public(address)

    check()
    parsed = ip_network(network)
    assert not is_public(parsed.network_address)
    assert not is_public(parsed.broadcast_address)


@given(V4 | V6)
@example(IPv6Address("64:ff9b::808:808"))
def test_nothing_is_public_that_python_knows_to_be_private(address: IPv4Address | IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if is_public(address):
        assert (mapped or address).is_global
        assert not address.is_multicast
        assert not address.is_loopback
        assert not address.is_link_local
        assert not address.is_unspecified


@given(V4)
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("8.8.8.8"))
def test_what_stands_for_an_ipv4_address_is_judged_as_that(inner: IPv4Address) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        outer = IPv6Address(int(IPv6Address(prefix)) | int(inner))
        assert embedded_ipv4(outer) == inner
        assert is_public(outer) == is_public(inner)


@given(V4)
def test_tunnels_are_refused_whatever_they_carry(inner: IPv4Address) -> None:
    compatible = IPv6Address(int(inner))
    six_to_four = IPv6Address((0x2002 << 112) | (int(inner) << 80) | 1)
    teredo = IPv6Address((0x20010000 << 96) | (int(inner) << 64) | (int(inner) ^ 0xFFFF_FFFF))
    assert not any(map(is_public, (compatible, six_to_four, teredo)))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1", "64:ff9b::8.8.8.8"]
)
def test_public_addresses_are_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", ["fe80::1%eth0", "2606:4700::1111%eth0"])
def test_an_address_of_one_interface_is_none_of_the_internet(text: str) -> None:
    assert not is_public(ip_address(text))


def test_the_administrator_may_allow_networks_addresses_and_names() -> None:
    rules = AddressRules(["10.1.0.0/16", "fd00::/8", "192.168.1.7", "Storage.Internal."])
    assert rules.allows(ip_address("10.1.2.3"))
    assert rules.allows(ip_address("::ffff:10.1.2.3"))
    assert rules.allows(ip_address("fd12::1"))
    assert rules.allows(ip_address("192.168.1.7"))
    assert rules.allows(ip_address("8.8.8.8"))
    assert not rules.allows(ip_address("10.2.0.1"))
    assert not rules.allows(ip_address("192.168.1.8"))
    assert rules.allows_name("storage.internal")
    assert rules.allows_name("STORAGE.internal.")
    assert not rules.allows_name("evil.storage.internal")


@pytest.mark.parametrize(
    "entry", ["", "a b", "http://host", "host:80", "10.0.0.0/33", "-a", "0x7f.1", "1.2.3", "*.a"]
)
def test_what_is_neither_name_nor_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        parse_allowed(entry)
