"""An instance starts with one command, survives the death of any of its programs, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from instance import CHECKOUT, Instance
from ports import free_port

from app.programs.preflight import StartFault, find_nginx


@pytest.fixture(scope="module")
def module_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance for most tests; its folder's name has what trips up shells."""
    with Instance(tmp_path_factory.mktemp("supervision") / "with space %d ; #", model="none") as running:
        yield running


@pytest.fixture
def instance(module_instance: Instance) -> Instance:
    """The instance, started again if the test before has ended it."""
    if module_instance.has_ended():
        module_instance.stop()
        module_instance.start()
    return module_instance


def serve(**settings: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m app serve`` where it should refuse to start."""
    return subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=CHECKOUT,
        env=os.environ | {f"FRAMEBOX_{name.upper()}": str(value) for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(instance: Instance, name: str) -> psutil.Process:
    """The one process of a program that the supervisor started itself."""
    words = {
        "nginx": ("nginx",),
        "web": ("gunicorn",),
        "engine": ("app", "engine"),
        "courier": ("app", "courier"),
    }[name]
    (process,) = [found for found in instance.find(*words) if found.ppid() == instance.supervisor_pid]
    return process


def is_replaced(instance: Instance, name: str, old: psutil.Process) -> bool:
    try:
        return program(instance, name).pid != old.pid and instance.is_ready()
    except (psutil.NoSuchProcess, ValueError):
        return False


def ended(processes: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.parametrize("name", ["nginx", "web", "engine", "courier"])
def test_a_killed_program_comes_back_and_its_children_are_gone(instance: Instance, name: str) -> None:
    killed = program(instance, name)
    family = [killed, *killed.children(recursive=True)]
    killed.kill()
    assert ended(family, seconds=60), instance.tail()  # before: orphans of nginx answer as if all were well
    instance.wait(lambda: is_replaced(instance, name, killed), 60, f"another {name}")


def test_it_says_where_it_answers_and_how_to_post_a_video(instance: Instance) -> None:
    line = f"curl -F video=@VIDEO.mp4 http://127.0.0.1:{instance.port}/v1/detections"
    instance.wait(lambda: line in instance.log.read_text(), 20, "the curl line in the log")


def test_the_counters_of_all_programs_are_added_up(instance: Instance, clip: Path) -> None:
    assert instance.post(clip, model="none").status_code == 200
    text = requests.get(f"{instance.url}/metrics", timeout=30).text
    counters = dict(re.findall(r"^(framebox_\w+)(?:\{[^}]*\})? ([0-9.e+]+)$", text, re.MULTILINE))
    assert float(counters["framebox_frames_analysed_total"]) >= 500  # counted by the engine
    assert float(counters["framebox_upload_bytes_total"]) >= clip.stat().st_size  # by an HTTP worker


def test_a_second_instance_on_the_same_data_folder_is_refused(instance: Instance) -> None:
    refused = serve(data=instance.data, port=free_port())
    assert refused.returncode == 2
    assert "another instance runs on the data folder" in refused.stderr
    assert instance.is_ready()


def test_a_taken_port_is_named_with_a_way_out(instance: Instance, tmp_path: Path) -> None:
    refused = serve(data=tmp_path / "data", host="127.0.0.1", port=instance.port)
    assert refused.returncode == 2
    assert f"port {instance.port} of 127.0.0.1 is taken" in refused.stderr
    assert "FRAMEBOX_PORT=" in refused.stderr


def test_two_instances_run_side_by_side(instance: Instance, tmp_path: Path) -> None:
    with Instance(tmp_path / "data", model="none") as other:
        assert other.is_ready()
        assert instance.is_ready()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stop_by_ctrl_c_or_sigterm_leaves_no_process(instance: Instance, number: signal.Signals) -> None:
    family = instance.processes()
    os.kill(instance.supervisor_pid, number)
    assert ended(family, seconds=30), instance.tail()


def test_a_killed_supervisor_takes_its_programs_with_it(instance: Instance) -> None:
    family = instance.processes()
    os.kill(instance.supervisor_pid, signal.SIGKILL)
    assert ended(family, seconds=30), instance.tail()
    instance.stop()
    instance.start()
    assert instance.is_ready()


def test_nginx_workers_without_any_parent_give_the_port_to_the_next_start(instance: Instance) -> None:
    nginx = program(instance, "nginx")
    workers = nginx.children()
    supervisor = psutil.Process(instance.supervisor_pid)
    supervisor.suspend()  # it cannot start another
    nginx.kill()
    supervisor.kill()
    assert ended([supervisor, nginx], seconds=10)
    assert workers
    assert all(worker.is_running() for worker in workers), "nothing is left to be cleared up"
    instance.stop()
    instance.start(wait_until_ready=False)
    assert ended(workers, seconds=30), instance.tail()
    instance.wait(instance.is_ready, 90, "the new start is ready")


def test_the_log_arrives_where_standard_output_is_a_socket(tmp_path: Path) -> None:
    """As under systemd. supervisord opens /dev/fd/1, which cannot be done with a socket."""
    ours, theirs = socket.socketpair()
    settings = {"FRAMEBOX_DATA": str(tmp_path / "data"), "FRAMEBOX_PORT": str(free_port())}
    with ours, theirs:
        ours.settimeout(60)
        with subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            cwd=CHECKOUT,
            env=os.environ | settings,
            stdout=theirs.fileno(),
        ) as process:
            theirs.close()
            log = b""
            try:
                while b'"event":"ready"' not in log:
                    chunk = ours.recv(65536)
                    assert chunk, log
                    log += chunk
            finally:
                process.terminate()
            assert process.wait(60) == 0
            while ours.recv(65536):
                pass  # until the last writer has gone


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    refused = serve(port="eighty", decoders=0, data=tmp_path, http_workers=99)
    assert refused.returncode == 2
    assert [line.split(":")[1].strip() for line in refused.stderr.splitlines()] == [
        "FRAMEBOX_PORT",
        "FRAMEBOX_HTTP_WORKERS",
        "FRAMEBOX_DECODERS",
    ]


def test_all_that_stands_in_the_way_of_a_start_is_told_at_once(tmp_path: Path) -> None:
    far = tmp_path.joinpath(*["x" * 40] * 4)
    refused = serve(data=far, models=tmp_path / "none", ingest=f"{tmp_path},{tmp_path}/gone")
    assert refused.returncode == 2
    assert "too long by" in refused.stderr
    assert "FRAMEBOX_MODELS" in refused.stderr
    assert f"FRAMEBOX_INGEST: {tmp_path}/gone" in refused.stderr
    assert not far.exists()


def test_a_machine_without_nginx_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.programs.preflight._SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartFault, match="apt-get install nginx"):
        find_nginx()


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = serve(data=tmp_path / "file" / "data", port=free_port(), host="127.0.0.1")
    assert refused.returncode == 2, refused.stderr
    assert (
        f"FRAMEBOX_DATA: {tmp_path}/file/data cannot be created or written: Not a directory" in refused.stderr
    )
