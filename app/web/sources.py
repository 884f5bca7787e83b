"""The JSON body of ``POST /v1/detections``: one member that names the video, in place of the video itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

import orjson

from app.egress.targets import TargetRefused, parse_target
from app.errors import InvalidSource, MalformedBody
from app.jobs.intake import accept_ingested, accept_named
from app.jobs.job import Job, JobRequest, SourceKind, VideoSource
from app.jobs.resumed import accept_resumed
from app.storage.uploads import HeldUpload
from app.web.service import Service
from app.web.tus import NAME_KEYS, metadata_text, parse_metadata

JSON_BODY_BYTES = 64 * 1024  # of a body at most: an address, however long its signature, is far below
_LONGEST_VALUE = 8192  # characters


@dataclass(frozen=True, slots=True)
class NamedSource:
    """What a JSON body names: `value` is a path, an address or an id, as `kind` says. Not yet looked at."""

    kind: SourceKind
    value: str


def parse_source(body: bytes, kinds: Sequence[SourceKind]) -> NamedSource:
    """Return what the JSON `body` names, one of `kinds`.

    Raises MalformedBody if it is not valid JSON, InvalidSource if it is not one member with a string.
    """
    try:
        members = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(members, dict) or len(members) != 1 or (name := next(iter(members))) not in [*kinds]:
        raise InvalidSource(
            f"The body names no video: it must be a JSON object with one member, {_listed(kinds)}.",
            {"parameter": "body", "allowed": [*kinds]},
        )
    value = members[name]
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_VALUE:
        allowed = f"a text of 1 to {_LONGEST_VALUE} characters"
        raise InvalidSource(f"{name}: must be {allowed}.", {"parameter": name, "allowed": allowed})
    return NamedSource(SourceKind(name), value)


class NamedVideos:
    """Makes jobs of videos that a request names: one method a kind."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._accept_kind: dict[SourceKind, Callable[[str, JobRequest], Job]] = {
            SourceKind.PATH: self._accept_path,
            SourceKind.UPLOAD: self._accept_upload,
            SourceKind.URL: self._accept_url,
        }

    @property
    def kinds(self) -> tuple[SourceKind, ...]:
        return tuple(self._accept_kind)

    def accept(self, source: NamedSource, request: JobRequest) -> Job:
        """Return the job of `source`, durable; the one that an equal request had, if it had one."""
        return self._accept_kind[source.kind](source.value, request)

    def _accept_path(self, path: str, request: JobRequest) -> Job:
        service = self._service
        return accept_ingested(
            path,
            ingest=service.ingest,
            spool=service.spool,
            folder=service.folder,
            store=service.store,
            request=request,
        )

    def _accept_url(self, url: str, request: JobRequest) -> Job:
        service = self._service
        try:
            target = parse_target(url, service.limits.addresses)
        except TargetRefused as refusal:
            told = {"parameter": SourceKind.URL, "allowed": refusal.allowed}
            raise InvalidSource(f"url: {refusal.reason}.", told) from refusal
        name = PurePosixPath(unquote(target.resource.partition("?")[0])).name or None
        source = VideoSource(
            size_bytes=None,
            sha256=None,
            name=name and name[:255],
            kind=SourceKind.URL,
            address=target.shown,
            received_bytes=0,
            address_sha256=hashlib.sha256(url.encode()).hexdigest(),
            url=url,
        )
        return accept_named(
            source, spool=service.spool, folder=service.folder, store=service.store, request=request
        )

    def _accept_upload(self, upload_id: str, request: JobRequest) -> Job:
        with self._service.uploads.hold(upload_id) as held:
            return accept_upload(held, request, self._service)


def accept_upload(held: HeldUpload, request: JobRequest, service: Service) -> Job:
    """Make a whole upload, held by the caller, the video of a job: see `accept_resumed`."""
    metadata = parse_metadata(held.facts().about.metadata)
    return accept_resumed(
        held,
        spool=service.spool,
        folder=service.folder,
        store=service.store,
        request=request,
        video_name=metadata_text(metadata, *NAME_KEYS),
    )


def _listed(kinds: Sequence[SourceKind]) -> str:
    return " or ".join(f'"{kind}"' for kind in kinds)
