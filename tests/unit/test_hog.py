"""hog-people against OpenCV's own HOGDescriptor: window by window, and box by box."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from app.detection.detector import Detections
from app.detection.hog import OPENCV_PARAMETERS, HogParameters, HogPeopleDetector, best_windows
from app.detection.hog_scores import Planes, WindowScorer, hat_coefficients, make_axis, spatial_weights

SCORE_TOLERANCE = 1e-4  # of margins between about -3 and 3; measured: 1e-5


@pytest.fixture(scope="module")
def opencv() -> Iterator[cv2.HOGDescriptor]:
    # With several threads OpenCV collects boxes and margins under separate locks and may mix them up.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(people_weights())
    yield descriptor
    cv2.setNumThreads(threads)


def people_weights() -> np.ndarray:
    return np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector(), np.float32)


def frames_of(video: Path, *frame_ids: int) -> np.ndarray:
    """Return (n, height, width, 3) uint8 RGB."""
    return _decoded(video, *frame_ids).copy()


@functools.cache
def _decoded(video: Path, *frame_ids: int) -> np.ndarray:
    capture = cv2.VideoCapture(str(video))
    frames = []
    for frame_id in range(max(frame_ids) + 1):
        assert capture.grab()
        if frame_id in frame_ids:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def margins_of(
    frames: np.ndarray, width: int, height: int, padding: tuple[int, int], *, strip_values: int = 2**17
) -> np.ndarray:
    """Return our margins, (n, windows), of the frames scaled to `width` × `height`."""
    scorer = WindowScorer(torch.from_numpy(people_weights()).reshape(-1), "cpu", strip_values=strip_values)
    rows = make_axis(frames.shape[1], height, padding[1], "cpu")
    columns = make_axis(frames.shape[2], width, padding[0], "cpu")
    margins = scorer.scores(Planes(torch.from_numpy(frames), "cpu"), rows, columns)
    return margins.view(-1, len(frames)).t().numpy()


def opencv_margins(
    descriptor: cv2.HOGDescriptor, frame: np.ndarray, width: int, height: int, padding: tuple[int, int]
) -> np.ndarray:
    picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    if picture.shape[:2] != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    _, margins = descriptor.detect(picture, hitThreshold=-100, winStride=(8, 8), padding=padding)
    return np.asarray(margins).reshape(-1)


@pytest.mark.parametrize("padding", [(0, 0), (8, 8), (32, 16)])
@pytest.mark.parametrize("scale", [1.0, 1.05, 1.05**9, 3.3])
def test_every_windows_margin_is_opencvs_on_real_frames(
    people_video: Path, opencv: cv2.HOGDescriptor, padding: tuple[int, int], scale: float
) -> None:
    frames = frames_of(people_video, 150, 400)
    width, height = round(768 / scale), round(432 / scale)
    for ours, frame in zip(margins_of(frames, width, height, padding), frames, strict=True):
        theirs = opencv_margins(opencv, frame, width, height, padding)
        np.testing.assert_allclose(ours, theirs, atol=SCORE_TOLERANCE, rtol=0)
        assert np.array_equal(ours >= 0, theirs >= 0)


@pytest.mark.parametrize(("width", "height"), [(64, 128), (65, 129), (79, 143), (201, 301), (131, 128)])
def test_every_windows_margin_is_opencvs_on_noise_of_odd_sizes(
    opencv: cv2.HOGDescriptor, width: int, height: int
) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    for padding in ((0, 0), (8, 8), (128, 64)):
        for ours, frame in zip(margins_of(frames, width, height, padding), frames, strict=True):
            theirs = opencv_margins(opencv, frame, width, height, padding)
            np.testing.assert_allclose(ours, theirs, atol=SCORE_TOLERANCE, rtol=0)


def test_working_in_strips_changes_nothing(people_video: Path) -> None:
    frames = frames_of(people_video, 400)
    whole = margins_of(frames, 700, 394, (8, 8), strip_values=10**9)
    for strip_values in (1, 64 * 88 * 3, 64 * 88 * 20):
        strips = margins_of(frames, 700, 394, (8, 8), strip_values=strip_values)
        np.testing.assert_allclose(strips, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(600, 338), (768, 432), (511, 287), (1000, 500), (384, 216), (100, 3)])
def test_pictures_are_scaled_bit_for_bit_as_opencv_scales_them(
    people_video: Path, size: tuple[int, int]
) -> None:
    frame = frames_of(people_video, 400)
    width, height = size
    rows, columns = make_axis(432, height, 4, "cpu"), make_axis(768, width, 4, "cpu")
    red = Planes(torch.from_numpy(frame), "cpu").gather(rows, columns)[0].floor()
    cells = red.view(10, 10, rows.cell_count, columns.cell_count)[1:9, 1:9].permute(2, 0, 3, 1)
    ours = cells.reshape(8 * rows.cell_count, 8 * columns.cell_count).numpy()
    theirs = cv2.resize(frame[0, ..., 0], size, interpolation=cv2.INTER_LINEAR_EXACT)
    theirs = cv2.copyMakeBorder(theirs, 4, 4, 4, 4, cv2.BORDER_REFLECT_101)
    assert np.array_equal(ours, theirs[: ours.shape[0], : ours.shape[1]])


def opencv_boxes(
    descriptor: cv2.HOGDescriptor, frame: np.ndarray, parameters: HogParameters
) -> list[tuple[float, ...]]:
    """Return (left, top, right, bottom, margin) of detectMultiScale's windows, clipped to the frame."""
    height, width, _ = frame.shape
    boxes, margins = descriptor.detectMultiScale(
        cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
        hitThreshold=parameters.min_margin,
        winStride=(8, 8),
        padding=parameters.padding,
        scale=parameters.pyramid_scale,
        groupThreshold=0,
    )
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    corners = corners.clip(0, [width, height, width, height])
    return sorted(tuple(row) for row in np.column_stack([corners, np.asarray(margins).reshape(-1)]))


