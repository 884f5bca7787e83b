"""``Repr-Digest`` and ``Content-Digest`` (RFC 9530) of a body: read before the body, checked after it.

Bodies have no content coding, so the two mean the same bytes: a raw body's are the video's, a multipart
form's are those of the whole form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from werkzeug.datastructures import Headers

from app.errors import DigestMismatch
from app.web.options import Fault, invalid_options

HEADERS = ("Repr-Digest", "Content-Digest")
ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}  # hashlib's names; other algorithms are ignored
_MEMBER = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?: *;[^,]*)?")  # RFC 8941, 3.2


@dataclass(frozen=True, slots=True)
class ExpectedDigest:
    """A digest that the client states for its body."""

    header: str
    algorithm: str  # a key of ALGORITHMS
    digest: bytes


def expected_digests(headers: Headers) -> tuple[ExpectedDigest, ...]:
    """Return the digests in `headers` whose algorithms are supported. Raises InvalidOption."""
    expected = []
    for header in HEADERS:
        allowed = "sha-256=:BASE64: or sha-512=:BASE64:"
        fault = invalid_options([Fault(header, "is not a valid digest", allowed)])
        for member in headers[header].split(",") if header in headers else ():
            match = _MEMBER.fullmatch(member.strip(" \t"))
            if match is None:
                raise fault
            algorithm = match[1]
            if algorithm not in ALGORITHMS:
                continue
            try:
                digest = base64.b64decode(match[2], validate=True)
            except binascii.Error as error:
                raise fault from error
            if len(digest) != hashlib.new(ALGORITHMS[algorithm]).digest_size:
                raise fault
            expected.append(ExpectedDigest(header, algorithm, digest))
    return tuple(expected)


def stated_sha256(expected: Sequence[ExpectedDigest]) -> str | None:
    """Return the body's SHA-256 as the client states it, in hex, if it does."""
    return next((one.digest.hex() for one in expected if one.algorithm == "sha-256"), None)


def check_digests(expected: Sequence[ExpectedDigest], received: Mapping[str, bytes]) -> None:
    """Raise DigestMismatch unless the body's digests, by hashlib's names, are the `expected` ones."""
    for one in expected:
        digest = received[ALGORITHMS[one.algorithm]]
        if digest != one.digest:
            raise DigestMismatch(
                f"The body is not what its {one.header} says: something was changed or lost on the way.",
                {
                    "header": one.header,
                    "algorithm": one.algorithm,
                    "expected": base64.b64encode(one.digest).decode(),
                    "received": base64.b64encode(digest).decode(),
                },
            )


def checked_pieces(pieces: Iterator[bytes], expected: Sequence[ExpectedDigest]) -> Iterator[bytes]:
    """Yield `pieces`; at their end, raise DigestMismatch unless they have the `expected` digests."""
    if not expected:
        yield from pieces
        return
    hashes = {name: hashlib.new(name) for name in algorithm_names(expected)}
    for piece in pieces:
        for digest in hashes.values():
            digest.update(piece)
        yield piece
    check_digests(expected, {name: digest.digest() for name, digest in hashes.items()})


def algorithm_names(expected: Sequence[ExpectedDigest]) -> tuple[str, ...]:
    """Return hashlib's names of the algorithms in `expected`."""
    return tuple(dict.fromkeys(ALGORITHMS[one.algorithm] for one in expected))
