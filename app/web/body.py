"""A request's body, from the socket to the spool: read a piece at a time, never held."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import IO

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from app.errors import EmptyBody, IncompleteBody, InvalidOption, MalformedBody, UploadTooSlow
from app.storage.spool import Upload
from app.web.admission import body_too_large
from app.web.pace import PaceRule, UploadPace

# Exactly what gunicorn receives at a time (gunicorn.conf.py): smaller reads copy the rest of its buffer again
# each time. An upload costs a worker five times as much; 90 at once took 230 MiB each with a mebibyte, and
# take 75 MiB with this, at the same speed.
READ_BYTES = 256 * 1024
_ENVELOPE_BYTES = 64 * 1024  # a multipart part's headers
_BEFORE_BOUNDARY_BYTES = 4  # a line break and two dashes
_AFTER_BOUNDARY_BYTES = 128  # dashes, padding and a line break
_PARTS = 20


def body_pieces(
    stream: IO[bytes],
    *,
    expected_bytes: int | None,
    limit_bytes: int,
    watch: AbstractContextManager[UploadPace | None] | None = None,
) -> Iterator[bytes]:
    """Yield the body, in pieces of READ_BYTES but for the last.

    `expected_bytes` is the Content-Length; None for a chunked body, which the server ends.
    Raises IncompleteBody if the client sent less or broke off, BodyTooLarge beyond `limit_bytes`,
    UploadTooSlow if `watch`, made by `PaceKeeper.watch` for pieces of READ_BYTES, has cut it off.
    """
    with watch or nullcontext() as pace:
        try:
            yield from _pieces(stream, pace, expected_bytes=expected_bytes, limit_bytes=limit_bytes)
        except IncompleteBody as error:
            if pace is not None and pace.was_cut:
                raise _too_slow(pace.rule, error) from error
            raise


def _pieces(
    stream: IO[bytes], pace: UploadPace | None, *, expected_bytes: int | None, limit_bytes: int
) -> Iterator[bytes]:
    received = 0
    while piece := _read_in_time(stream, pace, received, expected_bytes):
        received += len(piece)
        if received > limit_bytes:
            raise body_too_large(limit_bytes)
        yield piece
    if expected_bytes is not None and received != expected_bytes:
        raise _incomplete(received, expected_bytes)


def discard_rest(stream: IO[bytes], connection: socket.socket | None, *, seconds: float) -> None:
    """Read on after a refusal, for `seconds` at most, until the peer ends or breaks off its body.

    A server that closes on unread data may destroy its own answer before the peer, still sending, reads it:
    nginx then tells its client 502 (2 in 300 uploads of 50 MB). Call it once the answer is out.
    """
    if connection is None:
        return
    deadline, usual_timeout = time.monotonic() + seconds, connection.gettimeout()
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not stream.read(READ_BYTES):
                return
    except (OSError, ParseException, BadRequest):
        return  # it broke off, or time ran out
    finally:
        with suppress(OSError):
            connection.settimeout(usual_timeout)


def receive_raw(pieces: Iterator[bytes], upload: Upload) -> None:
    """Write a body that is the video itself. Raises EmptyBody if there is nothing in it."""
    for piece in pieces:
        upload.write(piece)
    if not upload.size_bytes:
        raise EmptyBody("The body is empty; send the video.")


def receive_multipart(pieces: Iterator[bytes], boundary: bytes, upload: Upload) -> str | None:
    """Write the file field ``video`` of a multipart body; return the file name that the client gave.

    Raises MalformedBody, InvalidOption for any other field, EmptyBody if the field is missing or empty.
    """
    reader = _MultipartReader(boundary, upload)
    try:
        for piece in whole_boundaries(pieces, boundary):
            reader.take(piece)
        reader.end()
    except (ValueError, RequestEntityTooLarge) as error:
        raise MalformedBody("The multipart body cannot be read.") from error
    if not upload.size_bytes:
        raise EmptyBody("The form has no video in its field 'video'.")
    return reader.video_name


def whole_boundaries(pieces: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """Yield the same bytes in pieces that never end shortly after a boundary.

    Werkzeug's decoder takes the line break before a boundary for data if what follows the boundary comes in
    a later piece: a carriage return too many in one of a million uploads.
    """
    delimiter, held = b"--" + boundary, b""
    for piece in pieces:
        data = held + piece if held else piece
        end = _safe_end(data, delimiter)
        held = data[end:]
        if end:
            yield data[:end] if held else data
    if held:
        yield held


def _safe_end(data: bytes, delimiter: bytes) -> int:
    """How much of `data` may be decoded before more has come."""
    window = len(delimiter) + _AFTER_BOUNDARY_BYTES
    if len(data) < window:
        return 0
    position = data.rfind(delimiter, len(data) - window)
    return len(data) if position < 0 else max(0, position - len(b"\r\n"))


class _MultipartReader:
    """What has been met of a multipart body.

    Where a piece lies within the video, which is nearly always, it passes the decoder by: that would copy it
    three times.
    """

    def __init__(self, boundary: bytes, upload: Upload) -> None:
        self.video_name: str | None = None
        self._decoder = MultipartDecoder(boundary, READ_BYTES + _ENVELOPE_BYTES, max_parts=_PARTS)
        self._boundary = boundary
        self._upload = upload
        self._held = b""  # the end of a piece that passed by, where a boundary may begin
        self._in_video = False
        self._seen_video = False

    def take(self, piece: bytes) -> None:
        """Act on all that can be told so far."""
        if self._held:
            piece = self._held + piece
        passes_by = self._in_video and not self._decoder.buffer and self._boundary not in piece
        end = max(0, len(piece) - len(self._boundary) - _BEFORE_BOUNDARY_BYTES) if passes_by else 0
        if end:
            self._upload.write(memoryview(piece)[:end])
            self._held = piece[end:]
        else:
            self._held = b""
            self._decoder.receive_data(piece)
            self._take_events()

    def end(self) -> None:
        """Act on what is left. The body is whole."""
        if self._held:
            self._decoder.receive_data(self._held)
            self._take_events()
        self._decoder.receive_data(None)
        self._take_events()

    def _take_events(self) -> None:
        while not isinstance(event := self._decoder.next_event(), NeedData | Epilogue):
            if isinstance(event, Field | File):
                self._begin_part(event)
            elif isinstance(event, Data) and self._in_video:
                self._upload.write(event.data)
                self._in_video = event.more_data

    def _begin_part(self, part: Field | File) -> None:
        if part.name != "video":
            raise InvalidOption(
                f"The form has a field {str(part.name)[:80]!r}; options go into the query string.",
                {"parameter": str(part.name)[:80], "allowed": ["video"]},
            )
        if self._seen_video:
            raise MalformedBody("The form has more than one field 'video'.")
        self._seen_video = self._in_video = True
        self.video_name = part.filename if isinstance(part, File) else None


def _read_in_time(
    stream: IO[bytes], pace: UploadPace | None, received: int, expected_bytes: int | None
) -> bytes:
    if pace is None:
        return _read(stream, received, expected_bytes)
    with pace.reading():
        piece = _read(stream, received, expected_bytes)
    pace.count(len(piece))
    return piece


def _read(stream: IO[bytes], received: int, expected_bytes: int | None) -> bytes:
    try:
        return stream.read(READ_BYTES)
    except (
        OSError,
        ParseException,
        BadRequest,
    ) as error:  # the connection broke, or the chunks make no sense
        raise _incomplete(received, expected_bytes) from error


def _too_slow(rule: PaceRule, error: IncompleteBody) -> UploadTooSlow:
    return UploadTooSlow(
        f"The body came at less than {rule.bytes_per_second} bytes a second for minutes; try again.",
        {"min_bytes_per_second": rule.bytes_per_second, **error.extensions},
    )


def _incomplete(received: int, expected_bytes: int | None) -> IncompleteBody:
    if expected_bytes is None:
        return IncompleteBody("The body broke off.", {"received_bytes": received, "expected_bytes": None})
    return IncompleteBody(
        f"The body broke off after {received} of {expected_bytes} bytes.",
        {"received_bytes": received, "expected_bytes": expected_bytes},
    )
