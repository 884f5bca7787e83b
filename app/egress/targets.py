"""Parses a URL that a caller names, and refuses it if the service must not connect there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from app.egress.addresses import AddressRules, is_host_name, parse_address

DEFAULT_PORTS = {"https": 443, "http": 80}
PUBLIC_PORTS = (443, 8443)
LONGEST_URL = 8192  # characters
_URL = re.compile(r"[!#-;=?-\[\]_a-z~]+")  # printable ASCII without \\ " < > ^ ` { | }


class TargetRefused(Exception):
    """The service does not connect there. The texts are for the caller and repeat nothing of the URL."""

    def __init__(self, reason: str, allowed: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and what to request there."""

    scheme: str
    host: str  # a name in lower case, or an address without brackets
    port: int
    resource: str  # path and query, unchanged: they may be signed

    @property
    def shown(self) -> str:
        """The URL for people and logs: without the query, which may hold secrets."""
        return f"{self.scheme}://{self.authority}{self.resource.partition('?')[0]}"

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target(url: str, rules: AddressRules) -> Target:
    """Return `url` parsed. Raises TargetRefused. Does not use the network."""
    if len(url) > LONGEST_URL or not _URL.fullmatch(url):
        allowed = f"https://HOST/…, at most {LONGEST_URL} characters, other characters as %XX or xn--"
        raise TargetRefused("is not a URL", allowed)
    try:
        split = urlsplit(url)
    except ValueError as error:
        raise TargetRefused("is not a URL", "https://HOST/…") from error
    if "@" in split.netloc:
        raise TargetRefused("holds a user name or a password", "a URL without them")
    host = _host(split)
    address = parse_address(host)
    is_listed = rules.allows_name(host) or (address is not None and rules.lists(address))
    if split.scheme != "https" and not (split.scheme == "http" and is_listed):
        raise TargetRefused("is not https", "https; http only for hosts of FRAMEBOX_ALLOWED_HOSTS")
    try:
        port = DEFAULT_PORTS[split.scheme] if split.port is None else split.port
    except ValueError as error:
        raise TargetRefused("has no valid port", "1 to 65535") from error
    if port not in PUBLIC_PORTS and not (is_listed and port):
        ports = " or ".join(map(str, PUBLIC_PORTS))
        allowed = f"port {ports}; any port only for hosts of FRAMEBOX_ALLOWED_HOSTS"
        raise TargetRefused(f"names port {port}", allowed)
    if address is not None and not rules.allows(address):
        raise private_address()
    resource = (split.path or "/") + (f"?{split.query}" if split.query else "")
    return Target(split.scheme, host, port, resource)


def private_address() -> TargetRefused:
    return TargetRefused(
        "leads to a private or special address", "public addresses, and those of FRAMEBOX_ALLOWED_HOSTS"
    )


def _host(split: SplitResult) -> str:
    """Return the host: a name without a final dot, or an address in its usual form only."""
    host = split.hostname or ""
    is_bracketed = split.netloc.startswith("[")
    address = parse_address(host)
    if address is not None and "%" not in host and is_bracketed == (address.version == 6):
        return str(address)
    if is_bracketed or address is not None or not is_host_name(host):
        raise TargetRefused("has no host", "a host's name, or an address in its usual form")
    return host.rstrip(".")
