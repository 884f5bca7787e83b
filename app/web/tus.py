"""tus 1.0.0, the protocol of resumable uploads (https://tus.io/protocols/resumable-upload), without I/O.

Parses a request's headers and decides whether an upload may take its body; raises the client's errors.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

from app.errors import (
    BodyTooLarge,
    InvalidOption,
    OffsetMismatch,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    UploadIsFinal,
)
from app.jobs.intake import used_upload
from app.storage.data_folder import JOB_ID
from app.storage.hashing import ALGORITHMS, Checksum
from app.storage.uploads import UploadFacts

VERSION = "1.0.0"
EXTENSIONS = (
    *("creation", "creation-with-upload", "creation-defer-length"),
    *("termination", "checksum", "expiration", "concatenation"),
)
NAME_KEYS = ("filename", "name")  # metadata keys for the file's name: clients differ
CHUNK_TYPE = "application/offset+octet-stream"

_LARGEST_BYTES = 2**63 - 1  # of a file
_METADATA_CHARACTERS = 8192  # of the header
_METADATA_KEY = re.compile(r"[!-+\--~]{1,128}")  # printable ASCII without space and comma
_NUMBER = re.compile(r"[0-9]{1,19}")
_MAX_PARTS = 200  # that one upload may be joined from


@dataclass(frozen=True, slots=True)
class Patch:
    """A request to append to an upload."""

    offset_bytes: int
    length_bytes: int | None  # of the whole upload, if sent now
    checksum: Checksum | None
    body_bytes: int | None  # None: chunked


@dataclass(frozen=True, slots=True)
class Creation:
    """A request for a new upload."""

    length_bytes: int | None  # None: sent later, or the sum of the parts
    metadata: dict[str, bytes]
    kept_headers: dict[str, str]  # to be repeated in answers to HEAD
    is_part: bool = False
    parts: tuple[str, ...] = ()  # ids of the uploads to join
    body: Patch | None = None  # the first bytes, if sent along


def check_version(headers: Headers) -> None:
    """Raise UnsupportedTusVersion unless the request speaks this version."""
    version = headers.get("Tus-Resumable")
    if version != VERSION:
        what = "names no version of tus" if version is None else f"is of tus {version[:20]}"
        raise UnsupportedTusVersion(
            f"The request {what}; set Tus-Resumable: {VERSION}.", {"allowed": [VERSION]}
        )


def parse_creation(headers: Headers, *, limit_bytes: int, body_bytes: int | None) -> Creation:
    """Return what a POST asks for; `body_bytes` is None for a chunked body.

    Raises InvalidOption, BodyTooLarge, UnsupportedMediaType.
    """
    concat = headers.get("Upload-Concat", "").strip()
    metadata_header = headers.get("Upload-Metadata", "").strip()
    metadata = parse_metadata(metadata_header)
    sent = {"Upload-Metadata": metadata_header, "Upload-Concat": concat}
    kept = {name: value for name, value in sent.items() if value}
    if concat.startswith("final"):
        return Creation(None, metadata, kept, parts=_parse_final(concat, headers, body_bytes))
    if concat not in ("", "partial"):
        raise _invalid("Upload-Concat", "partial, or final; and the addresses of the parts")
    length, deferred = _number(headers, "Upload-Length"), headers.get("Upload-Defer-Length")
    if deferred not in (None, "1"):
        raise _invalid("Upload-Defer-Length", "1, or the header left out")
    if (length is None) == (deferred is None):
        raise _invalid("Upload-Length", "the length in bytes, or else Upload-Defer-Length: 1")
    if length is not None and length > limit_bytes:
        raise _too_long(limit_bytes)
    body = None
    if body_bytes != 0:
        _check_type(headers)
        most_bytes = limit_bytes if length is None else length
        if body_bytes is not None and body_bytes > most_bytes:
            raise _too_long(most_bytes)
        body = Patch(0, None, parse_checksum(headers.get("Upload-Checksum")), body_bytes)
    return Creation(length, metadata, kept, is_part=bool(concat), body=body)


def parse_patch(headers: Headers, *, body_bytes: int | None) -> Patch:
    """Return what a PATCH asks for. Raises InvalidOption, UnsupportedMediaType."""
    _check_type(headers)
    offset = _number(headers, "Upload-Offset")
    if offset is None:
        raise _invalid("Upload-Offset", "the upload's offset, a whole number of bytes")
    return Patch(
        offset, _number(headers, "Upload-Length"), parse_checksum(headers.get("Upload-Checksum")), body_bytes
    )


def check_patch(upload: UploadFacts, patch: Patch, *, limit_bytes: int) -> int:
    """Return the maximum number of bytes that the upload may take from this request.

    Raises UploadIsFinal, OffsetMismatch, UploadGone, BodyTooLarge, or InvalidOption for a length that differs
    from the one sent before.
    """
    if upload.about.parts:
        raise UploadIsFinal("The upload was joined from others; nothing can be added to it.")
    if patch.offset_bytes != upload.offset_bytes:
        raise OffsetMismatch(
            f"The upload's offset is {upload.offset_bytes}, not {patch.offset_bytes}.",
            {"offset_bytes": upload.offset_bytes},
        )
    if upload.is_spent and patch.body_bytes != 0:
        raise used_upload(upload.about.job_id, upload.about.final_id)
    known = upload.about.length_bytes
    if known is not None and patch.length_bytes not in (None, known):
        raise _invalid("Upload-Length", f"{known}, as it was sent before")
    length = patch.length_bytes if known is None else known
    if length is not None and length > limit_bytes:
        raise _too_long(limit_bytes)
    if length is not None and length < upload.offset_bytes:
        raise _invalid("Upload-Length", f"at least {upload.offset_bytes}: that much is here already")
    left = (limit_bytes if length is None else length) - upload.offset_bytes
    if patch.body_bytes is not None and patch.body_bytes > left:
        raise _too_long(left)
    return left


def _too_long(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The upload takes {limit_bytes} bytes at most.", {"limit_bytes": limit_bytes})


def parse_metadata(header: str) -> dict[str, bytes]:
    """Return the values of an Upload-Metadata header, decoded. Raises InvalidOption."""
    allowed = "pairs 'key base64' separated by commas, each key once"
    if len(header) > _METADATA_CHARACTERS:
        raise _invalid("Upload-Metadata", f"at most {_METADATA_CHARACTERS} characters")
    metadata: dict[str, bytes] = {}
    for pair in header.split(",") if header else ():
        key, _, value = pair.strip(" ").partition(" ")
        if not _METADATA_KEY.fullmatch(key) or key in metadata:
            raise _invalid("Upload-Metadata", allowed)
        metadata[key] = _base64("Upload-Metadata", value, allowed)
    return metadata


def metadata_of(upload: UploadFacts) -> dict[str, bytes]:
    """Return the metadata that an upload was created with."""
    return parse_metadata(upload.about.notes.get("Upload-Metadata", ""))


def metadata_text(metadata: Mapping[str, bytes], *keys: str) -> str | None:
    """Return the value of the first of `keys` that is present, as text, if any. Raises InvalidOption."""
    for key in keys:
        if key in metadata:
            try:
                return metadata[key].decode()
            except UnicodeDecodeError as error:
                raise _invalid("Upload-Metadata", f"{key}: text in UTF-8") from error
    return None


def parse_checksum(header: str | None) -> Checksum | None:
    """Return the checksum of an Upload-Checksum header. Raises InvalidOption."""
    if header is None:
        return None
    allowed = f"{' or '.join(ALGORITHMS)}, a space, and the digest in base64"
    algorithm, _, value = header.strip(" ").partition(" ")
    if algorithm not in ALGORITHMS:
        raise _invalid("Upload-Checksum", allowed)
    checksum = Checksum(algorithm, _base64("Upload-Checksum", value, allowed))
    if not checksum.is_complete:
        raise _invalid("Upload-Checksum", allowed)
    return checksum


def _parse_final(header: str, headers: Headers, body_bytes: int | None) -> tuple[str, ...]:
    """Return the ids of the parts. Their addresses may be relative; an absolute one may name any host."""
    if body_bytes != 0 or "Upload-Length" in headers or "Upload-Defer-Length" in headers:
        raise _invalid("Upload-Concat", "a final upload, which has neither a length nor a body of its own")
    kind, separator, addresses = header.partition(";")
    parts = []
    for address in filter(None, addresses.split(" ")):
        try:
            name = urlsplit(address).path.rstrip("/").rpartition("/")[2]
        except ValueError:
            name = ""
        if not JOB_ID.fullmatch(name):
            raise _invalid("Upload-Concat", "final; and the addresses of uploads of this service")
        parts.append(name)
    if kind != "final" or not separator or not 1 <= len(parts) <= _MAX_PARTS or len({*parts}) != len(parts):
        raise _invalid("Upload-Concat", f"final; and the addresses of 1 to {_MAX_PARTS} parts, each once")
    return tuple(parts)


def _check_type(headers: Headers) -> None:
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != CHUNK_TYPE:
        raise UnsupportedMediaType(f"The body's type must be {CHUNK_TYPE}.", {"allowed": [CHUNK_TYPE]})


def _number(headers: Headers, name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > _LARGEST_BYTES:
        raise _invalid(name, f"a whole number from 0 to {_LARGEST_BYTES}")
    return int(text)


def _base64(parameter: str, text: str, allowed: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise _invalid(parameter, allowed) from error


def _invalid(parameter: str, allowed: str | Sequence[str]) -> InvalidOption:
    return InvalidOption(f"{parameter}: must be {allowed}.", {"parameter": parameter, "allowed": allowed})
