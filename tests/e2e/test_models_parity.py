"""Model files through the whole service, against a plain script that decodes, runs and reads by itself.

On a GPU too where there is one; the script computes on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import requests
import torch
from instance import Instance

from benchmarks.plain_detection import Box, PlainDetector, agreement, decoded

MODELS = ("yolox_nano_torch", "yolox_nano_onnx")
STRIDES = {"one-by-one-person-detection.mp4": 7, "car-detection.mp4": 3}


# The contract suite of detectors tells where there is none.
CUDA = pytest.param("cuda:0", marks=pytest.mark.cuda)
DEVICES = ("cpu", CUDA) if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(scope="module", params=DEVICES)
def instance(
    request: pytest.FixtureRequest, test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    data = tmp_path_factory.mktemp("parity") / "data"
    with Instance(data, models=test_data / "models", model=MODELS[0], devices=request.param) as made:
        yield made


def models_of(instance: Instance) -> list[str]:
    """Those of MODELS that are served: on a GPU the one in ONNX needs another onnxruntime."""
    listed = requests.get(f"{instance.url}/v1/models", timeout=30).json()["models"]
    on_gpu = any(model["device"] != "cpu" for model in listed)
    names = [model["name"] for model in listed if model["name"] in MODELS]
    if not on_gpu or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert names == sorted(MODELS)
    return names


@pytest.mark.parametrize("name", STRIDES)
def test_the_service_says_what_a_plain_script_says(instance: Instance, test_data: Path, name: str) -> None:
    video = test_data / "videos" / name
    served = {
        model: instance.post(video, model=model, stride=STRIDES[name]).json() for model in models_of(instance)
    }
    frame_ids = [frame_id for frame_id, _ in served[MODELS[0]]]
    plain = plain_answer(instance, test_data, video, frame_ids)
    answers = [plain, *([boxes for _, boxes in pairs] for pairs in served.values())]
    assert len(frame_ids) >= 120
    for one in answers:
        for other in answers:
            found = agreement(one, other)
            assert found.compared > 20
            assert found.share >= 0.99, found


def plain_answer(instance: Instance, test_data: Path, video: Path, frame_ids: list[int]) -> list[list[Box]]:
    models = requests.get(f"{instance.url}/v1/models", timeout=30).json()["models"]
    (labels,) = [model["labels"] for model in models if model["name"] == MODELS[0]]
    detector = PlainDetector(test_data / "models" / f"{MODELS[1]}.onnx", labels, threads=1)
    wanted = set(frame_ids)
    return [detector.detect(frame) for number, frame in enumerate(decoded(video)) if number in wanted]
