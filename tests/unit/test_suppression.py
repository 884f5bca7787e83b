"""Class-wise suppression against the loop that everyone writes, on random boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.detection.network_output import (
    DEFAULT_MAX_BOXES,
    FLOOR_SCORE,
    BoxFormat,
    Candidates,
    Layout,
    Reading,
    overlaps,
    read_columns,
    select,
    suppress,
    suppress_rotated,
)


def plain_overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    area_a, area_b = (max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b))
    union = area_a + area_b - shared
    return shared / union if union > 0 else np.float32(0)


def plain_suppression(boxes: np.ndarray, class_ids: np.ndarray, max_overlap: float) -> list[int]:
    """Return which boxes stay. `boxes`: (k, 4) float32, best first."""
    stays: list[int] = []
    for i in range(len(boxes)):
        rivals = [j for j in stays if class_ids[j] == class_ids[i]]
        if all(plain_overlap(boxes[j], boxes[i]) <= np.float32(max_overlap) for j in rivals):
            stays.append(i)
    return stays


def random_boxes(seed: int, count: int, side: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, side, (count, 2))
    return np.concatenate([corners, corners + random.uniform(1, 120, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("max_overlap", [0.1, 0.45, 0.7, 1.0])
@pytest.mark.parametrize(
    ("count", "side", "classes"), [(1, 10, 1), (60, 100, 1), (150, 300, 3), (250, 60, 2)]
)
def test_it_keeps_what_the_plain_loop_keeps(count: int, side: int, classes: int, max_overlap: float) -> None:
    batch = np.stack([random_boxes(seed, count, side) for seed in range(3)])
    class_ids = np.random.default_rng(9).integers(0, classes, (3, count))
    for row in range(3):
        wanted = plain_suppression(batch[row], class_ids[row], max_overlap)
        assert np.flatnonzero(suppress(batch[row], class_ids[row], max_overlap)).tolist() == wanted


def test_a_long_chain_of_boxes_is_followed_to_its_end() -> None:
    """Each overlaps the next alone: the first stays, the second goes, the third stays because of that …"""
    left = np.arange(50, dtype=np.float32) * 5
    boxes = np.stack([left, np.zeros_like(left), left + 8, np.full_like(left, 8)], axis=1)
    assert suppress(boxes, np.zeros(50, np.int64), 0.2).tolist() == [True, False] * 25


small_numbers = st.integers(0, 12).map(float)


@given(
    st.lists(st.tuples(small_numbers, small_numbers, small_numbers, small_numbers), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 3),
)
def test_boxes_that_share_edges_or_are_inverted_are_kept_as_the_plain_loop_keeps_them(
    rows: list[tuple[float, ...]], max_overlap: float, classes: int
) -> None:
    boxes = np.array(rows, np.float32)
    class_ids = np.arange(len(boxes)) % classes
    wanted = plain_suppression(boxes, class_ids, max_overlap)
    assert np.flatnonzero(suppress(boxes, class_ids, max_overlap)).tolist() == wanted


def test_boxes_without_area_overlap_nothing() -> None:
    assert overlaps(np.zeros((2, 4), np.float32)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def yolo_output(seed: int, anchors: int = 120, classes: int = 3) -> torch.Tensor:
    """Return (2, 4 + classes, anchors): boxes in a 100-pixel input, scores mostly low."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand((2, 2, anchors), generator=generator) * 100
    sizes = torch.rand((2, 2, anchors), generator=generator) * 40 + 1
    scores = torch.rand((2, classes, anchors), generator=generator) ** 3
    return torch.cat([centres, sizes, scores], dim=1)


def plain_reading(frame: np.ndarray, max_overlap: float) -> list[tuple[float, ...]]:
    """Return (left, top, right, bottom, score, class) of one frame's (4 + C, A), best first."""
    rows = []
    for x, y, width, height, *scores in frame.T:
        best = int(np.argmax(scores))
        if scores[best] >= np.float32(FLOOR_SCORE):
            half_width, half_height = width / 2, height / 2
            rows.append(
                (x - half_width, y - half_height, x + half_width, y + half_height, scores[best], best)
            )
    rows.sort(key=lambda row: -row[4])
    boxes = np.array([row[:4] for row in rows], np.float32)
    kept = plain_suppression(boxes, np.array([row[5] for row in rows]), max_overlap)
    return [tuple(float(value) for value in rows[i]) for i in kept]


def read_output(output: torch.Tensor, layout: Layout, *, class_count: int, max_overlap: float) -> Candidates:
    reading = Reading(layout, class_count, max_overlap=max_overlap)
    columns = read_columns(output, reading, len(output))
    assert columns is not None
    return select(columns, reading, (100, 100))


