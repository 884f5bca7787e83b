"""A request's body, from the socket to the spool: read piece by piece, never held in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import chain
from typing import IO

from flask import Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from app.errors import EmptyBody, FrameboxError, IncompleteBody, InvalidOption, MalformedBody, UploadTooSlow
from app.storage.spool import Upload
from app.web.admission import body_too_large
from app.web.upload_pace import UploadPace

# Exactly what gunicorn receives at a time (gunicorn.conf.py): smaller reads copy the rest of its buffer again
# each time. An upload costs a worker five times this size: with a mebibyte, workers took 230 MiB each for 90
# uploads at once; with this they take 75 MiB, at the same speed.
READ_BYTES = 256 * 1024
_ENVELOPE_BYTES = 64 * 1024  # a multipart part's headers
_BEFORE_BOUNDARY_BYTES = 4  # a line break and two dashes
_AFTER_BOUNDARY_BYTES = 128  # dashes, padding and a line break
_PARTS = 20
_DISCARD_SECONDS = 5.0


def body_pieces(
    stream: IO[bytes],
    *,
    expected_bytes: int | None,
    limit_bytes: int,
    watch: AbstractContextManager[UploadPace | None] | None = None,
) -> Iterator[bytes]:
    """Yield the body in pieces of READ_BYTES; only the last may be shorter.

    `expected_bytes` is the Content-Length; None for a chunked body, whose end the server finds.
    Raises IncompleteBody if the client sent less or broke off, BodyTooLarge beyond `limit_bytes`,
    UploadTooSlow if `watch`, made by `PaceKeeper.watch` for pieces of READ_BYTES, has cut it off.
    """
    received = 0
    with watch or nullcontext() as pace:
        while True:
            try:
                with nullcontext() if pace is None else pace.reading():
                    piece = stream.read(READ_BYTES)
            except (OSError, ParseException, BadRequest) as error:  # broken connection, or invalid chunks
                raise _broken_off(received, expected_bytes, pace) from error
            if pace is not None:
                pace.count(len(piece))
            if not piece:
                break
            received += len(piece)
            if received > limit_bytes:
                raise body_too_large(limit_bytes)
            yield piece
        if expected_bytes is not None and received != expected_bytes:
            raise _broken_off(received, expected_bytes, pace)


def _broken_off(received: int, expected_bytes: int | None, pace: UploadPace | None) -> FrameboxError:
    progress = {"received_bytes": received, "expected_bytes": expected_bytes}
    if pace is not None and pace.was_cut:
        minimum = pace.rule.bytes_per_second
        return UploadTooSlow(
            f"The body came at less than {minimum} bytes a second for minutes; try again.",
            {"min_bytes_per_second": minimum, **progress},
        )
    after = "" if expected_bytes is None else f" after {received} of {expected_bytes} bytes"
    return IncompleteBody(f"The body broke off{after}.", progress)


def discard_rest_afterwards(response: Response) -> Response:
    """Send the answer first, then read and drop the rest of the body, for a few seconds at most.

    For `after_this_request`. A server that closes on unread data may destroy its own answer before the peer,
    still sending, reads it: nginx then sends its client 502 (2 in 300 uploads of 50 MB).
    """
    stream, connection = request.stream, request.environ.get("gunicorn.socket")
    if connection is None:
        return response

    @response.call_on_close
    def discard() -> None:
        deadline, usual_timeout = time.monotonic() + _DISCARD_SECONDS, connection.gettimeout()
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

    return response


def receive_raw(pieces: Iterator[bytes], upload: Upload) -> None:
    """Write a body that is the video itself. Raises EmptyBody."""
    for piece in pieces:
        upload.write(piece)
    if not upload.size_bytes:
        raise EmptyBody("The body is empty; send the video.")


def receive_multipart(pieces: Iterator[bytes], boundary: bytes, upload: Upload) -> str | None:
    """Write the file field ``video`` of a multipart body; return the file name that the client gave.

    A piece within the video, which nearly all are, bypasses the decoder, which would copy it three times.
    Raises MalformedBody, InvalidOption for any other field, EmptyBody if the field is missing or empty.
    """
    decoder = MultipartDecoder(boundary, READ_BYTES + _ENVELOPE_BYTES, max_parts=_PARTS)
    video_name, seen_video, in_video = None, False, False
    held = b""  # the end of a piece that bypassed the decoder: a boundary may begin there
    try:
        for piece in chain(whole_boundaries(pieces, boundary), (b"", None)):  # None: the body is complete
            if piece is not None:
                data = held + piece if held else piece
                bypasses = in_video and not decoder.buffer and boundary not in data
                end = max(0, len(data) - len(boundary) - _BEFORE_BOUNDARY_BYTES) if bypasses else 0
                if end:
                    upload.write(memoryview(data)[:end])
                    held = data[end:]
                    continue
                held = b""
            decoder.receive_data(None if piece is None else data)
            while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Data) and in_video:
                    upload.write(event.data)
                    in_video = event.more_data
                elif isinstance(event, Field | File):
                    _check_field(event, seen_video=seen_video)
                    seen_video = in_video = True
                    video_name = event.filename if isinstance(event, File) else None
    except (ValueError, RequestEntityTooLarge) as error:
        raise MalformedBody("The multipart body cannot be read.") from error
    if not upload.size_bytes:
        raise EmptyBody("The form has no video in its field 'video'.")
    return video_name


def _check_field(field: Field | File, *, seen_video: bool) -> None:
    if field.name != "video":
        name = str(field.name)[:80]
        raise InvalidOption(
            f"The form has a field {name!r}; options go into the query string.",
            {"parameter": name, "allowed": ["video"]},
        )
    if seen_video:
        raise MalformedBody("The form has more than one field 'video'.")


def whole_boundaries(pieces: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """Yield the same bytes in pieces that never end shortly after a boundary.

    Werkzeug's decoder treats the line break before a boundary as data if what follows the boundary comes in
    a later piece: an extra carriage return in one of a million uploads.
    """
    delimiter, held = b"--" + boundary, b""
    window = len(delimiter) + _AFTER_BOUNDARY_BYTES
    for piece in pieces:
        data, end = held + piece if held else piece, 0
        if len(data) >= window:
            position = data.rfind(delimiter, len(data) - window)
            end = len(data) if position < 0 else max(0, position - len(b"\r\n"))
        held = data[end:]
        if end:
            yield data[:end] if held else data
    if held:
        yield held
