"""``Repr-Digest`` and ``Content-Digest`` (RFC 9530) of a body: read before it comes, checked after.

A body is sent as it is, without a content coding, so the two mean the same bytes: a raw body's are the
video's, a form's are those of the whole form.
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
ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}  # as hashlib calls them; others are passed over
_MEMBER = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?: *;[^,]*)?")  # RFC 8941, 3.2


@dataclass(frozen=True, slots=True)
class ExpectedDigest:
    """What a client says that its body's digest is."""

    header: str
    algorithm: str  # a key of ALGORITHMS
    digest: bytes


def expected_digests(headers: Headers) -> tuple[ExpectedDigest, ...]:
    """The digests in `headers` whose algorithms are known here. InvalidOption for what is no digest."""
    return tuple(
        ExpectedDigest(header, algorithm, _decode(header, algorithm, text))
        for header in HEADERS
        for algorithm, text in _members(header, headers.get(header))
        if algorithm in ALGORITHMS
    )


def stated_sha256(expected: Sequence[ExpectedDigest]) -> str | None:
    """The body's SHA-256 as its client states it, in hex; None if it states none."""
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
    """Yield `pieces`; raise DigestMismatch at their end unless they have the `expected` digests."""
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
    """hashlib's names of what `expected` takes to be checked."""
    return tuple(dict.fromkeys(ALGORITHMS[one.algorithm] for one in expected))


def _members(header: str, text: str | None) -> Iterator[tuple[str, str]]:
    for member in [] if text is None else text.split(","):
        match = _MEMBER.fullmatch(member.strip(" \t"))
        if match is None:
            raise _no_digest(header)
        yield match[1], match[2]


def _decode(header: str, algorithm: str, text: str) -> bytes:
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise _no_digest(header) from error
    if len(digest) != hashlib.new(ALGORITHMS[algorithm]).digest_size:
        raise _no_digest(header)
    return digest


def _no_digest(header: str) -> Exception:
    return invalid_options([Fault(header, "is not a valid digest", "sha-256=:BASE64: or sha-512=:BASE64:")])
