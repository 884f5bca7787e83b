"""A JSON body names exactly one video, or is refused with what is allowed."""

from __future__ import annotations

import pytest

from app.errors import InvalidSource, MalformedBody
from app.jobs.job import SourceKind
from app.web.sources import parse_source


def test_the_one_member_tells_the_kind() -> None:
    assert parse_source(b' {"path": "a/b.mp4"}\n') == (SourceKind.PATH, "a/b.mp4")
    assert parse_source('{"path":"ü.mp4"}'.encode())[1] == "ü.mp4"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"path": "a"} x', b"NaN"])
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse_source(body)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'"path"',
        b"null",
        b"1",
        b'{"file": "a"}',
        b'{"path": "a", "url": "b"}',
        b'{"PATH": "a"}',
    ],
)
def test_what_names_no_video_is_told_what_is_allowed(body: bytes) -> None:
    with pytest.raises(InvalidSource, match='"path"') as caught:
        parse_source(body)
    assert caught.value.extensions["allowed"] == ["upload", "path", "url"]


@pytest.mark.parametrize("value", [b"null", b"1", b'""', b'["a"]', b"{}", b'"%s"' % (b"x" * 8193)])
def test_a_value_that_is_no_text_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidSource, match="path: must be a text"):
        parse_source(b'{"path": %s}' % value)
