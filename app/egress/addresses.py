"""Decides which addresses are public, and which lead into a private network.

Own lists, from IANA's registries of special-purpose addresses, because `ipaddress.is_global` is true for
multicast, for site-local and 6to4-relay addresses, and for several forms of IPv6 that carry an IPv4 address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LABEL = re.compile(r"(?!-)(?=.*[a-z0-9])[a-z0-9_-]{1,63}(?<!-)")  # of a name in lower case

# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a provider's NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")  # all addresses allocated so far
# https://www.iana.org/assignments/iana-ipv6-special-registry, within 2000::/3
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols: Teredo (2001::/32), ORCHID, benchmarks, …
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",  # documentation
    )
)
# IPv6 forms of an IPv4 address, which is in the last 32 bits and decides: mapped, NAT64
_EMBEDDING = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


def is_public(address: Address) -> bool:
    """Return whether `address` is a public unicast address."""
    if isinstance(address, IPv4Address):
        return not _lies_in(address, _SPECIAL_V4)
    if address.scope_id is not None:
        return False
    if _lies_in(address, _EMBEDDING):
        return is_public(embedded_ipv4(address))
    return address in _GLOBAL_UNICAST_V6 and not _lies_in(address, _SPECIAL_V6)


def embedded_ipv4(address: IPv6Address) -> IPv4Address:
    """Return the last 32 bits of `address`."""
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def _lies_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


class AddressRules:
    """What the service may connect to: public addresses, and what the administrator allows."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        """`allowed`: names, addresses and networks (CIDR), as `parse_allowed` takes them."""
        parsed = [parse_allowed(entry) for entry in allowed]
        self._names = frozenset(entry for entry in parsed if isinstance(entry, str))
        self._networks = tuple(entry for entry in parsed if not isinstance(entry, str))

    def allows_name(self, name: str) -> bool:
        """Return whether the administrator has listed this name."""
        return name.lower().rstrip(".") in self._names

    def lists(self, address: Address) -> bool:
        """Return whether the administrator has listed the address, or the IPv4 address that it embeds."""
        if isinstance(address, IPv6Address) and _lies_in(address, _EMBEDDING):
            return _lies_in(embedded_ipv4(address), self._networks) or _lies_in(address, self._networks)
        return _lies_in(address, self._networks)

    def allows(self, address: Address) -> bool:
        """Return whether the service may connect to the address."""
        return is_public(address) or self.lists(address)


def parse_allowed(entry: str) -> str | Network:
    """Return a name in lower case, or a network. ValueError if `entry` is neither."""
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        name = entry.lower().rstrip(".")
        if is_host_name(name):
            return name
        raise ValueError(f"{entry!r} is not a host name, address or network") from None


def is_host_name(text: str) -> bool:
    """Return whether `text` is a DNS name that cannot be read as an address, as 0x7f.1 can."""
    labels = text.rstrip(".").lower().split(".")
    if not 1 <= len(text) <= 253 or not all(map(_LABEL.fullmatch, labels)):
        return False
    return not (labels[-1].isdigit() or labels[-1].startswith("0x"))


def parse_address(text: str) -> Address | None:
    """Return the address `text`, without brackets, or None. IPv4 is four dotted numbers and nothing else."""
    try:
        return ip_address(text)
    except ValueError:
        return None
