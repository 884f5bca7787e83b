"""The commands of the README and of docs/api.md run, their output is right, their tables are complete."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from instance import CHECKOUT, Instance

from app.settings import Settings
from app.web.openapi import openapi_path
from app.web.options import option_names
from app.web.routes import ROUTES

README = (CHECKOUT / "README.md").read_text()
API = (CHECKOUT / "docs" / "api.md").read_text()
ADDRESS = "http://localhost:8080"

Pairs = list[tuple[int, list[dict[str, Any]]]]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the lines of the page's shell blocks; lines that end with a backslash are joined."""
    return [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]


def curl_lines(page: str) -> list[str]:
    return [line for line in commands(page) if line.startswith("curl ")]


def run(line: str, instance: Instance, folder: Path, **words: str) -> str:
    """Run a line of a page against `instance` in `folder`; return what it prints. Fails if curl does."""
    for word, value in words.items():
        line = line.replace(word, value)
    line = line.replace(ADDRESS, instance.url).replace("curl ", "curl --fail-with-body ", 1)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has docs/, as the checkout has, and may be written."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").symlink_to(CHECKOUT / "docs")
    return folder


def test_the_example_gives_the_answer_that_is_shown(shared_instance: Instance, folder: Path) -> None:
    (shown,) = map(json.loads, blocks(README, "json"))
    found = json.loads(run(curl_lines(README)[0], shared_instance, folder))
    assert as_text(found) == as_text(shown)
    assert differences(found, shown) < 1.0  # another processor may round another way


def as_text(pairs: Pairs) -> list[tuple[int, list[str]]]:
    return [(frame_id, [box["label"] for box in boxes]) for frame_id, boxes in pairs]


def differences(left: Pairs, right: Pairs) -> float:
    """The largest difference of two coordinates, in pixels, or of two scores, in hundredths."""
    largest = 0.0
    for (_, boxes), (_, others) in zip(left, right, strict=True):
        for box, other in zip(boxes, others, strict=True):
            largest = max(largest, 100 * abs(box["score"] - other["score"]))
            largest = max(largest, *(abs(a - b) for a, b in zip(box["box"], other["box"], strict=True)))
    return largest


def test_the_headers_are_those_that_are_shown(shared_instance: Instance, folder: Path) -> None:
    (shown,) = blocks(API, "http")
    (line,) = [line for line in curl_lines(API) if " -D - " in line]
    found = run(line, shared_instance, folder)
    assert header_names(found) == header_names(shown)
    for constant in ("HTTP/1.1 200 OK", "Framebox-Frames: 8", "Framebox-Complete: true"):
        assert constant in shown
        assert constant in found
    assert len(json.loads((folder / "answer.json").read_text())) == 8


def header_names(text: str) -> list[str]:
    return re.findall(r"^([A-Za-z-]+):", text, re.MULTILINE)


def test_the_other_commands_of_the_readme_run(shared_instance: Instance, folder: Path) -> None:
    posted, events, table = curl_lines(README)[1:]
    answer = run(posted, shared_instance, folder)
    assert "HTTP/1.1 202" in answer
    job_id = re.search(r"^Framebox-Job: (\w+)", answer, re.MULTILINE)
    assert job_id is not None
    assert "event: end" in run(events, shared_instance, folder, JOB=job_id[1])
    assert len(run(table, shared_instance, folder, JOB=job_id[1]).splitlines()) > 1


@pytest.mark.parametrize("line", curl_lines(API))
def test_every_command_of_the_reference_runs(shared_instance: Instance, folder: Path, line: str) -> None:
    assert run(line, shared_instance, folder)


def test_the_commands_for_people_are_targets_of_the_makefile() -> None:
    lines = [line for line in commands(README) if not line.startswith("curl ")]
    assert lines == ["make serve", "make test"]
    makefile = (CHECKOUT / "Makefile").read_text()
    assert all(f"\n{line.removeprefix('make ')}:" in makefile for line in lines)


def test_every_route_and_no_other_is_in_the_table() -> None:
    told = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS) /[^` ]*)`", API))
    there = {f"{route.method} {openapi_path(route.rule)}" for route in ROUTES if route.is_public}
    assert told == there


def test_every_option_and_no_other_is_in_the_table() -> None:
    (table,) = re.findall(r"^\| option \|.*?\n(?=\n)", API, re.MULTILINE | re.DOTALL)
    told = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == set(option_names())


def test_the_limits_are_those_of_the_settings() -> None:
    settings = Settings()
    assert f"{settings.max_upload_bytes // 10**9} GB" in API
    assert settings.max_pixels == 8192 * 4320
    assert f"{settings.max_side} a side" in API
    assert f"{settings.max_frames // 10**6} million" in API
    assert f"| {settings.max_active_jobs:,} |" in API
    named = set(re.findall(r"FRAMEBOX_([A-Z_]+)", README + API))
    assert named <= {name.upper() for name in Settings.model_fields}


def test_every_link_to_a_file_leads_to_one() -> None:
    for page in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_picture_is_small() -> None:
    assert (CHECKOUT / "docs" / "frames.jpg").stat().st_size < 300_000
