"""TLS as it is switched on: two settings, and the port speaks HTTPS alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate
from double_engine import document
from raw_http import exchange
from web_instance import WebInstance, running_instance

from app.programs.address import Address
from app.programs.health import ask_instance


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificates"), "it's mine")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[WebInstance]:
    files = {"TLS_CERTIFICATE": str(certificate.certificate), "TLS_KEY": str(certificate.key)}
    with running_instance(tmp_path_factory.mktemp("tls"), **files) as instance:
        yield instance


def _curl(instance: WebInstance, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["curl", "-sS", "-m", "30", *arguments, f"{instance.url}/v1/detections"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_client_that_knows_the_certificate_gets_its_answer(instance: WebInstance, tmp_path: Path):
    video = tmp_path / "video"
    video.write_bytes(b'{"frames": 5}')
    answer = _curl(instance, "--cacert", str(instance.certificate), "-T", str(video), "-X", "POST")
    assert (answer.returncode, answer.stdout.encode()) == (0, b"".join(document(5)))


def test_a_client_that_does_not_know_it_sends_nothing(instance: WebInstance):
    assert _curl(instance, "-d", "x").returncode == 60  # CURLE_PEER_FAILED_VERIFICATION


@pytest.mark.parametrize(("version", "is_spoken"), [("1.1", False), ("1.2", True), ("1.3", True)])
def test_old_versions_are_not_spoken(instance: WebInstance, version: str, is_spoken: bool):
    tls = ["--tls-max", version, f"--tlsv{version}", "--ciphers", "DEFAULT@SECLEVEL=0"]
    answer = _curl(instance, "--cacert", str(instance.certificate), *tls)
    assert (answer.returncode == 0) is is_spoken


def test_who_speaks_plain_http_is_told_so_by_a_problem_document(instance: WebInstance):
    answer = exchange(instance.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.problem["code"]) == (400, "bad_request")
    assert "https://" in answer.problem["detail"]


def test_the_instance_asks_itself_how_it_is_by_the_certificate_it_shows(
    instance: WebInstance, certificate: Certificate, tmp_path: Path
):
    ready, answer = ask_instance(Address("0.0.0.0", instance.port, certificate.certificate))  # noqa: S104
    assert ready
    assert json.loads(answer)["ready"] is True
    other = make_certificate(tmp_path, "other")
    ready, answer = ask_instance(Address("127.0.0.1", instance.port, other.certificate))
    assert not ready
    assert "CERTIFICATE_VERIFY_FAILED" in answer
