"""The tutorial's commands run as they stand there, its script draws, and its numbers are right."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from instance import CHECKOUT, Instance

from app.programs.health import announce

PAGE = (CHECKOUT / "docs" / "tutorial.md").read_text()
ADDRESS = "http://localhost:8080"
SVG = "{http://www.w3.org/2000/svg}"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def frames_of(text: str) -> list[Any]:
    """Lines of a document: as many JSON arrays, separated by commas."""
    frames: list[Any] = json.loads(f"[{text.strip().removesuffix(',')}]")
    return frames


def labels_of(frames: list[Any]) -> list[tuple[int, list[str]]]:
    return [(frame_id, [box["label"] for box in boxes]) for frame_id, boxes, _ in frames]


class Followed:
    """A folder in which all steps of the page were done, and what they printed."""

    def __init__(self, folder: Path, instance: Instance) -> None:
        self.folder = folder
        (folder / "docs").symlink_to(CHECKOUT / "docs")
        (script,) = blocks("python")
        (folder / "plot_counts.py").write_text(script)
        self.start, *commands = [block.strip() for block in blocks("sh")]
        self.sent, self.shown, self.printed = (self._run(line, instance) for line in commands)
        self.frames = json.loads((folder / "boxes.json").read_text())

    def _run(self, line: str, instance: Instance) -> str:
        line = line.replace(ADDRESS, instance.url).replace("curl ", "curl --fail-with-body ", 1)
        done = subprocess.run(
            ["bash", "-c", line.replace("python3", sys.executable)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, shared_instance: Instance) -> Followed:
    return Followed(tmp_path_factory.mktemp("tutorial"), shared_instance)


def test_the_service_is_started_as_the_page_says_and_answers_so(followed: Followed) -> None:
    assert followed.start == "make serve"
    assert "\nserve:" in (CHECKOUT / "Makefile").read_text()
    (shown,) = re.findall(r"^    (Framebox answers .*)$", PAGE, re.MULTILINE)
    welcome = inspect.getsource(announce).replace("{address.url}", ADDRESS)
    assert shown in welcome


def test_the_lines_that_are_shown_are_those_that_come(followed: Followed) -> None:
    (told,) = blocks("json")
    shown, found = frames_of(told), frames_of(followed.shown)
    assert labels_of(found) == labels_of(shown)  # another processor may round boxes another way
    assert [time for *_, time in found] == [time for *_, time in shown]


def test_the_counts_that_are_printed_are_those_of_the_answer(followed: Followed) -> None:
    assert len(followed.frames) == 96
    counts = [len(boxes) for _, boxes, _ in followed.frames]
    lines = [f"{n} boxes: {counts.count(n)} of 96 frames" for n in range(max(counts) + 1)]
    assert followed.printed.splitlines() == lines


def test_the_counts_that_are_shown_are_those_that_are_printed(followed: Followed) -> None:
    """But for a frame or two whose score is at the threshold, where another processor rounds another way."""
    (told,) = blocks("text")
    shown, found = (list(map(int, re.findall(r": (\d+) of", text))) for text in (told, followed.printed))
    assert len(shown) == len(found)
    assert max(abs(left - right) for left, right in zip(shown, found, strict=True)) <= 2


@pytest.mark.parametrize("name", ["drawn", "shown"])
def test_the_plot_is_well_formed_and_has_a_point_for_every_frame(followed: Followed, name: str) -> None:
    folder = followed.folder if name == "drawn" else CHECKOUT / "docs"
    root = ElementTree.parse(folder / "counts.svg").getroot()  # noqa: S314 - our own script has written it
    assert root.tag == f"{SVG}svg"
    (line,) = root.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == 96
    assert [x for x, _ in points] == sorted({x for x, _ in points})
    assert len({y for _, y in points}) == len({len(boxes) for _, boxes, _ in followed.frames})
    assert [text.text for text in root.iter(f"{SVG}text")][-1] == "7 s"


def test_the_script_is_short() -> None:
    (script,) = blocks("python")
    assert len([line for line in script.splitlines() if line]) <= 35
