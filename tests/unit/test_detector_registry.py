from __future__ import annotations

import pytest

from app.detection.measuring import MemoryMeter, measure
from app.detection.model_facts import ModelFacts
from app.detection.registry import BUILT_IN, describe_detector, load_detector
from app.errors import InvalidOption


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InvalidOption, match="none") as caught:
        load_detector("no-such-model", device="cpu")
    assert caught.value.extensions == {"parameter": "model", "allowed": sorted(BUILT_IN)}


def test_what_is_known_of_a_model_survives_its_way_through_json() -> None:
    meter = MemoryMeter("cpu")
    detector = load_detector("none", device="cpu")
    facts = describe_detector(detector, measure(detector, meter), "a test")
    assert ModelFacts.model_validate_json(facts.model_dump_json()) == facts
    assert (facts.name, facts.input_size) == ("none", (640, 640))
    assert facts.runtime.startswith("a test, ")
    assert facts.frames_per_second > 0
