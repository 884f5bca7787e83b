"""hog-people against OpenCV's HOGDescriptor.detectMultiScale: same frames, pyramid, stride and threads.

    python -m benchmarks.hog VIDEO [--frames 16] [--threads 1 2] [--rounds 5]

Rounds alternate between the two, so that both meet the same machine. Wall time is what a user waits for;
CPU time changes less with what else runs. The least of each is compared: noise only ever adds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from app.detection.hog import OPENCV_PARAMETERS, HogParameters, HogPeopleDetector

Frames = list[np.ndarray]


@dataclass(frozen=True)
class Cost:
    """Milliseconds a frame."""

    wall: float
    cpu: float


def read_frames(video: str, count: int) -> Frames:
    """Return `count` frames, (height, width, 3) uint8 RGB, spread over the video."""
    capture = cv2.VideoCapture(video)
    step = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // count)
    frames: Frames = []
    number = 0
    while len(frames) < count and capture.grab():
        if number % step == 0:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        number += 1
    capture.release()
    return frames


def torch_work(frames: Frames, parameters: HogParameters) -> Callable[[], object]:
    detector = HogPeopleDetector("cpu", parameters)
    size = detector.batch_size
    batches = [torch.from_numpy(np.stack(frames[i : i + size])) for i in range(0, len(frames), size)]

    def work() -> None:
        with torch.inference_mode():
            for batch in batches:
                detector.detect(batch)

    return work


def opencv_work(frames: Frames, parameters: HogParameters) -> Callable[[], object]:
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector(), np.float32))
    pictures = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]

    def work() -> None:
        for picture in pictures:
            descriptor.detectMultiScale(
                picture,
                hitThreshold=parameters.min_margin,
                winStride=(8, 8),
                padding=parameters.padding,
                scale=parameters.pyramid_scale,
                groupThreshold=0,
            )

    return work


def measure(work: Callable[[], object], frame_count: int) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    milliseconds = 1000 / frame_count
    return Cost((time.perf_counter() - wall) * milliseconds, (time.process_time() - cpu) * milliseconds)


def least(costs: list[Cost]) -> Cost:
    return Cost(min(cost.wall for cost in costs), min(cost.cpu for cost in costs))


def compare(frames: Frames, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    height, width, _ = frames[0].shape
    parameters = replace(OPENCV_PARAMETERS, max_side=max(width, height))
    works = [torch_work(frames, parameters), opencv_work(frames, parameters)]
    costs: list[list[Cost]] = [[], []]
    for work in works:
        work()
    for _ in range(rounds):
        for kept, work in zip(costs, works, strict=True):
            kept.append(measure(work, len(frames)))
    ours, theirs = least(costs[0]), least(costs[1])
    print(
        f"{threads} threads, {width} × {height}, ms a frame (wall / CPU): "
        f"hog-people {ours.wall:.1f} / {ours.cpu:.1f}, OpenCV {theirs.wall:.1f} / {theirs.cpu:.1f}; "
        f"speed against OpenCV {theirs.wall / ours.wall:.2f} / {theirs.cpu / ours.cpu:.2f}"
    )


def default_speed(frames: Frames, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    detector = HogPeopleDetector("cpu")
    height, width, _ = frames[0].shape
    size = detector.frame_size(width, height)
    work = torch_work([cv2.resize(frame, size) for frame in frames], HogParameters())
    work()
    cost = least([measure(work, len(frames)) for _ in range(rounds)])
    print(f"{threads} threads, as served ({size[0]} × {size[1]}): {1000 / cost.wall:.1f} frames per second")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    frames = read_frames(arguments.video, arguments.frames)
    for threads in arguments.threads:
        compare(frames, threads, arguments.rounds)
        default_speed(frames, threads, arguments.rounds)


if __name__ == "__main__":
    main()
