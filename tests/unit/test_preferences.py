"""The Prefer header."""

from __future__ import annotations

import pytest

from app.web.head import parse_prefer


@pytest.mark.parametrize(
    ("header", "wait_seconds", "applied"),
    [
        (None, None, None),
        ("", None, None),
        ("respond-async", 0.0, "respond-async"),
        ("Respond-Async", 0.0, "respond-async"),
        ("wait=10", 10.0, "wait=10"),
        ("respond-async, wait=10", 10.0, "wait=10"),
        ('wait="7"', 7.0, "wait=7"),
        ("wait = 0", 0.0, "wait=0"),
        ("wait=999999999", 86400.0, "wait=86400"),
        ("wait=-1", None, None),
        ("wait=soon, handling=lenient", None, None),
        ("return=minimal", None, None),
    ],
)
def test_prefer_is_read_as_the_rfc_has_it(
    header: str | None, wait_seconds: float | None, applied: str | None
):
    preference = parse_prefer(header)
    assert (preference.wait_seconds, preference.applied) == (wait_seconds, applied)
