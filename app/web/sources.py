"""The JSON body of ``POST /v1/detections``: one member that names the video, instead of the video itself."""

from __future__ import annotations

import orjson

from app.egress.targets import TargetRefused, parse_target
from app.errors import InvalidSource, MalformedBody
from app.jobs.job import Job, JobRequest, SourceKind
from app.web.service import Service
from app.web.tus import NAME_KEYS, metadata_of, metadata_text

JSON_BODY_BYTES = 64 * 1024  # an address, however long its signature, is far shorter
_LONGEST_VALUE = 8192  # characters


def parse_source(body: bytes) -> tuple[SourceKind, str]:
    """Return what the JSON `body` names: a path, an address or an id, which is not checked yet.

    Raises MalformedBody if it is not valid JSON, InvalidSource if it is not one member with a string.
    """
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(members, dict) or len(members) != 1 or not {*members} <= {*SourceKind}:
        listed = " or ".join(f'"{kind}"' for kind in SourceKind)
        raise InvalidSource(
            f"The body names no video: it must be a JSON object with one member, {listed}.",
            {"parameter": "body", "allowed": [*SourceKind]},
        )
    ((name, value),) = members.items()
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_VALUE:
        allowed = f"a text of 1 to {_LONGEST_VALUE} characters"
        raise InvalidSource(f"{name}: must be {allowed}.", {"parameter": name, "allowed": allowed})
    return SourceKind(name), value


def accept_named(body: bytes, request: JobRequest, service: Service) -> Job:
    """Return the job of the video that the JSON `body` names. Raises the FrameboxError of either."""
    kind, value = parse_source(body)
    intake = service.intake
    match kind:
        case SourceKind.PATH:
            return intake.from_path(request, value)
        case SourceKind.URL:
            try:
                target = parse_target(value, service.limits.addresses)
            except TargetRefused as refusal:
                raise InvalidSource(
                    f"url: {refusal.reason}.", {"parameter": SourceKind.URL, "allowed": refusal.allowed}
                ) from refusal
            return intake.from_url(request, value, target)
        case SourceKind.UPLOAD:
            with service.uploads.hold(value, owner=request.owner) as held:
                name = metadata_text(metadata_of(held.facts()), *NAME_KEYS)
                return intake.from_upload(request, held, name)
