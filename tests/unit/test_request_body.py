"""A request's body on its way from the socket to the spool."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from gunicorn.http.errors import ChunkMissingTerminator, NoMoreData
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BodyTooLarge, EmptyBody, IncompleteBody, InvalidOption, MalformedBody
from app.storage.spool import Upload
from app.web.body import READ_BYTES, body_pieces, receive_multipart, receive_raw

BOUNDARY = b"----edge"


class Sink:
    """An upload that keeps its bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.longest = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def write(self, data: bytes) -> None:
        self.data += data
        self.longest = max(self.longest, len(data))


def _upload() -> tuple[Sink, Upload]:
    sink = Sink()
    return sink, cast("Upload", sink)


def _form(*parts: tuple[bytes, bytes]) -> bytes:
    lines = [b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts]
    return b"".join(lines) + b"--" + BOUNDARY + b"--\r\n"


VIDEO_HEAD = b'Content-Disposition: form-data; name="video"; filename="clip.mp4"\r\nContent-Type: video/mp4'


class BrokenStream(io.BytesIO):
    """Gives its bytes, then fails as gunicorn does."""

    def __init__(self, data: bytes, error: Exception) -> None:
        super().__init__(data)
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data:
            raise self.error
        return data


def test_a_body_is_read_in_pieces_of_one_size():
    class Counting(io.BytesIO):
        sizes: list[Any] = []  # noqa: RUF012

        def read(self, size: int | None = -1) -> bytes:
            self.sizes.append(size)
            return super().read(size)

    data = bytes(2 * READ_BYTES + 5)
    pieces = [*body_pieces(Counting(data), expected_bytes=len(data), limit_bytes=len(data))]
    assert b"".join(pieces) == data
    assert set(Counting.sizes) == {READ_BYTES}


@pytest.mark.parametrize("received", [0, 3, 999])
def test_a_body_shorter_than_its_length_is_incomplete(received: int):
    with pytest.raises(IncompleteBody) as caught:
        list(body_pieces(io.BytesIO(bytes(received)), expected_bytes=1000, limit_bytes=10_000))
    assert caught.value.extensions == {"received_bytes": received, "expected_bytes": 1000}


@pytest.mark.parametrize("error", [NoMoreData(), ChunkMissingTerminator(b""), ConnectionResetError()])
def test_a_connection_that_breaks_is_an_incomplete_body(error: Exception):
    with pytest.raises(IncompleteBody):
        list(body_pieces(BrokenStream(b"abc", error), expected_bytes=None, limit_bytes=10_000))


def test_a_body_without_a_length_is_stopped_at_the_limit():
    with pytest.raises(BodyTooLarge) as caught:
        list(body_pieces(io.BytesIO(bytes(101)), expected_bytes=None, limit_bytes=100))
    assert caught.value.extensions == {"limit_bytes": 100}


def test_an_empty_raw_body_is_refused():
    _, upload = _upload()
    with pytest.raises(EmptyBody):
        receive_raw(iter([]), upload)


@given(
    data=st.binary(min_size=1, max_size=400)
    | st.lists(
        st.sampled_from([b"\r\n", b"--", BOUNDARY, b"--" + BOUNDARY, b"\r", b"\n", b"x"]), min_size=1
    ).map(b"".join),
    cut=st.integers(1, 60),
)
def test_a_forms_video_arrives_byte_for_byte_however_it_is_cut(data: bytes, cut: int):
    if b"\r\n--" + BOUNDARY in data or data.startswith(b"--" + BOUNDARY) or b"\n--" + BOUNDARY in data:
        return  # no client may choose a boundary that is in the data
    if b"\r--" + BOUNDARY in data:
        return
    body = _form((VIDEO_HEAD, data))
    sink, upload = _upload()
    pieces = (body[start : start + cut] for start in range(0, len(body), cut))
    assert receive_multipart(pieces, BOUNDARY, upload) == "clip.mp4"
    assert bytes(sink.data) == data


def test_a_large_form_is_never_held():
    data = bytes(range(256)) * 1024 * 21
    body = _form((VIDEO_HEAD, data))
    sink, upload = _upload()
    pieces = body_pieces(io.BytesIO(body), expected_bytes=len(body), limit_bytes=len(body))
    receive_multipart(pieces, BOUNDARY, upload)
    assert bytes(sink.data) == data
    assert sink.longest <= READ_BYTES + 64 * 1024


@pytest.mark.parametrize("after", [b"", b"  ", b"\r\nepilogue"])
def test_a_last_boundary_that_a_read_cuts_in_two_adds_nothing_to_the_video(after: bytes):
    for cut in range(len(BOUNDARY) + 12):
        head = len(_form((VIDEO_HEAD, b""))) - len(b"\r\n--" + BOUNDARY + b"--\r\n")
        data = bytes(READ_BYTES - head - cut)
        body = _form((VIDEO_HEAD, data)).removesuffix(b"\r\n") + after
        sink, upload = _upload()
        receive_multipart(
            body_pieces(io.BytesIO(body), expected_bytes=len(body), limit_bytes=1 << 30), BOUNDARY, upload
        )
        assert sink.size_bytes == len(data), f"cut {cut} bytes before the end of the first piece"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (_form((b'Content-Disposition: form-data; name="model"', b"x")), InvalidOption),
        (_form((VIDEO_HEAD, b"a"), (VIDEO_HEAD, b"b")), MalformedBody),
        (_form((VIDEO_HEAD, b"")), EmptyBody),
        (b"--" + BOUNDARY + b"--\r\n", EmptyBody),
        (b"no form at all", MalformedBody),
        (_form((VIDEO_HEAD, b"abc"))[:-9], MalformedBody),
        (_form((b"Content-Type: video/mp4", b"abc")), MalformedBody),
        (b"--" + BOUNDARY + b"\r\nX: " + bytes(3 * READ_BYTES), MalformedBody),
        (_form((VIDEO_HEAD, b"abc")) + bytes(3 * READ_BYTES), MalformedBody),
        (b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; name=\xff\r\n\r\n", MalformedBody),
    ],
)
def test_a_form_that_holds_anything_else_is_refused(body: bytes, error: type[Exception]):
    _, upload = _upload()
    pieces = body_pieces(io.BytesIO(body), expected_bytes=len(body), limit_bytes=len(body))
    with pytest.raises(error):
        receive_multipart(pieces, BOUNDARY, upload)
