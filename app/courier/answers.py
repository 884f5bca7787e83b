"""What a server's answer to a request for a video, or for the rest of one, means. No I/O here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.errors import FrameboxError, SourceRefused

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})  # the same request may succeed later
_LONGEST_VALIDATOR = 1024  # characters


class Verdict(StrEnum):
    """What to do with an answer."""

    FROM_START = "from_start"  # its body is the whole video
    GOES_ON = "goes_on"  # its body is what is missing
    CHANGED = "changed"  # it belongs to another video than the bytes received: start over
    LATER = "later"  # ask again
    ENDLESS = "endless"  # it has no length: its head was cut off, or a part could pass for the whole


@dataclass(frozen=True, slots=True)
class Received:
    """What has been received already, and what its server said about it."""

    size_bytes: int
    expected_bytes: int | None
    etag: str | None
    modified: str | None

    def headers(self) -> dict[str, str]:
        """Return the headers to ask with: only for the rest, if the server can tell it is the same."""
        headers = {"Accept-Encoding": "identity"}
        validator = strong(self.etag) or self.modified
        if self.size_bytes and validator:
            headers |= {"Range": f"bytes={self.size_bytes}-", "If-Range": validator}
        return headers


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """A status and the headers that matter."""

    verdict: Verdict
    expected_bytes: int | None  # of the whole video; None: unknown until its end
    etag: str | None
    modified: str | None


def strong(etag: str | None) -> str | None:
    """Return the entity tag if it promises equal bytes; None for a weak one."""
    return etag if etag and not etag.startswith("W/") else None


def judge(status: int, headers: Mapping[str, str], asked: Received) -> SourceAnswer:
    """Judge an answer to `asked.headers()`. Raises SourceRefused if asking again is of no use.

    `headers` ignores case.
    """
    if status in _LATER:
        return SourceAnswer(Verdict.LATER, None, None, None)
    if status in (412, 416) and "Range" in asked.headers():
        return SourceAnswer(Verdict.CHANGED, None, None, None)
    if status not in (200, 206):
        raise refusal(status)
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise SourceRefused("The video's server sends it encoded, though it was asked not to.")
    etag, modified = _validator(headers.get("ETag")), _validator(headers.get("Last-Modified"))
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is None or "Range" not in asked.headers():
            raise SourceRefused(
                "The video's server sends a part that was not asked for.", {"source_status": 206}
            )
        first, last, whole = map(int, match.groups())
        is_same = (
            first == asked.size_bytes
            and last == whole - 1
            and asked.expected_bytes in (None, whole)
            and (etag is None or etag == asked.etag)
        )
        verdict = Verdict.GOES_ON if is_same else Verdict.CHANGED
        return SourceAnswer(verdict, whole, etag or asked.etag, modified or asked.modified)
    if "chunked" in headers.get("Transfer-Encoding", "").lower():  # the body shows its end
        return SourceAnswer(Verdict.FROM_START, None, etag, modified)
    length = headers.get("Content-Length", "")
    if not re.fullmatch(r"\d{1,18}", length):
        return SourceAnswer(Verdict.ENDLESS, None, None, None)
    return SourceAnswer(Verdict.FROM_START, int(length), etag, modified)


def refusal(status: int) -> FrameboxError:
    """Return the error that ends the job of a video whose server answers `status`."""
    told = {"source_status": status}
    if 300 <= status < 400:
        return SourceRefused("The video's server redirects, and redirects are not followed.", told)
    return SourceRefused(f"The video's server answered {status}.", told)


def _validator(header: str | None) -> str | None:
    return header if header and header.isprintable() and len(header) <= _LONGEST_VALIDATOR else None
