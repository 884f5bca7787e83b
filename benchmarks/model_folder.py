"""A folder of many models, some of them broken: how soon the service is ready, and what its jobs notice.

    make exports
    python -m benchmarks model_folder build/exports VIDEO [--models 26] [--seconds 3600]

Takes models that `make exports` wrote, spread over the formats, and adds four: a truncated one, one that
loops for ever when it is loaded, one of 20 GB, and one that calls abort. While they are tried, jobs of the
default model run one after the other. Prints the seconds until the service was ready and until each model
was served or refused, how long the jobs took meanwhile and afterwards, and the most memory of all processes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.census import Instance
from benchmarks.exports import gather, listed
from benchmarks.machine import describe_machine

MIB = 1024 * 1024
LOOK_SECONDS = 0.5
HUGE_BYTES = 20_000 * MIB
CODE = """
import os

class Model:
    class_names, default_min_score, batch_size, precision = ("thing",), 0.5, 1, "float32"

    def __init__(self, folder, device):
        {}

    def frame_size(self, width, height):
        return width, height

    def detect(self, frames):
        return []
"""


def add_broken_ones(models: Path, whole: Path) -> None:
    content = whole.read_bytes()
    (models / f"truncated{whole.suffix}").write_bytes(content[: len(content) // 2])
    with (models / "huge.onnx").open("wb") as file:
        file.truncate(HUGE_BYTES)  # without taking room on the disk
    for name, loading in (("endless", "while True: pass"), ("aborting", "os.abort()")):
        (models / name).mkdir()
        (models / name / "framebox.toml").write_text(f'entry_point = "{name}_model:Model"\n')
        (models / name / f"{name}_model.py").write_text(CODE.format(loading))


class Watcher(threading.Thread):
    """Looks at the states of all models and at the memory of all processes, until it is stopped."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(name="watcher")
        self._instance = instance
        self._began = time.monotonic()
        self.done = threading.Event()
        self.settled: dict[str, float] = {}  # seconds until a model was served or refused
        self.most_bytes = 0

    def run(self) -> None:
        while not self.done.wait(LOOK_SECONDS):
            now = time.monotonic() - self._began
            for name in listed(self._instance):
                self.settled.setdefault(name, round(now, 1))
            total = 0
            for process in self._instance.processes():
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most_bytes = max(self.most_bytes, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--models", type=int, default=26)
    parser.add_argument("--seconds", type=float, default=3600.0, help="to wait at most for all to be tried")
    chosen = parser.parse_args()
    print(describe_machine(), "\n")
    paths = sorted((chosen.folder / "models").iterdir(), key=lambda path: (path.suffix, path.name))
    step = max(1, len(paths) // chosen.models)
    paths = paths[::step][: chosen.models]
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        models = Path(scratch) / "models"
        gather(paths, models)
        add_broken_ones(models, next(path for path in paths if path.suffix == ".onnx"))
        count = len(paths) + 4
        started = time.monotonic()
        with Instance(Path(scratch) / "data", models=models) as instance:
            print(f"{count} models: ready after {time.monotonic() - started:.1f} s", flush=True)
            watcher = Watcher(instance)
            watcher.start()
            meanwhile: list[float] = []
            try:
                while len(watcher.settled) < count + 2 and time.monotonic() - started < chosen.seconds:
                    answer = instance.post(chosen.video, attach="false")
                    answer.raise_for_status()
                    meanwhile.append(answer.elapsed.total_seconds())
                    time.sleep(2 * meanwhile[-1])  # models that need a whole host wait for such a pause
                afterwards = [
                    instance.post(chosen.video, attach="false").elapsed.total_seconds() for _ in range(3)
                ]
            finally:
                watcher.done.set()
                watcher.join()
            for name, outcome in listed(instance).items():
                print(f"{watcher.settled.get(name, 0.0):8.1f} s  {name}: {outcome}")
            print(
                f"{len(meanwhile)} jobs meanwhile: median {statistics.median(meanwhile):.1f} s, at most "
                f"{max(meanwhile):.1f} s; afterwards {statistics.median(afterwards):.1f} s. All processes "
                f"took at most {watcher.most_bytes // MIB} MiB (PSS)."
            )
