"""Large documents: plain, by ranges, and compressed for clients that accept it, through the real nginx."""

from __future__ import annotations

import base64
import gzip
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from double_engine import document
from web_instance import WebInstance, running_instance

FRAMES = 20_000  # a megabyte of document
SMALL = 3
GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}
SECONDS = 30.0


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebInstance]:
    with running_instance(tmp_path_factory.mktemp("compression")) as instance:
        yield instance


@pytest.fixture(scope="module")
def expected() -> bytes:
    return b"".join(document(FRAMES))


def _post(instance: WebInstance, frames: int, headers: dict[str, str]) -> requests.Response:
    return requests.post(
        f"{instance.url}/v1/detections", data=b'{"frames": %d}' % frames, headers=headers, timeout=SECONDS
    )


@pytest.fixture(scope="module")
def url(instance: WebInstance) -> str:
    job_id = _post(instance, FRAMES, PLAIN).headers["Framebox-Job"]
    return f"{instance.url}/v1/jobs/{job_id}/result"


def _get(url: str, *headers: dict[str, str], method: str = "GET") -> requests.Response:
    merged = {name: value for given in headers for name, value in given.items()}
    return requests.request(method, url, headers=merged, timeout=SECONDS)


def _digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def _raw(url: str, headers: dict[str, str]) -> bytes:
    with requests.get(url, headers=headers, timeout=SECONDS, stream=True) as answer:
        return answer.raw.read(decode_content=False)


def test_who_accepts_gzip_gets_it_and_unpacks_the_same_bytes(url: str, expected: bytes):
    answer = _get(url, GZIP)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.content == expected
    assert answer.headers["Unencoded-Digest"] == _digest(expected)
    assert answer.headers["Content-Type"] == "application/json"
    packed = _raw(url, GZIP)
    assert gzip.decompress(packed) == expected
    assert len(packed) < len(expected) / 3


def test_a_compressed_document_claims_nothing_that_holds_for_the_plain_one_alone(url: str):
    """RFC 9110, RFC 9530: another representation, so no strong ETag, length, digest or ranges."""
    plain, packed = _get(url, PLAIN), _get(url, GZIP)
    assert packed.headers["ETag"] == f"W/{plain.headers['ETag']}"
    for name in ("Repr-Digest", "Content-Length", "Accept-Ranges"):
        assert name in plain.headers
        assert name not in packed.headers
    for answer in (plain, packed):
        assert answer.raw.headers.getlist("Vary") == ["Accept-Encoding"]
        assert answer.raw.headers.getlist("ETag") == [answer.headers["ETag"]]


def test_the_plain_document_has_its_digest_and_length(url: str, expected: bytes):
    answer = _get(url, PLAIN)
    assert answer.content == expected
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Repr-Digest"] == answer.headers["Unencoded-Digest"] == _digest(expected)
    assert answer.headers["Content-Length"] == str(len(expected))


@pytest.mark.parametrize(
    "accepted", ["identity", "br, zstd", "gzip;q=0", "gzip;q=0.5, identity", "*;q=0.1", ""], ids=str
)
def test_who_does_not_want_gzip_gets_the_plain_document(url: str, accepted: str, expected: bytes):
    answer = _get(url, {"Accept-Encoding": accepted})
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["ETag"].startswith('"')
    assert answer.content == expected


def test_a_range_is_of_the_plain_document_whatever_is_accepted(url: str, expected: bytes):
    answer = _get(url, GZIP, {"Range": "bytes=1000-1999"})
    assert answer.status_code == 206
    assert "Content-Encoding" not in answer.headers
    assert answer.content == expected[1000:2000]
    assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(expected)}"


def test_a_range_of_what_was_compressed_is_not_taken_for_one_of_the_plain_document(url: str, expected: bytes):
    """If-Range compares strongly: who has the start of the compressed one gets the whole plain one."""
    weak = _get(url, GZIP).headers["ETag"]
    answer = _get(url, GZIP, {"Range": "bytes=1000-1999", "If-Range": weak})
    assert (answer.status_code, answer.content) == (200, expected)
    strong = _get(url, PLAIN).headers["ETag"]
    answer = _get(url, GZIP, {"Range": "bytes=1000-1999", "If-Range": strong})
    assert (answer.status_code, answer.content) == (206, expected[1000:2000])


