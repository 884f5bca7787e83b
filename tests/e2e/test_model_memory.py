"""Two models that do not fit into the engine's memory together: each job gets its own, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from exported_networks import Yolo, as_torchscript
from instance import Instance, make_clip
from torch import Tensor, nn

MIB = 1024 * 1024
# Of these some 260 MiB are the host's own at its start, and 96 kept for its segments.
HOST_BYTES = 900 * MIB
BALLAST_BYTES = 120 * MIB  # a network takes four times that while it is loaded, beside the other five times
NAMES = ("first", "second")


class Heavy(Yolo):
    """Has weights that it does not need; its scores are its own."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.ballast = nn.Parameter(torch.zeros(BALLAST_BYTES // 4), requires_grad=False)

    def brightness(self, pictures: Tensor) -> Tensor:
        return self.share * super().brightness(pictures) + self.ballast[:1].sum()


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("eviction")
    (folder / "models").mkdir()
    for name, share in zip(NAMES, (1.0, 0.8), strict=True):
        (folder / "models" / f"{name}.torchscript").write_bytes(as_torchscript(Heavy(share)))
    settings = {"models": folder / "models", "model": "none", "host_memory_bytes": HOST_BYTES}
    with Instance(folder / "data", **settings) as made:
        yield made


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=60)


def loaded(instance: Instance) -> set[str]:
    """Which of the two are loaded. They all are served, whether loaded or not."""
    answer = requests.get(f"{instance.url}/v1/models", timeout=30).json()
    assert answer["refused"] == []
    return {model["name"] for model in answer["models"] if model["loaded"]} & set(NAMES)


def is_loading(instance: Instance) -> bool:
    answer = requests.get(f"{instance.url}/v1/models", timeout=30).json()
    return any(model["state"] == "loading" for model in answer["models"])


def own_bytes(instance: Instance) -> int:
    memory = instance.host().memory_info()
    return int(memory.rss - memory.shared)


def wait_until_alone(instance: Instance, name: str) -> None:
    """The list is written anew once a second."""
    instance.wait(lambda: loaded(instance) == {name}, 30, f"{name} loaded, and no other of the two")


def test_jobs_of_models_that_do_not_fit_together_all_succeed(instance: Instance, short_clip: Path) -> None:
    engine = instance.engine()
    instance.wait(lambda: not is_loading(instance), 120, "every model to be tried once")
    alone: dict[str, bytes] = {}
    for name in (*NAMES, *NAMES):
        answer = instance.post(short_clip, model=name)
        assert answer.status_code == 200, answer.text
        assert alone.setdefault(name, answer.content) == answer.content
        wait_until_alone(instance, name)
        assert own_bytes(instance) < HOST_BYTES
    assert alone["first"] != alone["second"]

    jobs = [(name, instance.post_async(short_clip, model=name)) for name in NAMES * 3]
    for name, job_id in jobs:
        assert instance.wait_for_end(job_id)["state"] == "succeeded"
        assert instance.result(job_id) == alone[name]
        assert len(loaded(instance)) <= 1
        assert own_bytes(instance) < HOST_BYTES
    assert instance.engine() == engine  # it did not end in between
