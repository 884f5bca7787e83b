"""What a host does beside the network: processor time from raw output to the bytes of a part.

    python -m benchmarks host_cost [--rounds 100]

The output is that of a YOLO network with 80 labels and an input of 416 × 416 pixels, (n, 84, 3549) float32.
It holds so many objects a frame, each five times, as networks give them. Microseconds of one thread, the
least of all rounds, because other work on the machine only ever adds to them:

- reading: the boxes that reach the lowest score and do not repeat a better one, a call;
- splitting, checks, records: what then follows, a frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from app.detection.checks import check_batch
from app.detection.detector import Detections
from app.detection.network import LoadedNetwork, Network, NetworkDetector
from app.detection.network_input import NetworkInput, PixelRules
from app.detection.network_output import Candidates, Columns, Layout, Reading
from app.detection.resize import InputSize, ResizePolicy
from app.pipeline.frame_records import encode_records
from app.pipeline.segment_task import RecordRules
from benchmarks.machine import describe_machine

LABELS = tuple(f"label {number}" for number in range(80))
SIDE = 416  # pixels
PLACES = 3549  # that a network with strides of 8, 16 and 32 has for boxes
CLASSES_SEEN = 3
REPEATS = 5  # of an object in the output
CALLS = 10  # in a row, between two looks at the clock
FRAME_SIZE, SOURCE_SIZE = (416, 234), (1280, 720)


class ReadyOutput(NetworkDetector):
    """A detector whose network has given its output already."""

    def __init__(self, output: Tensor) -> None:
        size = InputSize(SIDE, SIDE, ResizePolicy.LETTERBOX)
        network = Network(NetworkInput(), run=lambda _: output)
        reading = Reading(Layout.YOLO, len(LABELS))
        loaded = LoadedNetwork(network, size, PixelRules(), reading, LABELS, min_score=0.25, precision=None)
        super().__init__(loaded, name="ready", fingerprint="", device="cpu", batch_size=len(output))

    def output(self, frames: Tensor) -> object:
        return self.loaded.network.run(frames)


class ReadyBoxes(ReadyOutput):
    """The same, and its boxes are found already."""

    def __init__(self, output: Tensor, frame_size: tuple[int, int]) -> None:
        super().__init__(output)
        self._columns = super().columns(output, len(output))
        self._found = super().best(self._columns, *frame_size)

    def columns(self, output: object, frame_count: int) -> Columns:  # noqa: ARG002
        return self._columns

    def best(self, columns: Columns, width: int, height: int) -> Candidates:  # noqa: ARG002
        return self._found


def output_with(object_count: int, frame_count: int) -> Tensor:
    """Return (n, 84, 3549) with so many objects in each frame, apart from each other."""
    random = np.random.default_rng(0)
    output = random.uniform(0, 0.04, (frame_count, 4 + len(LABELS), PLACES)).astype(np.float32)
    for frame in output:
        frame[:4] = random.uniform(20, SIDE, (4, PLACES))
        cells = random.permutation(100)[:object_count]  # of 40 × 22 pixels
        places = random.permutation(PLACES)[: object_count * REPEATS].reshape(object_count, REPEATS)
        for cell, repeats in zip(cells, places, strict=True):
            centre = np.array([cell % 10 * 40 + 20, cell // 10 * 22 + 11])
            frame[:2, repeats] = centre[:, None] + random.uniform(-1, 1, (2, REPEATS))
            frame[2:4, repeats] = [[30.0], [18.0]]
            frame[4 + cell % CLASSES_SEEN, repeats] = random.uniform(0.3, 0.95, REPEATS)
    return torch.from_numpy(output)


def microseconds(work: Callable[[], object], rounds: int) -> float:
    """Return the processor time of `work` in this thread, the least of rounds."""
    spent = []
    for _ in range(rounds):
        started = time.thread_time_ns()
        for _ in range(CALLS):
            work()
        spent.append((time.thread_time_ns() - started) / CALLS / 1000)
    return min(spent)


def encoded(found: list[Detections]) -> list[bytes]:
    rules = RecordRules(LABELS, min_score=0.25)
    return encode_records(
        range(len(found)), found, given_size=FRAME_SIZE, source_size=SOURCE_SIZE, rules=rules
    )


def costs(object_count: int, frame_count: int, rounds: int) -> Mapping[str, float]:
    """Return the microseconds of each step for a call of `frame_count` frames."""
    output = output_with(object_count, frame_count)
    detector, ready = ReadyOutput(output), ReadyBoxes(output, FRAME_SIZE)
    width, height = FRAME_SIZE
    frames = torch.empty((frame_count, height, width, 3), dtype=torch.uint8)
    found = detector.detect(frames)
    assert [len(one.scores) for one in found] == [object_count] * frame_count
    checked, _ = check_batch(detector.name, found, frames, len(LABELS))
    assert all(record.count(b'"label"') == object_count for record in encoded(checked))

    def read() -> None:
        detector.best(detector.columns(detector.output(frames), frame_count), width, height)

    return {
        "reading": microseconds(read, rounds),
        "splitting": microseconds(lambda: ready.detect(frames), rounds),
        "checks": microseconds(lambda: check_batch(detector.name, found, frames, len(LABELS)), rounds),
        "records": microseconds(lambda: encoded(checked), rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    print(describe_machine())
    torch.set_num_threads(1)  # as in a thread of a device
    print("frames a call  boxes a frame  reading, a call  splitting  checks  records, a frame   sum")
    with torch.inference_mode():
        for frame_count in (1, 8):
            for object_count in (0, 10, 60):
                reading, *rest = costs(object_count, frame_count, rounds).values()
                shares = [spent / frame_count for spent in rest]
                columns = [reading, *shares, sum(shares)]
                numbers = "".join(
                    f"{value:{width}.0f}" for value, width in zip(columns, (17, 11, 8, 9, 15), strict=True)
                )
                print(f"{frame_count:13} {object_count:14}{numbers}", flush=True)


if __name__ == "__main__":
    main()