@pytest.mark.parametrize("accept", [GZIP, PLAIN], ids=["gzip", "plain"])
@pytest.mark.parametrize("known", [GZIP, PLAIN], ids=["has gzip", "has plain"])
def test_either_etag_tells_that_the_client_has_the_document(
    url: str, accept: dict[str, str], known: dict[str, str]
):
    etag = _get(url, known).headers["ETag"]
    answer = _get(url, accept, {"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("accept", [GZIP, PLAIN], ids=["gzip", "plain"])
def test_head_tells_what_get_would_send(url: str, accept: dict[str, str]):
    head, get = _get(url, accept, method="HEAD"), _get(url, accept)
    names = ("ETag", "Content-Encoding", "Content-Type", "Vary", "Repr-Digest", "Unencoded-Digest", "Link")
    for name in (*names, "Framebox-Job", "Content-Length", "Content-Disposition"):
        assert head.headers.get(name) == get.headers.get(name), name
    assert head.content == b""


def test_the_answer_to_a_post_is_compressed_too(instance: WebInstance, expected: bytes):
    answer = _post(instance, FRAMES, GZIP)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.content == expected
    assert answer.headers["Framebox-Frames"] == str(FRAMES)


def test_small_documents_stay_plain(instance: WebInstance):
    answer = _post(instance, SMALL, GZIP)
    assert "Content-Encoding" not in answer.headers
    assert "Vary" not in answer.headers
    assert answer.headers["Repr-Digest"] == _digest(answer.content)


@pytest.mark.parametrize("document_format", ["csv", "ndjson"])
def test_other_forms_are_compressed_too(url: str, document_format: str):
    address = f"{url}?format={document_format}"
    plain, packed = _get(address, PLAIN), _get(address, GZIP)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Content-Type"] == plain.headers["Content-Type"]
    assert packed.content == plain.content


def test_curl_unpacks_it(url: str, expected: bytes):
    command = ["curl", "-sS", "--compressed", "-H", "Accept-Encoding: gzip", url]
    assert subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout == expected


def test_it_can_be_switched_off(tmp_path: Path):
    with running_instance(tmp_path, COMPRESS="false") as instance:
        answer = _post(instance, FRAMES, GZIP)
        assert "Content-Encoding" not in answer.headers
        assert "Vary" not in answer.headers


def _stretch(instance: WebInstance, size_bytes: int) -> str:
    """Put a sparse file in a document's place; return its address. What is in it is nobody's affair."""
    job_id = _post(instance, SMALL, PLAIN).headers["Framebox-Job"]
    with instance.folder.result(job_id, "pairs").open("r+b") as file:
        file.truncate(size_bytes)
        file.seek(size_bytes - 4)
        file.write(b"tail")
    return f"{instance.url}/v1/jobs/{job_id}/result"


def test_ranges_reach_beyond_four_gibibytes(instance: WebInstance):
    size = 5 * 1024**3
    url = _stretch(instance, size)
    assert _get(url, PLAIN, method="HEAD").headers["Content-Length"] == str(size)
    answer = _get(url, {"Range": f"bytes={size - 4}-"})
    assert (answer.status_code, answer.content) == (206, b"tail")
    assert answer.headers["Content-Range"] == f"bytes {size - 4}-{size - 1}/{size}"


@pytest.mark.parametrize(("accept", "size"), [(PLAIN, 1024**3), (GZIP, 256 * 1024**2)], ids=["plain", "gzip"])
def test_a_large_document_takes_no_memory_on_its_way(
    instance: WebInstance, accept: dict[str, str], size: int
):
    url = _stretch(instance, size)
    roots = [psutil.Process(instance.programs[name].pid) for name in ("gunicorn", "nginx")]
    processes = [*roots, *(child for root in roots for child in root.children(recursive=True))]
    before = sum(process.memory_info().rss for process in processes)
    with requests.get(url, headers=accept, timeout=SECONDS, stream=True) as answer:
        assert sum(len(piece) for piece in answer.iter_content(1 << 20)) == size
    assert sum(process.memory_info().rss for process in processes) - before < 16 * 1024 * 1024
