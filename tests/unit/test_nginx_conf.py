"""nginx' configuration, as rendered from the settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from certificates import make_certificate

from app.errors import error_classes
from app.programs.nginx import TEMPLATE, render_nginx_conf
from app.settings import CHECKOUT, GIB, Settings, SettingsFault, load_settings
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
    for threads in (8, 192, 1024):
        settings = Settings(data=tmp_path, http_threads=threads, instance_memory_bytes=8 * GIB)
        text = render_nginx_conf(settings)
        limits = {int(limit) for limit in re.findall(r"limit_conn long_requests (\d+);", text)}
        assert limits == {threads // 2}, "a quarter waits"
        overflow = {int(limit) for limit in re.findall(r"limit_conn overflow_uploads (\d+);", text)}
        assert overflow == {threads // 8}, "an eighth is free"


def test_the_limits_and_times_for_clients_come_from_the_settings(tmp_path: Path):
    folder = DataFolder(tmp_path)
    folder.create()
    settings = Settings(
        data=tmp_path,
        client_long_requests=7,
        client_connections=77,
        max_connections=400,
        client_header_seconds=11,
        client_idle_seconds=222,
        max_wait_seconds=3333,
    )
    text = render_nginx_conf(settings)
    _check(folder, text)
    assert set(re.findall(r"limit_conn long_requests_of_client (\d+);", text)) == {"7"}
    assert set(re.findall(r"limit_conn requests_of_client (\d+);", text)) == {"77"}
    assert re.findall(r"worker_connections (\d+);", text) == ["100"]
    assert re.findall(r"client_header_timeout (\d+)s;", text) == ["11"]
    assert re.findall(r"(?:client_body|send)_timeout (\d+)s;", text)[:2] == ["222", "222"]
    assert set(re.findall(r"proxy_read_timeout (\d{3,})s;", text)) == {
        "3393"
    }  # the application ends it first


def test_no_limit_of_the_template_is_written_in_it_twice():
    """Sizes and numbers of requests come from the settings."""
    template = TEMPLATE.read_text()
    bodies = set(re.findall(r"client_max_body_size ([^;]+);", template))
    ours_to_compare, refused = "0", "1"
    assert bodies == {
        "{{ small_body_bytes }}",
        "{{ settings.max_upload_bytes }}",
        ours_to_compare,
        refused,
    }
    assert not re.findall(r"limit_conn \w+ \d+;", template)
    assert not re.findall(r"(?:client_body|client_header|^ *send)_timeout \d", template)


def test_long_requests_of_one_client_leave_threads_for_others():
    settings = Settings()
    assert settings.client_long_requests <= settings.http_threads // 4


def test_probes_have_no_limits(tmp_path: Path):
    text = render_nginx_conf(Settings(data=tmp_path))
    for probe in ("/livez", "/readyz"):
        (block,) = re.findall(rf"location = {probe} \{{[^}}]*\}}", text)
        assert "limit_conn" not in block


def test_nginx_keeps_idle_connections_for_less_long_than_gunicorn(tmp_path: Path):
    upstream = re.search(
        r"upstream http_workers \{.*?keepalive_timeout (\d+)s;", TEMPLATE.read_text(), re.DOTALL
    )
    gunicorn = re.search(r"^keepalive = (\d+)", (CHECKOUT / "gunicorn.conf.py").read_text(), re.MULTILINE)
    assert upstream is not None
    assert gunicorn is not None
    assert int(upstream[1]) < int(gunicorn[1])


def test_only_proxies_that_are_trusted_may_name_the_client(tmp_path: Path):
    folder = DataFolder(tmp_path)
    folder.create()
    itself = re.findall(r"set_real_ip_from (\S+);", render_nginx_conf(Settings(data=tmp_path)))
    assert itself == ["unix:"]
    text = render_nginx_conf(load_settings(data=tmp_path, trusted_proxies="10.0.0.0/8, 192.0.2.7,::1"))
    _check(folder, text)
    networks = ["unix:", "10.0.0.0/8", "192.0.2.7/32", "::1/128"]
    assert re.findall(r"set_real_ip_from (\S+);", text) == networks


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "proxy.example", "10.0.0.1;"])
def test_a_trusted_proxy_is_an_address_or_a_network(wrong: str):
    with pytest.raises(SettingsFault, match=r"FRAMEBOX_TRUSTED_PROXIES: .*separated by commas"):
        load_settings(trusted_proxies=f"10.0.0.0/8,{wrong}")


@pytest.mark.parametrize("name", ["plain", "with spaces", 'quo"ted', "semi;colon{}#"])
def test_nginx_accepts_tls_with_files_of_any_name(tmp_path: Path, name: str):
    folder = DataFolder(tmp_path)
    folder.create()
    made = make_certificate(tmp_path, name)
    text = render_nginx_conf(Settings(data=tmp_path, tls_certificate=made.certificate, tls_key=made.key))
    _check(folder, text)
    assert "listen 0.0.0.0:8080 ssl " in text
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in text


def test_a_certificate_whose_path_nginx_cannot_write_is_a_fault_of_that_setting(tmp_path: Path):
    with pytest.raises(SettingsFault, match="FRAMEBOX_TLS_KEY"):
        render_nginx_conf(Settings(data=tmp_path, tls_certificate=Path("/a.pem"), tls_key=Path("/$b.pem")))


def test_every_word_of_the_template_is_filled_in(tmp_path: Path):
    template_language = r"\{[{%#]|[}%#]\}|^##"
    assert re.findall(template_language, TEMPLATE.read_text(), re.MULTILINE)
    assert not re.findall(template_language, render_nginx_conf(Settings(data=tmp_path)), re.MULTILINE)


def test_headers_that_only_nginx_may_set_are_set_wherever_it_passes_requests_on(tmp_path: Path):
    text = render_nginx_conf(Settings(data=tmp_path))
    blocks = re.findall(r"location[^{]*\{[^{}]*\}", text)
    own = [block for block in blocks if "proxy_set_header" in block]
    for block in [text[: text.index("location ")], *own]:
        for name in (
            "Framebox-Accel",
            "Framebox-Request-Path",
            "Framebox-Upload-Uri",
            "Framebox-Upload-Length",
            "X-Request-ID",
        ):
            assert f"proxy_set_header {name} " in block


def test_every_refusal_of_the_application_has_its_literal(tmp_path: Path):
    text = render_nginx_conf(Settings(data=tmp_path))
    literal = {int(status) for status in re.findall(r"if \(\$refusal_status = (\d+)\)", text)}
    assert {error.status for error in error_classes().values()} - {
        408,
        409,
        412,
        416,
        414,
        422,
        423,  # of an upload that another request writes to, and
        460,  # of a body whose checksum is another: known once it came
        502,
        504,
    } <= literal
