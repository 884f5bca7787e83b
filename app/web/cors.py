"""Cross-origin headers (CORS, Fetch standard) for pages of other origins that upload."""

from __future__ import annotations

from collections.abc import Sequence

_METHODS = "POST, HEAD, PATCH, DELETE, OPTIONS"
_SENT = (
    "Content-Type, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata, Upload-Defer-Length, "
    "Upload-Concat, Upload-Checksum, X-HTTP-Method-Override, X-Requested-With, Idempotency-Key, Prefer"
)
_SHOWN = (
    "Location, Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm, "
    "Upload-Length, Upload-Offset, Upload-Metadata, Upload-Defer-Length, Upload-Concat, Upload-Expires, "
    "Retry-After, Link, Framebox-Job, X-Request-ID"
)
_REMEMBER_SECONDS = 86400


def cors_headers(origin: str | None, allowed: Sequence[str], *, is_preflight: bool) -> dict[str, str]:
    """Return the headers of an answer to a page of `origin`; no permission if it may not read the answer."""
    if not allowed or origin is None or (origin not in allowed and "*" not in allowed):
        return {"Vary": "Origin"} if allowed else {}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _SHOWN,
        "Vary": "Origin",
    }
    if is_preflight:
        headers["Access-Control-Allow-Methods"] = _METHODS
        headers["Access-Control-Allow-Headers"] = _SENT
        headers["Access-Control-Max-Age"] = str(_REMEMBER_SECONDS)
    return headers
