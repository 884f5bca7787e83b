"""What operators see: log lines and counters."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client.metrics import MetricWrapperBase

from app.logs import configure_logging
from app.metrics import Metrics
from app.settings import CHECKOUT


@pytest.fixture(autouse=True)
def own_logging():
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers.clear()


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_structlog_and_the_standard_library_write_the_same_lines(capfd):
    configure_logging("engine", "INFO")
    with structlog.contextvars.bound_contextvars(job_id="j1"):
        structlog.get_logger().info("segment done", frames=3)
        logging.getLogger("library").warning("cannot %s", "sing")
    ours, theirs = _lines(capfd.readouterr().out)
    assert (ours["event"], ours["frames"], ours["level"]) == ("segment done", 3, "info")
    assert (theirs["event"], theirs["level"]) == ("cannot sing", "warning")
    for line in (ours, theirs):
        assert (line["program"], line["job_id"]) == ("engine", "j1")
        assert line["timestamp"].endswith("Z")


def test_lines_below_the_level_are_not_written(capfd):
    configure_logging("engine", "WARNING")
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    assert capfd.readouterr().out == ""


def test_an_exception_is_one_line_with_its_traceback(capfd):
    configure_logging("engine", "INFO")
    try:
        int("bad\nvalue")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed too")
    lines = _lines(capfd.readouterr().out)
    assert len(lines) == 2
    assert all("ValueError: invalid literal" in line["exception"] for line in lines)


def test_hostile_text_cannot_make_a_second_line(capfd):
    configure_logging("engine", "INFO")
    structlog.get_logger().info("name", value='a\n{"event":"forged"}\x1b[2J\u2028')
    out = capfd.readouterr().out
    assert len(out.splitlines(keepends=True)) == 1 or out.count("\n") == 1
    assert "\x1b" not in out


def test_values_that_json_does_not_know_are_written_as_text(capfd):
    configure_logging("engine", "INFO")
    structlog.get_logger().info("odd", path=Path("/x"), names={"a"})
    (line,) = _lines(capfd.readouterr().out)
    assert "/x" in line["path"]
    assert "a" in line["names"]


def test_a_process_alone_counts_for_itself():
    metrics = Metrics()
    metrics.frames_analysed.inc(3)
    metrics.jobs_ended.labels("failed").inc()
    text = metrics.expose().decode()
    assert "framebox_frames_analysed_total 3.0" in text
    assert 'framebox_jobs_ended_total{state="failed"} 1.0' in text


def test_the_counters_of_several_processes_are_added_up_and_outlive_them(tmp_path: Path):
    count = "from app.metrics import Metrics; metrics = Metrics(); metrics.frames_analysed.inc(5)"
    show = "from app.metrics import Metrics; print(Metrics().expose().decode())"
    for program, script in (("web", count), ("web", count), ("engine", count)):
        _run(script, tmp_path / program)
    assert "framebox_frames_analysed_total 15.0" in _run(show, tmp_path / "web")


def _run(script: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_counters_of_ended_processes_share_one_file_and_lose_nothing(tmp_path: Path):
    """A program that is started again for ever must not fill the disk with its counters."""
    folder = tmp_path / "web"
    count = "from app.metrics import Metrics; metrics = Metrics(); metrics.frames_analysed.inc(5)"
    retire = "from app.metrics import retire_counters; retire_counters()"
    show = "from app.metrics import Metrics; print(Metrics().expose().decode())"
    for _ in range(2):
        for script in (count, count, retire):
            _run(script, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["counter_0.db", "histogram_0.db"]
    assert "framebox_frames_analysed_total 20.0" in _run(show, folder)


def test_a_process_that_finds_no_room_for_its_counters_does_not_spoil_those_of_others(tmp_path: Path):
    full = """if True:
        import errno, os
        from app.metrics import Metrics
        def posix_fallocate(descriptor, offset, length):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.posix_fallocate = posix_fallocate
        try:
            Metrics()
        except OSError:
            print("full")
        """
    show = "from app.metrics import Metrics; print(Metrics().expose().decode())"
    assert _run(full, tmp_path / "web") == "full\n"
    assert list((tmp_path / "web").iterdir()) == []
    assert "framebox_frames_analysed_total 0.0" in _run(show, tmp_path / "web")


METRICS = {name: value for name, value in vars(Metrics()).items() if isinstance(value, MetricWrapperBase)}
SOURCES = "".join(path.read_text() for path in (CHECKOUT / "app").rglob("*.py") if path.name != "metrics.py")


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_fed(name: str):
    assert re.search(rf"metrics\.{name}\.(labels|inc|observe)\b", SOURCES), f"nobody writes {name}"


@pytest.mark.parametrize("name", METRICS)
def test_the_help_of_a_metric_names_its_labels(name: str):
    metric = METRICS[name]
    assert [label for label in metric._labelnames if label not in metric._documentation.split(": ")[0]] == []


def test_the_help_of_the_stages_names_each_that_is_measured():
    stages = set(re.findall(r'_timed\(seconds, "(\w+)"\)', SOURCES))
    help_text = METRICS["stage_seconds"]._documentation
    assert set(re.findall(r"\w+", help_text.split(": ")[1])) == stages
