"""nginx' configuration, as rendered from the settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from app.errors import FrameboxError
from app.nginx import TEMPLATE, render_nginx_conf
from app.settings import Settings, SettingsFault
from app.storage.data_folder import DataFolder


def _check(folder: DataFolder, text: str) -> None:
    configuration = folder.run / "nginx.conf"
    configuration.write_text(text)
    command = ["nginx", "-t", "-q", "-e", "stderr", "-p", str(folder.run), "-c", str(configuration)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", ["data", "with spaces", 'quo"ted', "back\\slash", "semi;colon{}#", "ümläut"])
def test_nginx_accepts_the_configuration_of_any_data_folder(tmp_path: Path, name: str):
    folder = DataFolder(tmp_path / name)
    folder.create()
    _check(folder, render_nginx_conf(Settings(data=folder.root)))


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "::", "::1"])  # noqa: S104
def test_nginx_listens_on_addresses_of_either_kind(tmp_path: Path, host: str):
    folder = DataFolder(tmp_path)
    folder.create()
    _check(folder, render_nginx_conf(Settings(data=tmp_path, host=host, port=18080)))


def test_a_path_that_nginx_cannot_write_is_a_fault_of_the_settings(tmp_path: Path):
    with pytest.raises(SettingsFault, match="FRAMEBOX_DATA"):
        render_nginx_conf(Settings(data=tmp_path / "cash$"))


def test_one_setting_drives_the_limit_and_what_is_told_of_it(tmp_path: Path):
    text = render_nginx_conf(Settings(data=tmp_path, max_upload_bytes=123456))
    assert "client_max_body_size 123456;" in text
    assert '"limit_bytes": 123456' in text


def test_fewer_requests_may_wait_than_a_worker_has_threads(tmp_path: Path):
    for threads in (4, 128, 1024):
        text = render_nginx_conf(Settings(data=tmp_path, http_threads=threads))
        limits = {int(limit) for limit in re.findall(r"limit_conn long_requests (\d+);", text)}
        assert len(limits) == 1
        assert 1 <= limits.pop() < threads


def test_every_word_of_the_template_is_filled_in(tmp_path: Path):
    assert re.findall(r"@[A-Z_]+@", TEMPLATE.read_text())
    assert not re.findall(r"@[A-Z_]+@", render_nginx_conf(Settings(data=tmp_path)))


def test_headers_that_only_nginx_may_set_are_set_wherever_it_passes_requests_on(tmp_path: Path):
    text = render_nginx_conf(Settings(data=tmp_path))
    blocks = re.findall(r"location[^{]*\{[^{}]*\}", text)
    own = [block for block in blocks if "proxy_set_header" in block]
    for block in [text[: text.index("location ")], *own]:
        for name in ("Framebox-Accel", "Framebox-Upload-Uri", "Framebox-Upload-Length", "X-Request-ID"):
            assert f"proxy_set_header {name} " in block


def test_every_refusal_of_the_application_has_its_literal(tmp_path: Path):
    text = render_nginx_conf(Settings(data=tmp_path))
    literal = {int(status) for status in re.findall(r"if \(\$refusal_status = (\d+)\)", text)}
    assert {error.status for error in _all_errors(FrameboxError)} - {
        409,
        412,
        416,
        414,
        422,
        502,
        504,
    } <= literal


def _all_errors(root: type[FrameboxError]) -> set[type[FrameboxError]]:
    return {root}.union(*(_all_errors(error) for error in root.__subclasses__()))
