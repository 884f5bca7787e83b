"""Digests that clients send with a body."""

from __future__ import annotations

import base64
import hashlib

import pytest
from werkzeug.datastructures import Headers

from app.errors import DigestMismatch, InvalidOption
from app.web.digests import ExpectedDigest, checked_pieces, expected_digests

BODY = b"a body of some length"


def _field(algorithm: str, name: str, body: bytes = BODY) -> str:
    return f"{algorithm}=:{base64.b64encode(hashlib.new(name, body).digest()).decode()}:"


SHA256, SHA512 = _field("sha-256", "sha256"), _field("sha-512", "sha512")


def _digests(**headers: str) -> tuple[ExpectedDigest, ...]:
    return expected_digests(Headers({name.replace("_", "-"): text for name, text in headers.items()}))


@pytest.mark.parametrize(
    ("headers", "algorithms"),
    [
        ({}, []),
        ({"Repr_Digest": SHA256}, ["sha-256"]),
        ({"Content_Digest": f"{SHA512},\t{SHA256}"}, ["sha-512", "sha-256"]),
        ({"Repr_Digest": SHA256, "Content_Digest": SHA512}, ["sha-256", "sha-512"]),
        ({"Repr_Digest": f"md5=:AAAA:, {SHA256};a=b"}, ["sha-256"]),
        ({"Repr_Digest": "unixsum=:AAAA:"}, []),
    ],
)
def test_the_digests_that_are_known_are_read(headers: dict[str, str], algorithms: list[str]):
    found = _digests(**headers)
    assert [one.algorithm for one in found] == algorithms
    assert b"".join(checked_pieces(iter([BODY[:5], BODY[5:]]), found)) == BODY


@pytest.mark.parametrize(
    "text",
    ["", "sha-256", "sha-256=", "sha-256=abc", "sha-256=:abc:", "sha-256=:AAAA:", "sha-256=::",
     "SHA-256=:AAAA:", f"{SHA256},", f"{SHA256} {SHA512}", "sha-512=" + SHA256.partition("=")[2],
     "md5=abc", "ü"],
)  # fmt: skip
@pytest.mark.parametrize("header", ["Repr_Digest", "Content_Digest"])
def test_what_is_no_digest_is_refused(header: str, text: str):
    with pytest.raises(InvalidOption) as caught:
        _digests(**{header: text})
    assert caught.value.extensions["parameter"] == header.replace("_", "-")


@pytest.mark.parametrize("right", [SHA256, SHA512])
def test_a_body_that_is_another_is_refused_at_its_end(right: str):
    wrong = _field("sha-256", "sha256", b"another")
    expected = _digests(Repr_Digest=right, Content_Digest=wrong)
    with pytest.raises(DigestMismatch) as caught:
        list(checked_pieces(iter([BODY]), expected))
    extensions = caught.value.extensions
    assert (extensions["header"], extensions["algorithm"]) == ("Content-Digest", "sha-256")
    assert f"sha-256=:{extensions['expected']}:" == wrong
    assert f"sha-256=:{extensions['received']}:" == SHA256
