"""The commands that only look: what they print, and what they return."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.programs.preflight import StartFault, check_port
from app.settings import CHECKOUT


@pytest.fixture(autouse=True)
def _no_settings_but_these(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FRAMEBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FRAMEBOX_DATA", str(tmp_path / "data"))


def test_check_config_prints_every_setting_and_the_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["check-config"]) == 0
    printed = capsys.readouterr().out
    assert "FRAMEBOX_PORT=8080\n" in printed
    assert f"FRAMEBOX_DATA={tmp_path}/data\n" in printed
    assert "FRAMEBOX_MODELS=\n" in printed
    assert "# memory: " in printed


def test_check_config_tells_every_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMEBOX_PORT", "0")
    monkeypatch.setenv("FRAMEBOX_LOG_LEVEL", "LOUD")
    assert main(["check-config"]) == 2
    faults = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in faults] == ["FRAMEBOX_PORT", "FRAMEBOX_LOG_LEVEL"]


def test_memory_that_does_not_fit_is_refused_with_the_sum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMEBOX_DECODERS", "16")
    assert main(["check-config"]) == 2
    assert "add up to" in capsys.readouterr().err


def test_render_nginx_prints_the_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMEBOX_PORT", "9123")
    assert main(["render-nginx"]) == 0
    assert "listen 0.0.0.0:9123" in capsys.readouterr().out


def test_the_health_of_what_does_not_run_is_bad(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["health-engine"]) == 1
    assert main(["health-web"]) == 1
    assert not (tmp_path / "data").exists(), "looking changes nothing"
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("arguments", [[], ["sing"], ["engine", "--loud"]])
def test_what_is_no_command_ends_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: python -m app" in capsys.readouterr().err


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(StartFault, match=r"port 8080 of 192\.0\.2\.1 cannot be used: "):
        check_port("192.0.2.1", 8080)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("FRAMEBOX_DEVICES", "cuda:99", "there is no device 'cuda:99'; torch"),
        ("FRAMEBOX_MODEL", "nothing", "There is no model 'nothing'. There are: hog-people, none."),
    ],
)
def test_an_engine_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, setting: str, value: str, told: str
) -> None:
    environment = {**os.environ, "FRAMEBOX_DATA": str(tmp_path / "data"), setting: value}
    command = [sys.executable, "-m", "app", "engine"]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith(f"framebox: {setting}: {told}")