def rows_of(output: torch.Tensor, layout: Layout, frame: int, max_overlap: float) -> list[tuple[float, ...]]:
    classes = {Layout.YOLO: output.shape[1] - 4, Layout.YOLO_OBJECTNESS: output.shape[2] - 5}.get(layout, 3)
    found = read_output(output, layout, class_count=classes, max_overlap=max_overlap)
    own = found.frame_ids == frame
    columns = (found.boxes_xyxy, found.scores[:, None], found.class_ids[:, None])
    table = np.concatenate([column[own] for column in columns], axis=1)
    return [tuple(row) for row in table.tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_a_yolo_output_reads_as_the_plain_loop_reads_it(seed: int) -> None:
    output = yolo_output(seed)
    for frame in (0, 1):
        wanted = plain_reading(output[frame].numpy(), 0.45)
        assert rows_of(output, Layout.YOLO, frame, 0.45) == wanted
        assert len(wanted) > 10


def test_the_other_layouts_say_the_same_boxes() -> None:
    output = yolo_output(7)
    wanted = rows_of(output, Layout.YOLO, 0, 0.45)
    objectness = torch.ones(2, 1, output.shape[2])
    yolo_v5 = torch.cat([output[:, :4], objectness, output[:, 4:]], dim=1).transpose(1, 2)
    assert rows_of(yolo_v5, Layout.YOLO_OBJECTNESS, 0, 0.45) == wanted
    end_to_end = torch.tensor([wanted, wanted])
    assert rows_of(end_to_end.flip(1), Layout.END_TO_END, 0, 0.45) == wanted


def test_objectness_scales_the_class_scores() -> None:
    output = torch.tensor([[[50.0, 50, 10, 10, 0.5, 0.2, 0.8]]])
    ((*corners, score, class_id),) = rows_of(output, Layout.YOLO_OBJECTNESS, 0, 0.45)
    assert (corners, class_id) == ([45.0, 45.0, 55.0, 55.0], 1.0)
    assert score == pytest.approx(0.4)


def test_frames_of_a_batch_are_read_as_each_by_itself() -> None:
    output = torch.cat([yolo_output(1), torch.zeros(1, 7, 120), yolo_output(2)])
    found = read_output(output, Layout.YOLO, class_count=3, max_overlap=0.45)
    assert (np.diff(found.frame_ids) >= 0).all()
    for frame in range(len(output)):
        alone = rows_of(output[frame : frame + 1], Layout.YOLO, 0, 0.45)
        assert rows_of(output, Layout.YOLO, frame, 0.45) == alone


def test_an_empty_picture_gives_no_row() -> None:
    found = read_output(torch.zeros(3, 7, 20), Layout.YOLO, class_count=3, max_overlap=0.45)
    assert found.boxes_xyxy.shape == (0, 4)


def test_a_frame_full_of_boxes_keeps_the_best_and_no_more_than_the_limit() -> None:
    count = 2000
    places = torch.arange(count).float()
    boxes = torch.stack([places * 10, places * 10, torch.full((count,), 5.0), torch.full((count,), 5.0)])
    output = torch.cat([boxes, torch.linspace(0.1, 0.9, count)[None]])[None]
    kept = rows_of(output, Layout.YOLO, 0, 0.45)
    assert len(kept) == DEFAULT_MAX_BOXES
    assert kept[0][4] == pytest.approx(0.9)


def density(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the normal density of a rotated box at `points`, (k, 2)."""
    x, y, width, height, angle = box
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = turn @ np.diag([width**2 / 12, height**2 / 12]) @ turn.T
    offsets = points - (x, y)
    distances = np.einsum("ki,ij,kj->k", offsets, np.linalg.inv(covariance), offsets)
    densities: np.ndarray = np.exp(-distances / 2) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return densities


@pytest.mark.parametrize("seed", range(5))
def test_the_overlap_of_rotated_boxes_is_that_of_their_normal_densities(seed: int) -> None:
    random = np.random.default_rng(seed)
    boxes = np.column_stack(
        [random.uniform(-8, 8, (2, 2)), random.uniform(15, 40, (2, 2)), random.uniform(-1.5, 1.5, 2)]
    ).astype(np.float32)
    sides = np.linspace(-80, 80, 641)
    points = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    one, other = (density(box, points) for box in boxes.astype(np.float64))
    shared = np.sqrt(one * other).sum() * (sides[1] - sides[0]) ** 2
    overlap = 1 - np.sqrt(1 - shared)
    class_ids = np.zeros(2, np.int64)
    assert suppress_rotated(boxes, class_ids, overlap + 0.001).tolist() == [True, True]
    assert suppress_rotated(boxes, class_ids, overlap - 0.001).tolist() == [True, False]
    assert suppress_rotated(boxes, np.array([0, 1]), overlap - 0.001).tolist() == [True, True]


def test_long_boxes_side_by_side_stay_though_the_rectangles_around_them_overlap() -> None:
    """Two ships at a quay: 100 × 12 pixels, turned by 45 degrees, 20 pixels apart."""
    apart = 20 / np.sqrt(2)
    ships = torch.tensor(
        [[100.0, 100, 100, 12, 0.9, np.pi / 4], [100 - apart, 100 + apart, 100, 12, 0.8, np.pi / 4]]
    )
    output = torch.cat([ships, torch.zeros(1, 6)]).T[None]
    reading = Reading(Layout.YOLO, 1, max_overlap=0.5, box_format=BoxFormat.ROTATED, extra_columns=1)
    columns = read_columns(output, reading, 1)
    assert columns is not None
    boxes = np.asarray(select(columns, reading, (200, 200)).boxes_xyxy)
    assert len(boxes) == 2
    assert overlaps(boxes)[0, 1] > 0.5
