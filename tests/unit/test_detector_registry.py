from __future__ import annotations

import json

import pytest

from app.detection.measuring import MemoryMeter, measure
from app.detection.registry import describe_detector, detector_names, load_detector
from app.errors import InvalidOption


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InvalidOption, match="none") as caught:
        load_detector("no-such-model", device="cpu")
    assert caught.value.extensions == {"parameter": "model", "allowed": detector_names()}


def test_a_description_is_plain_json_with_a_measured_speed() -> None:
    meter = MemoryMeter("cpu")
    detector = load_detector("none", device="cpu")
    description = describe_detector(detector, measure(detector, meter))
    assert json.loads(json.dumps(description)) == description
    assert description["name"] == "none"
    assert description["input_size"] == [640, 640]
    assert description["frames_per_second"] > 0
