"""Settings of the courier that cannot be used are faults at the start, told by name, not by value."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import trustme

from app.programs.preflight import StartFault, check_ca_file
from app.settings import Settings, SettingsFault, load_settings


def secret(size_bytes: int) -> str:
    return f"whsec_{base64.b64encode(bytes(size_bytes)).decode()}"


@pytest.mark.parametrize("size_bytes", [24, 32, 64])
def test_a_secret_has_a_prefix_and_24_to_64_bytes(size_bytes: int) -> None:
    settings = load_settings(webhook_secret=f"{secret(size_bytes)}, {secret(30)}")
    assert [key.get_secret_value() for key in settings.webhook_secret] == [secret(size_bytes), secret(30)]
    assert secret(size_bytes) not in repr(settings)


@pytest.mark.parametrize(
    "value", [secret(23), secret(65), secret(32).removeprefix("whsec_"), "whsec_", "whsec_5ecre7!!", "5ecre7"]
)
def test_any_other_secret_is_a_fault_that_does_not_repeat_it(value: str) -> None:
    with pytest.raises(SettingsFault, match="FRAMEBOX_WEBHOOK_SECRET: must be whsec_") as told:
        load_settings(webhook_secret=value)
    assert value.removeprefix("whsec_") not in str(told.value) or value == "whsec_"


def test_hosts_are_names_addresses_or_networks() -> None:
    allowed = load_settings(allowed_hosts="storage.internal, 10.0.0.0/8,::1").allowed_hosts
    assert allowed == ("storage.internal", "10.0.0.0/8", "::1")
    with pytest.raises(SettingsFault, match="FRAMEBOX_ALLOWED_HOSTS: 'http://a' is not a host name"):
        load_settings(allowed_hosts="a,http://a")


def test_an_authority_of_ones_own_must_be_readable_certificates(tmp_path: Path) -> None:
    check_ca_file(Settings())
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    check_ca_file(Settings(ca_file=tmp_path / "ca.pem"))
    (tmp_path / "garbage").write_text("garbage")
    for name, told in (("garbage", "PEM"), ("nothing", "No such file")):
        with pytest.raises(StartFault, match=rf"FRAMEBOX_CA_FILE: .*{told}"):
            check_ca_file(Settings(ca_file=tmp_path / name))
