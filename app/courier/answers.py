"""What another server's answer means: to a request for a video or for the rest of one. No I/O here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from app.errors import SourceRefused
from app.jobs.fetches import SourceVersion

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})  # the same request may succeed later
_LONGEST_VALIDATOR = 1024  # characters
_MOST_RETRY_AFTER_SECONDS = 86_400.0


class Verdict(StrEnum):
    """What to do with an answer."""

    FROM_START = "from_start"  # its body is the whole video
    GOES_ON = "goes_on"  # its body is what is missing
    CHANGED = "changed"  # it belongs to another video than the bytes received: start over
    LATER = "later"  # ask again
    ENDLESS = "endless"  # it has no length: its head was cut off, or a part could pass for the whole


@dataclass(frozen=True, slots=True)
class Received:
    """What has been received already."""

    size_bytes: int
    version: SourceVersion

    def headers(self) -> dict[str, str]:
        """Return the headers to ask with: only for the rest, if the server can tell it is the same."""
        headers = {"Accept-Encoding": "identity"}
        etag = self.version.etag
        is_strong = etag and not etag.startswith("W/")  # only a strong tag promises equal bytes
        validator = etag if is_strong else self.version.modified
        if self.size_bytes and validator:
            headers |= {"Range": f"bytes={self.size_bytes}-", "If-Range": validator}
        return headers


def judge(status: int, headers: Mapping[str, str], asked: Received) -> tuple[Verdict, SourceVersion]:
    """Judge an answer to `asked.headers()`; return the version of its body too.

    Raises SourceRefused if asking again is of no use. `headers` ignores case.
    """
    if status in _LATER:
        return Verdict.LATER, SourceVersion()
    if status in (412, 416) and "Range" in asked.headers():
        return Verdict.CHANGED, SourceVersion()
    if status not in (200, 206):
        does = "redirects, and redirects are not followed" if 300 <= status < 400 else f"answered {status}"
        raise SourceRefused(f"The video's server {does}.", {"source_status": status})
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
        known = asked.version
        is_same = (
            first == asked.size_bytes
            and last == whole - 1
            and known.expected_bytes in (None, whole)
            and (etag is None or etag == known.etag)
        )
        version = SourceVersion(whole, etag or known.etag, modified or known.modified)
        return Verdict.GOES_ON if is_same else Verdict.CHANGED, version
    if "chunked" in headers.get("Transfer-Encoding", "").lower():  # the body shows its end
        return Verdict.FROM_START, SourceVersion(None, etag, modified)
    length = headers.get("Content-Length", "")
    if not re.fullmatch(r"\d{1,18}", length):
        return Verdict.ENDLESS, SourceVersion()
    return Verdict.FROM_START, SourceVersion(int(length), etag, modified)


def _validator(header: str | None) -> str | None:
    return header if header and header.isprintable() and len(header) <= _LONGEST_VALIDATOR else None


def retry_after_seconds(header: str | None, *, clock: Callable[[], float] = time.time) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 if it is not valid."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            date: datetime = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - clock()
    return min(max(seconds, 0.0), _MOST_RETRY_AFTER_SECONDS)
