"""The folder of models, the folder of their exporters' own boxes, and an index of both."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from benchmarks.exporters import scenes

Box = dict[str, Any]  # label, score, box: left, top, right, bottom in pixels of the frame


@dataclass(frozen=True)
class Exports:
    """Where the exports of one run go: `models`, `expected`, `videos` and `scratch` below `folder`."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def prepare(self) -> None:
        for folder in (self.models, self.folder / "expected", self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        scenes.write_videos(self.folder / "videos")

    def has(self, name: str) -> bool:
        return (self.models / name).exists()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Go on with the next export if this one fails; the index says why."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001  # of exporters, which raise anything
            traceback.print_exc()
            self._note(f"## {name}\n\nNOT MADE: {type(error).__name__}: {str(error)[:300]}\n")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)

    def put(self, name: str, made: Path, *, command: str, pipeline: str = "") -> None:
        """Move the file or folder `made` to the models under `name`, at once, and note it."""
        unfinished = self.folder / f".{name}"
        shutil.move(made, unfinished)
        unfinished.rename(self.models / name)
        signature = describe(self.models / name)
        self._note(f"## {name}\n\n`{command}`\n\n{pipeline}\n{signature}\n")

    def expects(self, name: str) -> bool:
        return self._answer(name).exists()

    def _answer(self, name: str) -> Path:
        return self.folder / "expected" / f"{name}.json"

    def expect(
        self,
        name: str,
        find: Callable[[Path, Path], list[list[Box]]],
        videos: Sequence[str] = ("wide.mp4", "tall.mp4"),
    ) -> None:
        """Write what `find` returns for the model and each video: a list of boxes for each frame.

        They are clamped to the frame, as the service's are, and those beside it are left out: networks of
        random weights find some in the grey of a letterbox.
        """
        paths = {video: self.folder / "videos" / video for video in videos}
        frames = {video: within(find(self.models / name, path), path) for video, path in paths.items()}
        self._answer(name).write_text(json.dumps({"videos": frames}))
        for video, found in frames.items():
            count = sum(box["score"] >= 0.4 for boxes in found for box in boxes)
            self._note(f"- {name}: {count} boxes of score ≥ 0.4 expected in {video}\n")

    def _note(self, text: str) -> None:
        with (self.folder / "INDEX.md").open("a", encoding="utf-8") as index:
            index.write(text + "\n")


def frames_of(video: Path) -> Iterator[np.ndarray]:
    """Yield the frames of `video` as OpenCV reads them: (height, width, 3) uint8 BGR."""
    capture = cv2.VideoCapture(str(video))
    while True:
        is_there, frame = capture.read()
        if not is_there:
            break
        yield frame
    capture.release()


def within(frames: list[list[Box]], video: Path) -> list[list[Box]]:
    height, width, _ = next(frames_of(video)).shape
    clamped = [
        [box | {"box": np.clip(box["box"], 0, (width, height) * 2).tolist()} for box in boxes]
        for boxes in frames
    ]
    return [
        [box for box in boxes if box["box"][2] > box["box"][0] and box["box"][3] > box["box"][1]]
        for boxes in clamped
    ]


def describe(path: Path) -> str:
    """Return inputs, outputs and metadata of an ONNX file as lines; of others, their size."""
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
    lines = [f"- {size / 2**20:.1f} MiB"]
    network = path / "model.onnx" if path.is_dir() else path
    if network.suffix == ".onnx" and network.exists():
        model = onnx.load(network, load_external_data=False)
        constants = {tensor.name for tensor in model.graph.initializer}
        for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
            for value in values:
                if value.name not in constants:
                    tensor = value.type.tensor_type
                    shape = [side.dim_param or side.dim_value for side in tensor.shape.dim]
                    element = onnx.TensorProto.DataType.Name(tensor.elem_type)
                    lines.append(f"- {kind} `{value.name}` {element} {shape}")
        lines.append(f"- producer {model.producer_name!r}, opset {[o.version for o in model.opset_import]}")
        lines += [f"- metadata `{entry.key}`: {entry.value[:300]}" for entry in model.metadata_props]
    return "\n".join(lines) + "\n"
