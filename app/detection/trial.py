"""The trial of a model: it is loaded, checked and measured in a process of its own.

What crashes in native code, hangs, or takes all memory ends its trial and nothing else. A host loads only
what has passed, and only into memory that is free.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import structlog
import torch

from app.detection.detector import Detector, is_lack_of_memory
from app.detection.measuring import SHARED_GAIN, MemoryCost, MemoryMeter, ModelProfile, measure
from app.detection.model_facts import Refusal, Verdict
from app.detection.model_files import ModelContent, file_marks, network_bytes, reason
from app.detection.model_pool import ModelBudget
from app.detection.network import NetworkDetector
from app.detection.precision import Precision
from app.detection.registry import describe_detector, load_model
from app.errors import FrameboxError, ModelFault

_REQUESTED = re.compile(
    r"(?:allocate|size|allocation of):? (\d+)"
)  # in the messages of torch and onnxruntime

_log = structlog.get_logger(__name__)


class TooLarge(Exception):
    """A model found less memory than it needs."""

    def __init__(self, needed: MemoryCost) -> None:
        super().__init__(needed)
        self.needed = needed  # at least


def try_model(
    content: ModelContent, *, device: str, precision: Precision, budget: ModelBudget, runtime: str
) -> Verdict:
    """Load, check and measure a model of the folder: seconds to minutes. Raises TooLarge.

    `budget` is what a host has for models. `runtime`: see `describe_runtime`.
    """
    meter = MemoryMeter(device)
    try:
        detector, profile = _measured(partial(load_model, content, device=device, precision=precision), meter)
        facts = describe_detector(detector, profile, runtime)
    except BaseException as error:  # noqa: BLE001 - the model's boundary: it may raise a panic of Rust
        if is_lack_of_memory(error):
            _log.warning("model found no memory", exc_info=error, model=content.name)
            raise TooLarge(_needed(meter, error, network_bytes(file_marks(content.path)))) from None
        if isinstance(error, FrameboxError):
            return refused(content.name, error)
        _log.error("model failed in its trial", exc_info=error, model=content.name)
        cause = reason(error) if isinstance(error, Exception) else type(error).__name__
        return refused(content.name, ModelFault(f"Model {content.name!r} cannot be used: {cause}."))
    cost = cost_of(profile)
    if not budget.takes(cost):
        raise TooLarge(cost)
    return Verdict(name=content.name, facts=facts, profile=dict(profile))


def _measured(load: Callable[..., Detector], meter: MemoryMeter) -> tuple[Detector, ModelProfile]:
    """Load and measure a model; where the threads of a call are fixed when it is loaded, both ways."""
    detector = load()
    profile = measure(detector, meter)
    count = torch.get_num_threads()
    if count == 1 or not (isinstance(detector, NetworkDetector) and detector.inner_threads):
        return detector, profile
    del detector
    meter.begin()
    detector = load(is_tried=True, inner_threads=count)
    shared = measure(detector, meter)
    is_faster = shared["frames_per_second"] > SHARED_GAIN * profile["frames_per_second"]
    return detector, shared if is_faster else profile


def refused(name: str, error: FrameboxError) -> Verdict:
    return Verdict(name=name, refusal=Refusal(code=error.code, detail=error.detail))


def cost_of(profile: ModelProfile) -> MemoryCost:
    return MemoryCost(profile["host_bytes"], profile["device_bytes"], profile["loading_bytes"])


def _needed(meter: MemoryMeter, error: BaseException | None, file_bytes: int) -> MemoryCost:
    """Return what a model had taken when `error` ended it, and what it then asked for, if that is known."""
    cost = meter.cost()
    cost = MemoryCost(max(cost.host_bytes, file_bytes), cost.device_bytes)
    while error is not None:
        if (found := _REQUESTED.search(str(error))) is not None:
            return MemoryCost(cost.host_bytes + int(found[1]), cost.device_bytes)
        error = error.__cause__
    return cost
