"""Every export in one folder, on the defaults: served or refused, and the boxes against its exporter's own.

    make exports
    python -m benchmarks exports build/exports [--only PART] [--score 0.4] [--overlap 0.8]

The folder is what `make exports` writes: `models`, `videos`, and in `expected` for each model the boxes that
its exporter's own pipeline found in the same videos. Both ways: how many of the exporter's boxes of at least
that score the job has too (same label, at that overlap), and how many of the job's the exporter has.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import requests

from benchmarks.census import Instance
from benchmarks.machine import describe_machine

TRIED_SECONDS = 1800.0
LEAST_SCORE = 0.05  # asked for, and in `expected`: a rival may be a little below `--score`

Box = dict[str, Any]  # label, score, box: left, top, right, bottom
Frames = list[list[Box]]


@dataclass(frozen=True)
class Share:
    """How many certain boxes of one answer the other one has too."""

    matched: int = 0
    compared: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.matched + other.matched, self.compared + other.compared)

    def __str__(self) -> str:
        return f"{self.matched}/{self.compared} ({self.matched / self.compared:.1%})" if self.compared else ""


def share(ones: Frames, others: Frames, *, score: float, overlap: float) -> Share:
    """Compare the boxes of `ones` of at least `score` with all of `others`; each of those is taken once."""
    matched = compared = 0
    for one, other in zip(ones, others, strict=True):
        free = list(range(len(other)))
        for found in sorted(one, key=lambda box: -box["score"]):
            if found["score"] < score:
                break
            compared += 1
            rivals = [index for index in free if other[index]["label"] == found["label"]]
            overlaps = _overlaps(found, [other[index] for index in rivals])
            if rivals and overlaps.max() >= overlap:
                matched += 1
                free.remove(rivals[int(overlaps.argmax())])
    return Share(matched, compared)


def _overlaps(found: Box, rivals: list[Box]) -> Any:
    """Return the intersections over unions, (k,)."""
    a, b = np.asarray(found["box"]), np.asarray([rival["box"] for rival in rivals]).reshape(-1, 4)
    shared = (np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2])).clip(min=0).prod(axis=1)
    union = (a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, 1e-9)


@dataclass
class Row:
    """What became of one model."""

    name: str
    outcome: str  # "served", or why not
    ours: Share = Share()  # of the exporter's boxes, those that the job has
    theirs: Share = Share()  # of the job's boxes, those that the exporter has
    seconds: float = 0.0  # of its jobs

    def __str__(self) -> str:
        return f"| {self.name} | {self.outcome} | {self.ours} | {self.theirs} | {self.seconds:.1f} |"


def models_in(folder: Path, only: str) -> dict[str, Path]:
    """Return the path of each model's file or folder by the model's name."""
    paths = [path for path in sorted((folder / "models").iterdir()) if only in path.name]
    return {path.stem if path.is_file() else path.name: path for path in paths}


def gather(paths: list[Path], into: Path) -> None:
    """Link the models into a folder of their own: links that lead out of it are not followed."""
    into.mkdir()
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, into / path.name)
        else:
            os.link(path, into / path.name)


def listed(instance: Instance) -> dict[str, str]:
    """Return "served", or the refusal, of each model that has been tried."""
    answer = requests.get(f"{instance.url}/v1/models", timeout=60).json()
    served = {model["name"]: "served" for model in answer["models"] if model["state"] != "loading"}
    refused = {model["name"]: f"refused: {model['refused']['detail']}" for model in answer["refused"]}
    both = served.keys() & refused.keys()
    return served | refused | {name: f"served and {refused[name]}" for name in both}


def compare(instance: Instance, name: str, expected: Path, videos: Path, chosen: argparse.Namespace) -> Row:
    """Run a job of the model on each video that its exporter's boxes are there for."""
    row = Row(name, "served")
    answers = orjson.loads(expected.read_bytes())["videos"] if expected.exists() else {}
    for video, expected_frames in answers.items():
        answer = instance.post(videos / video, model=name, min_score=LEAST_SCORE)
        row.seconds += answer.elapsed.total_seconds()
        if answer.status_code != 200:
            problem = answer.json()
            outcome = f"{answer.status_code} {problem['code']}: {problem['detail']}"
            return Row(name, outcome, seconds=row.seconds)
        ours, theirs = [boxes for _, boxes in answer.json()], expected_frames
        if not _labels(ours) & _labels(theirs):  # files without labels: the exporter's pipeline has its own
            row.outcome = "served; other labels"
            ours, theirs = _without_labels(ours), _without_labels(theirs)
        options = {"score": chosen.score, "overlap": chosen.overlap}
        row.ours += share(theirs, ours, **options)
        row.theirs += share(ours, theirs, **options)
    return row if answers else Row(name, "served; nothing to compare with")


def _labels(frames: Frames) -> set[str]:
    return {box["label"] for boxes in frames for box in boxes}


def _without_labels(frames: Frames) -> Frames:
    return [[box | {"label": ""} for box in boxes] for boxes in frames]


def rows(folder: Path, chosen: argparse.Namespace) -> Iterator[Row]:
    models = models_in(folder, chosen.only)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        gather(list(models.values()), Path(scratch) / "models")
        with Instance(Path(scratch) / "data", models=Path(scratch) / "models") as instance:
            instance.wait(lambda: models.keys() <= listed(instance).keys(), TRIED_SECONDS, "all models tried")
            for name, path in models.items():
                outcome = listed(instance)[name]
                if "refused" in outcome:
                    yield Row(name, outcome)
                else:
                    expected = folder / "expected" / f"{path.name}.json"
                    yield compare(instance, name, expected, folder / "videos", chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="only models whose file names have this part")
    parser.add_argument("--score", type=float, default=0.4)
    parser.add_argument("--overlap", type=float, default=0.8)
    chosen = parser.parse_args()
    print(describe_machine(), "\n")
    print("| model | outcome | exporter's boxes in the job | job's boxes in the exporter's | seconds |")
    print("|---|---|---|---|---|")
    for row in rows(chosen.folder.resolve(), chosen):
        print(row, flush=True)
