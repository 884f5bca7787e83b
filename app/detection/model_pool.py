"""The models that this process holds: each loaded once, with an owner thread on every device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from app.detection.detector import Detector
from app.detection.device import DeviceThread


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model on all devices. Its detectors are equal: boxes do not depend on which one is asked."""

    devices: tuple[DeviceThread, ...]

    @property
    def detector(self) -> Detector:
        return self.devices[0].detector

    def least_busy(self) -> DeviceThread:
        """The device with the fewest batches waiting."""
        return min(self.devices, key=lambda device: device.queued_count)


class ModelPool:
    """Loads models when they are first asked for, and keeps them. Safe to use from many threads."""

    def __init__(self, *, devices: Sequence[str], load: Callable[[str, str], Detector]) -> None:
        """`load` takes a model's name and a torch device; it raises InvalidOption for an unknown name."""
        if not devices:
            raise ValueError("a model needs a device")
        self._device_names = tuple(devices)
        self._load = load
        self._loaded: dict[str, LoadedModel] = {}
        self._loading = threading.Lock()

    def get(self, name: str) -> LoadedModel:
        """Return model `name`, loading it first if need be: seconds, once a process."""
        with self._loading:
            model = self._loaded.get(name)
            if model is None:
                detectors = [self._load(name, device) for device in self._device_names]
                model = LoadedModel(tuple(DeviceThread(detector) for detector in detectors))
                for device in model.devices:
                    device.start()
                self._loaded[name] = model
            return model

    def device_fault(self) -> Exception | None:
        """Why a device is of no use any more, so that the process has to start anew; None if all are well."""
        faults = (device.lost for model in self._models() for device in model.devices)
        return next((fault for fault in faults if fault is not None), None)

    def longest_call_seconds(self) -> float:
        """How long the slowest model has been at its present batch."""
        calls = (device.running_call_seconds for model in self._models() for device in model.devices)
        return max(calls, default=0.0)

    def close(self) -> None:
        """End every device's thread after the batch that it is at."""
        for model in self._models():
            for device in model.devices:
                device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _models(self) -> list[LoadedModel]:
        return list(self._loaded.values())
