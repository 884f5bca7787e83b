"""tus without I/O: what headers say, and what an upload takes."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from app.errors import (
    BodyTooLarge,
    FrameboxError,
    InvalidOption,
    OffsetMismatch,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    UploadGone,
    UploadIsFinal,
)
from app.jobs.job import OWNER
from app.storage.uploads import About, UploadFacts
from app.web.tus import (
    CHUNK_TYPE,
    Patch,
    check_patch,
    check_version,
    metadata_text,
    parse_checksum,
    parse_creation,
    parse_metadata,
    parse_patch,
)

LIMIT = 1000
ID, OTHER = "a" * 32, "b" * 32
SHA1 = b64encode(hashlib.sha1(b"x", usedforsecurity=False).digest()).decode()


def facts(offset: int = 0, length: int | None = 100, **about: Any) -> UploadFacts:
    told = About(OWNER, length, **about)
    return UploadFacts(ID, told, offset, (told.job_id or told.final_id) is not None, 0.0)


def creation(body_bytes: int | None = 0, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_creation(Headers(named), limit_bytes=LIMIT, body_bytes=body_bytes)


@pytest.mark.parametrize("version", [None, "", "0.2.2", "1.0", "1.0.0,0.2.2"])
def test_another_version_is_refused(version: str | None):
    headers = Headers() if version is None else Headers({"Tus-Resumable": version})
    with pytest.raises(UnsupportedTusVersion):
        check_version(headers)


def test_an_upload_is_created_with_its_length_or_without():
    assert creation(Upload_Length="7").length_bytes == 7
    assert creation(Upload_Length="0").length_bytes == 0
    assert creation(Upload_Defer_Length="1").length_bytes is None


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, InvalidOption),
        ({"Upload_Length": "-1"}, InvalidOption),
        ({"Upload_Length": "1.5"}, InvalidOption),
        ({"Upload_Length": "٣"}, InvalidOption),
        ({"Upload_Length": "9" * 20}, InvalidOption),
        ({"Upload_Length": str(LIMIT + 1)}, BodyTooLarge),
        ({"Upload_Defer_Length": "0"}, InvalidOption),
        ({"Upload_Length": "1", "Upload_Defer_Length": "1"}, InvalidOption),
        ({"Upload_Length": "1", "Upload_Metadata": "name not-base64"}, InvalidOption),
        ({"Upload_Length": "1", "Upload_Concat": "whole"}, InvalidOption),
        ({"Upload_Concat": "final"}, InvalidOption),
        ({"Upload_Concat": "final;"}, InvalidOption),
        ({"Upload_Concat": "final;/v1/uploads/../../etc"}, InvalidOption),
        ({"Upload_Concat": "final;http://[/" + ID}, InvalidOption),
        ({"Upload_Concat": f"final;{ID} {ID}"}, InvalidOption),
        ({"Upload_Concat": f"final;{ID}", "Upload_Length": "3"}, InvalidOption),
        ({"Upload_Concat": f"finally;{ID}"}, InvalidOption),
    ],
)
def test_a_wrong_creation_is_refused(headers: dict[str, Any], error: type[FrameboxError]):
    with pytest.raises(error):
        creation(**headers)


def test_parts_are_known_by_absolute_and_relative_addresses_in_their_order():
    wanted = creation(Upload_Concat=f"final;https://far.example/x/v1/uploads/{OTHER} /v1/uploads/{ID}")
    assert wanted.parts == (OTHER, ID)
    assert creation(Upload_Concat="partial", Upload_Length="3").parts == ()


def test_bytes_that_come_along_are_the_first_ones():
    body = creation(5, Upload_Length="7", Content_Type=CHUNK_TYPE, Upload_Checksum=f"sha1 {SHA1}").body
    assert body == Patch(0, None, parse_checksum(f"sha1 {SHA1}"), 5)
    assert creation(None, Upload_Length="7", Content_Type=CHUNK_TYPE).body.body_bytes is None
    with pytest.raises(UnsupportedMediaType):
        creation(5, Upload_Length="7")
    with pytest.raises(BodyTooLarge):
        creation(8, Upload_Length="7", Content_Type=CHUNK_TYPE)


@pytest.mark.parametrize("content_type", [CHUNK_TYPE, f"{CHUNK_TYPE}; charset=utf-8", CHUNK_TYPE.upper()])
def test_a_patch_says_where_it_begins(content_type: str):
    headers = Headers({"Content-Type": content_type, "Upload-Offset": "5"})
    assert parse_patch(headers, body_bytes=3) == Patch(5, None, None, 3)


def test_a_patch_without_its_type_or_offset_is_refused():
    with pytest.raises(UnsupportedMediaType):
        parse_patch(Headers({"Upload-Offset": "0"}), body_bytes=3)
    with pytest.raises(InvalidOption):
        parse_patch(Headers({"Content-Type": CHUNK_TYPE}), body_bytes=3)


@pytest.mark.parametrize(
    ("upload", "patch", "left"),
    [
        (facts(0, 100), Patch(0, None, None, 100), 100),
        (facts(40, 100), Patch(40, None, None, None), 60),
        (facts(40, 100), Patch(40, 100, None, 1), 60),
        (facts(100, 100), Patch(100, None, None, 0), 0),
        (facts(40, None), Patch(40, None, None, 10), LIMIT - 40),
        (facts(40, None), Patch(40, 50, None, 10), 10),
        (facts(100, 100, job_id=OTHER), Patch(100, None, None, 0), 0),
    ],
)
def test_an_upload_takes_what_belongs_to_its_end(upload: UploadFacts, patch: Patch, left: int):
    assert check_patch(upload, patch, limit_bytes=LIMIT) == left


@pytest.mark.parametrize(
    ("upload", "patch", "error"),
    [
        (facts(40, 100), Patch(39, None, None, 1), OffsetMismatch),
        (facts(40, 100), Patch(41, None, None, 1), OffsetMismatch),
        (facts(40, 100), Patch(40, None, None, 61), BodyTooLarge),
        (facts(40, 100), Patch(40, 99, None, 1), InvalidOption),
        (facts(40, None), Patch(40, 39, None, 0), InvalidOption),
        (facts(40, None), Patch(40, LIMIT + 1, None, 1), BodyTooLarge),
        (facts(40, None), Patch(40, None, None, LIMIT - 39), BodyTooLarge),
        (facts(100, 100, parts=(OTHER,)), Patch(100, None, None, 0), UploadIsFinal),
        (facts(100, 100, job_id=OTHER), Patch(100, None, None, 1), UploadGone),
    ],
)
def test_an_upload_takes_nothing_else(upload: UploadFacts, patch: Patch, error: type[FrameboxError]):
    with pytest.raises(error):
        check_patch(upload, patch, limit_bytes=LIMIT)


@given(st.integers(0, LIMIT), st.integers(0, LIMIT), st.integers(0, LIMIT), st.integers(0, LIMIT))
def test_no_accepted_patch_leads_beyond_the_length(length: int, offset: int, claimed: int, body: int):
    upload = facts(min(offset, length), length)
    try:
        left = check_patch(upload, Patch(claimed, None, None, body), limit_bytes=LIMIT)
    except FrameboxError:
        assert claimed != upload.offset_bytes or upload.offset_bytes + body > length
    else:
        assert claimed == upload.offset_bytes
        assert upload.offset_bytes + body <= upload.offset_bytes + left == length


KEYS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1, max_size=30
)


@given(st.dictionaries(KEYS, st.binary(max_size=50), max_size=8))
def test_metadata_reads_back(metadata: dict[str, bytes]):
    header = ",".join(f"{key} {b64encode(value).decode()}" for key, value in metadata.items())
    assert parse_metadata(header) == metadata


@given(st.text(max_size=60))
def test_any_metadata_is_read_or_refused(header: str):
    try:
        parse_metadata(header)
    except InvalidOption:
        return
    assert header.isascii()


@pytest.mark.parametrize(
    "header", ["a,a", "a YQ==,a YQ==", ",", "a  YQ==", "a YQ", "a YQ== ,", " ", "ä YQ==", "a " + "A" * 8192]
)
def test_wrong_metadata_is_refused(header: str):
    with pytest.raises(InvalidOption):
        parse_metadata(header)


def test_a_name_is_text():
    assert metadata_text({"name": "ü.mp4".encode()}, "filename", "name") == "ü.mp4"
    assert metadata_text({}, "filename", "name") is None
    with pytest.raises(InvalidOption):
        metadata_text({"filename": b"\xff"}, "filename")


@pytest.mark.parametrize(
    "header", ["", "sha1", "sha1 ", "sha1 YQ==", "crc32 YQ==", f"SHA1 {SHA1}", f"sha256 {SHA1}"]
)
def test_a_wrong_checksum_is_refused(header: str):
    with pytest.raises(InvalidOption):
        parse_checksum(header)
