"""Certificates made on the fly, with the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate that signs itself, and its key: PEM files."""

    certificate: Path
    key: Path


def make_certificate(folder: Path, name: str, *, password: str | None = None) -> Certificate:
    """Make one for localhost and 127.0.0.1; with a `password`, its key is encrypted."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    encryption = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", *encryption]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(["openssl", "req", *kind, *subject, *files], check=True, capture_output=True, timeout=30)
    return made
