"""How `python -m benchmarks exports` counts the boxes that two answers share."""

from __future__ import annotations

from benchmarks.exports import Share, share


def box(label: str, left: float, score: float = 0.9) -> dict[str, object]:
    return {"label": label, "score": score, "box": [left, 0.0, left + 10.0, 10.0]}


def test_a_box_counts_once_with_its_label_and_place():
    ones = [[box("a", 0), box("a", 0.5), box("b", 40), box("a", 80), box("a", 120, score=0.3)]]
    others = [[box("a", 0.2), box("a", 40), box("a", 84, score=0.1)]]
    # The second "a" finds its rival taken, "b" another label, the third an overlap of 6/14.
    assert share(ones, others, score=0.4, overlap=0.8) == Share(matched=1, compared=4)
    assert share(ones, others, score=0.4, overlap=0.4) == Share(matched=2, compared=4)


def test_frames_are_compared_one_by_one():
    assert share([[], [box("a", 0)]], [[box("a", 0)], []], score=0.4, overlap=0.8) == Share(0, 1)


def test_a_share_of_nothing_is_not_a_percentage():
    assert str(Share()) == ""
    assert str(Share(1, 4) + Share(2, 4)) == "3/8 (37.5%)"
