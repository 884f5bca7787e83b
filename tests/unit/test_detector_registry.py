from __future__ import annotations

import json

import pytest

from app.detection.registry import describe_detector, detector_names, load_detector
from app.errors import InvalidOption


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InvalidOption, match="none") as caught:
        load_detector("no-such-model", device="cpu")
    assert caught.value.extensions == {"parameter": "model", "allowed": detector_names()}


def test_a_description_is_plain_json_with_a_measured_speed() -> None:
    description = describe_detector(load_detector("none", device="cpu"), measure_seconds=0.01)
    assert json.loads(json.dumps(description)) == description
    assert description["name"] == "none"
    assert description["max_frame_size"] == [640, 640]
    assert description["frames_per_second"] > 0
