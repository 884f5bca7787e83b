"""What becomes of the nonsense that a model may return."""

from __future__ import annotations

import math

import pytest
import torch

from app.detection.checks import MAX_BOXES_PER_FRAME, check_batch
from app.detection.detector import Detections
from app.errors import ModelFault


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4].clone(), table[:, 4].clone(), table[:, 5].long())


def check(*outputs: object, frame_count: int | None = None) -> tuple[list[list[list[float]]], int]:
    frames = torch.empty((len(outputs) if frame_count is None else frame_count, 50, 100, 3))
    checked, dropped_box_count = check_batch("m", list(outputs), frames, 2)
    return [found.boxes_xyxy.tolist() for found in checked], dropped_box_count


SOUND = detections((1, 2, 3, 4, 0.5, 1))


def test_sound_detections_pass_as_they_are() -> None:
    assert check(SOUND, Detections.empty()) == ([[[1, 2, 3, 4]], []], 0)


def test_boxes_are_clamped_to_the_frame_and_those_without_area_dropped() -> None:
    edge = detections(
        (-5, -5, 10, 10, 0.9, 0),
        (90, 40, 130, 80, 0.8, 0),
        (-20, 0, -10, 10, 0.7, 0),
        (0, 60, 10, 70, 0.6, 0),
        (5, 5, 5, 9, 0.5, 0),
    )
    assert check(edge) == ([[[0, 0, 10, 10], [90, 40, 100, 50]]], 3)


def test_detections_are_put_best_first_and_equals_stay_in_order() -> None:
    mixed = detections((1, 1, 2, 2, 0.2, 0), (2, 1, 3, 2, 0.9, 0), (3, 1, 4, 2, 0.2, 1))
    assert check(mixed)[0] == [[[2, 1, 3, 2], [1, 1, 2, 2], [3, 1, 4, 2]]]


def test_a_score_a_hair_above_one_is_one() -> None:
    hair = detections((1, 1, 2, 2, 1.00001, 0))
    (checked,), _ = check_batch("m", [hair], torch.empty((1, 9, 9, 3)), 1)
    assert checked.scores.tolist() == [1.0]


NONSENSE = {
    "nan box": (detections((math.nan, 0, 1, 1, 0.5, 0)), "not a finite"),
    "infinite box": (detections((0, 0, math.inf, 1, 0.5, 0)), "not a finite"),
    "nan score": (detections((0, 0, 1, 1, math.nan, 0)), "not a finite"),
    "score above one": (detections((0, 0, 1, 1, 1.5, 0)), "outside 0 to 1"),
    "negative score": (detections((0, 0, 1, 1, -0.1, 0)), "outside 0 to 1"),
    "inverted box": (detections((5, 0, 1, 1, 0.5, 0)), "edge lies before"),
    "upside-down box": (detections((0, 5, 1, 1, 0.5, 0)), "edge lies before"),
    "unknown class": (detections((0, 0, 1, 1, 0.5, 2)), "2 names"),
    "negative class": (detections((0, 0, 1, 1, 0.5, -1)), "2 names"),
    "wrong type": ([SOUND], "something else"),
    "five columns": (Detections(torch.zeros(1, 5), torch.zeros(1), torch.zeros(1).long()), "boxes of shape"),
    "no rows": (Detections(torch.zeros(4), torch.zeros(1), torch.zeros(1).long()), "boxes of shape"),
    "lengths differ": (Detections(torch.zeros(1, 4), torch.zeros(1), torch.zeros(2).long()), "class ids of"),
    "scalar score": (Detections(torch.zeros(1, 4), torch.tensor(1.0), torch.zeros(1).long()), "of shape"),
    "doubles": (Detections(torch.zeros(1, 4).double(), torch.zeros(1), torch.zeros(1).long()), "float64"),
    "float classes": (Detections(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1)), "class ids of"),
    "too many": (
        Detections(
            torch.zeros(MAX_BOXES_PER_FRAME + 1, 4),
            torch.zeros(MAX_BOXES_PER_FRAME + 1),
            torch.zeros(MAX_BOXES_PER_FRAME + 1).long(),
        ),
        "10001 boxes",
    ),
}


@pytest.mark.parametrize(("output", "reason"), NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_the_models_fault_with_its_reason(output: object, reason: str) -> None:
    with pytest.raises(ModelFault, match=reason):
        check(SOUND, output)


def test_a_result_too_few_is_the_models_fault() -> None:
    with pytest.raises(ModelFault, match="1 results for 2 frames"):
        check(SOUND, frame_count=2)


def test_no_list_at_all_is_the_models_fault() -> None:
    with pytest.raises(ModelFault, match="no list of results"):
        check_batch("m", None, torch.empty((1, 1, 1, 3)), 1)