def our_boxes(found: Detections, parameters: HogParameters) -> list[tuple[float, ...]]:
    margins = torch.logit(found.scores.double()) / parameters.steepness + parameters.min_margin
    return sorted(tuple(row.tolist()) for row in torch.column_stack([found.boxes_xyxy, margins]))


def opencv_like(**changed: Any) -> HogParameters:
    return replace(OPENCV_PARAMETERS, max_side=768, **changed)


@pytest.mark.parametrize(
    "parameters",
    [
        opencv_like(),
        opencv_like(padding=(8, 8)),
        opencv_like(pyramid_scale=1.2, min_margin=-0.4),
        opencv_like(padding=(16, 16), min_margin=-0.2),
        opencv_like(padding=(32, 32), pyramid_scale=1.1),
        opencv_like(padding=(8, 8), pyramid_scale=1.0, min_margin=-1.0),
    ],
    ids=lambda parameters: f"{parameters.pyramid_scale}-{parameters.padding[0]}-{parameters.min_margin}",
)
def test_windows_are_those_of_detect_multi_scale(
    people_video: Path, opencv: cv2.HOGDescriptor, parameters: HogParameters
) -> None:
    frames = frames_of(people_video, 75, 150, 400, 600)
    detector = HogPeopleDetector("cpu", parameters)
    found_any = False
    for found, frame in zip(detector.detect(torch.from_numpy(frames)), frames, strict=True):
        theirs = opencv_boxes(opencv, frame, parameters)
        ours = our_boxes(found, parameters)
        assert [row[:4] for row in ours] == [row[:4] for row in theirs]
        np.testing.assert_allclose([row[4] for row in ours], [row[4] for row in theirs], atol=1e-3)
        found_any |= bool(ours)
    assert found_any


def test_one_thread_and_several_give_the_same_bits(people_video: Path) -> None:
    frames = torch.from_numpy(frames_of(people_video, 150, 400))
    threads = torch.get_num_threads()
    answers = []
    for count in (1, 3):
        torch.set_num_threads(count)
        answers.append(HogPeopleDetector("cpu").detect(frames))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)


def test_cuda_gives_what_the_cpu_gives(people_video: Path, cuda: str) -> None:
    frames = torch.from_numpy(frames_of(people_video, 150, 400))
    on_cpu, on_cuda = (HogPeopleDetector(device).detect(frames) for device in ("cpu", cuda))
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-3, rtol=0)


def test_another_parameter_is_another_fingerprint() -> None:
    fingerprints = {
        HogPeopleDetector("cpu", parameters).fingerprint
        for parameters in (HogParameters(), HogParameters(), HogParameters(min_margin=-0.4))
    }
    assert len(fingerprints) == 2


def test_the_hats_share_every_orientation_between_its_two_nearest_bins() -> None:
    orientation = torch.linspace(-5, 4, 1801, dtype=torch.float64)
    terms = [torch.ones(1801, dtype=torch.float64), orientation]
    terms += [orientation.clamp(max=knot) for knot in range(-4, 4)]
    shares = hat_coefficients().double() @ torch.stack(terms)
    around = (torch.arange(9)[:, None] - orientation).remainder(9)
    distance = torch.minimum(around, 9 - around)
    torch.testing.assert_close(shares, (1 - distance).clamp(min=0), atol=1e-12, rtol=0)


def test_a_pixels_weights_are_its_gaussian_shared_among_the_cells_around_it() -> None:
    weights = spatial_weights().view(2, 2, 2, 2, 8, 8)  # down, across; cell across, cell down; row, column
    centre = weights[1, 1, :, :, 0, 0]  # the block's pixel (8, 8): the Gaussian's peak
    torch.testing.assert_close(
        centre, torch.tensor([[0.4375**2, 0.4375 * 0.5625], [0.4375 * 0.5625, 0.5625**2]])
    )
    corner = weights[0, 0, :, :, 0, 0]  # the block's pixel (0, 0): its own cell's alone, and in part
    assert corner[0, 0] == pytest.approx(np.exp(-128 / 32) * 0.5625**2)
    assert corner.count_nonzero() == 1


def test_of_overlapping_windows_the_best_stays_and_the_rest_go() -> None:
    windows = np.array([[0, 0, 64, 128], [8, 8, 64, 128], [10, 20, 40, 80], [60, 0, 64, 128]])
    assert best_windows(windows, np.array([0.2, 0.9, 0.5, 0.1]), 0.5).tolist() == [1, 3]


def test_people_who_fill_the_frame_are_found(people_video: Path) -> None:
    """One person in each of the frames, seen whole, from head to feet; in the last there is nobody."""
    seen = frames_of(people_video, 100, 150, 380, 830, 960, 1030)
    detector = HogPeopleDetector("cpu")
    small = np.stack([cv2.resize(frame, detector.frame_size(768, 432)) for frame in seen])
    found = detector.detect(torch.from_numpy(small))
    assert [len(frame.scores) for frame in found] == [1] * len(seen)
    empty = cv2.resize(frames_of(people_video, 20)[0], detector.frame_size(768, 432))
    assert len(detector.detect(torch.from_numpy(empty[None]))[0].scores) == 0
