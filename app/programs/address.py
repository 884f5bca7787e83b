"""Where an instance listens, and how programs on its machine reach it."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.settings import Settings

EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not listened on
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance listens; with HTTPS if it has a certificate."""

    host: str
    port: int
    certificate: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.host, settings.port, settings.tls_certificate)

    @property
    def name(self) -> str:
        """The name or address at which this machine reaches the instance."""
        return "localhost" if self.host in EVERY_ADDRESS else self.host

    @property
    def url(self) -> str:
        """The URL for programs on this machine."""
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{f'[{self.name}]' if ':' in self.name else self.name}:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that is not opened yet."""
        if self.certificate is None:
            return http.client.HTTPConnection(self.name, self.port, timeout=ANSWER_SECONDS)
        # Trust only this certificate, whatever its names are: the instance is asked as localhost.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(self.certificate)
        return http.client.HTTPSConnection(self.name, self.port, timeout=ANSWER_SECONDS, context=context)
