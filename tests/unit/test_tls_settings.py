"""A certificate that cannot be used is a fault at the start, told by the setting that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate

from app.programs.preflight import StartFault, check_tls
from app.settings import Settings, SettingsFault, load_settings


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificates"), "good")


def _check(certificate: Path, key: Path) -> None:
    check_tls(Settings(tls_certificate=certificate, tls_key=key))


def test_a_certificate_with_its_key_is_taken(good: Certificate):
    _check(good.certificate, good.key)


def test_without_tls_there_is_nothing_to_check():
    check_tls(Settings())


@pytest.mark.parametrize("alone", ["tls_certificate", "tls_key"])
def test_one_without_the_other_is_a_fault(alone: str):
    with pytest.raises(SettingsFault, match="go together"):
        load_settings(**{alone: "/file.pem"})


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch):
    """Files of variables have lines without a value."""
    for name in ("TLS_CERTIFICATE", "TLS_KEY", "MODELS", "PORT"):
        monkeypatch.setenv(f"FRAMEBOX_{name}", "")
    assert load_settings() == Settings(tls_certificate=None, tls_key=None, models=None, port=8080)


def test_every_missing_file_is_told(tmp_path: Path):
    with pytest.raises(StartFault) as told:
        _check(tmp_path / "a", tmp_path / "b")
    assert [line.partition(":")[0] for line in str(told.value).splitlines()] == [
        "FRAMEBOX_TLS_CERTIFICATE",
        "FRAMEBOX_TLS_KEY",
    ]


def test_the_key_of_another_certificate_is_told(good: Certificate, tmp_path: Path):
    other = make_certificate(tmp_path, "other")
    with pytest.raises(StartFault, match=r"FRAMEBOX_TLS_KEY: .*other.key is not the key of"):
        _check(good.certificate, other.key)


def _swapped(good: Certificate, _: Path) -> tuple[Path, Path]:
    return good.key, good.certificate


def _garbage(good: Certificate, folder: Path) -> tuple[Path, Path]:
    (folder / "garbage").write_bytes(b"\x00garbage")
    return folder / "garbage", good.key


def _encrypted(_: Certificate, folder: Path) -> tuple[Path, Path]:
    made = make_certificate(folder, "secret", password="secret")  # noqa: S106 - of a file that lives seconds
    return made.certificate, made.key


@pytest.mark.parametrize("spoil", [_swapped, _garbage, _encrypted])
def test_what_is_no_certificate_and_key_is_told(
    good: Certificate, tmp_path: Path, spoil: Callable[[Certificate, Path], tuple[Path, Path]]
):
    with pytest.raises(StartFault, match="not a certificate and an unencrypted key in PEM"):
        _check(*spoil(good, tmp_path))
