"""The models that this process holds, within a budget: loaded when asked for, unloaded when unused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, Self

import structlog
import torch

from app.detection.detector import Detector, DeviceLost, is_out_of_memory
from app.detection.device import DeviceThread
from app.detection.devices import Ask, sticking_fault, why_lost
from app.detection.measuring import MemoryCost, MemoryMeter, ModelProfile, SizedDetector, drop_unused, measure
from app.detection.registry import ModelDescription, describe_detector
from app.errors import FrameboxError, ModelFault

MIB = 1024 * 1024

_log = structlog.get_logger(__name__)


class NoRoomForModel(Exception):
    """Models in use hold the memory that this one needs; it can be had once they are not used any more."""


class _LacksMemory(Exception):
    """A model was not loaded because an allocation failed."""


class Profiles(Protocol):
    """Where measurements are kept, so that they are made once."""

    def read(self, fingerprint: str, device: str) -> ModelProfile | None: ...

    def write(self, fingerprint: str, device: str, profile: ModelProfile) -> None: ...

    def unfinished_attempts(self, name: str) -> int:
        """How often in a row `name` was being loaded when the process ended."""
        ...

    def attempt(self, name: str) -> AbstractContextManager[None]:
        """Note that `name` is being loaded during the block."""
        ...


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """What all models together may take, in bytes; None: whatever there is."""

    host_bytes: int | None = None
    device_bytes: int | None = None  # a device

    def takes(self, cost: MemoryCost, held: Iterable[MemoryCost] = ()) -> bool:
        """Whether a model that costs `cost` may be loaded, and then run, beside those that are held."""
        beside = tuple(held)
        host = cost.peak_host_bytes + sum(other.host_bytes for other in beside)
        device = cost.device_bytes + sum(other.device_bytes for other in beside)
        fits_host = self.host_bytes is None or host <= self.host_bytes
        return fits_host and (self.device_bytes is None or device <= self.device_bytes)

    def more_than_left(self, held: Sequence[MemoryCost]) -> MemoryCost:
        """Return the least that does not fit beside what is held: what a model costs that just did not."""
        host = _one_more_than_left(self.host_bytes, sum(other.host_bytes for other in held))
        device = _one_more_than_left(self.device_bytes, sum(other.device_bytes for other in held))
        return MemoryCost(0, device, loading_bytes=host)


def _one_more_than_left(budget: int | None, held: int) -> int:
    return 0 if budget is None else min(budget, max(0, budget - held) + 1)


NO_BUDGET = ModelBudget()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model on all devices. Its detectors are equal: boxes do not depend on which one is asked."""

    devices: tuple[DeviceThread, ...]

    @property
    def detector(self) -> Detector:
        return self.devices[0].detector

    @property
    def runtime(self) -> str:
        """What computes the boxes, beside the model: another one may give other last digits."""
        return self.devices[0].runtime

    def least_busy(self) -> DeviceThread:
        """The device with the fewest batches waiting."""
        return min(self.devices, key=lambda device: device.queued_count)


@dataclass(slots=True, eq=False)
class _Held:
    model: LoadedModel
    cost: MemoryCost
    user_count: int = 0


class ModelPool:
    """Loads models when they are asked for, and unloads those longest unused when another needs their room.

    A model that somebody uses stays. Safe to use from many threads; models load one at a time.
    """

    def __init__(
        self,
        *,
        devices: Sequence[str],
        load: Callable[[str, str], Detector],
        profiles: Profiles,
        budget: ModelBudget = NO_BUDGET,
        most_attempts: int | None = None,
        ask_device: Ask = sticking_fault,
    ) -> None:
        """`load` takes a model's name and a torch device; it raises InvalidOption for an unknown name.

        A model at whose loading this process's forerunners ended `most_attempts` times in a row is refused.
        """
        if not devices:
            raise ValueError("a model needs a device")
        self._device_names = tuple(devices)
        self._load = load
        self._profiles = profiles
        self._budget = budget
        self._most_attempts = most_attempts
        self._ask_device = ask_device
        self._torch_threads = torch.get_num_threads()  # each thread has its own number
        self._loading = threading.Lock()  # held while a model loads: seconds
        self._loading_since: float | None = None
        self._changed = threading.Lock()  # guards what follows; never held for long
        self._held: dict[str, _Held] = {}  # longest unused first
        self._costs: dict[str, MemoryCost] = {}  # of every model that was ever loaded
        self._descriptions: dict[str, ModelDescription] = {}

    # ---- asked by jobs

    @contextmanager
    def use(self, name: str) -> Iterator[LoadedModel]:
        """Yield model `name`, loading it first if need be: seconds. It stays loaded during the block.

        Raises NoRoomForModel while models in use hold its room; ModelFault if it cannot be loaded, or takes
        more than the budget by itself; InvalidOption for an unknown name.
        """
        held = self._take(name) or self._load_and_take(name)
        try:
            yield held.model
        finally:
            with self._changed:
                held.user_count -= 1

    def in_use(self, name: str) -> LoadedModel:
        """Return a model that the caller, or whom it works for, uses. KeyError if nobody does."""
        with self._changed:
            return self._held[name].model

    # ---- asked by the engine

    def crowded_models(self) -> frozenset[str]:
        """The models for which `use` would find no room now, as far as their costs are known."""
        with self._changed:
            in_use = [held.cost for held in self._held.values() if held.user_count]
            return frozenset(
                name
                for name, cost in self._costs.items()
                if name not in self._held
                and self._budget.takes(cost)
                and not self._budget.takes(cost, in_use)
            )

    def descriptions(self) -> list[ModelDescription]:
        """What is known of every model that was loaded once, as ``/v1/models`` shows it, by name."""
        with self._changed:
            return [
                {**found, "loaded": name in self._held} for name, found in sorted(self._descriptions.items())
            ]

    def device_fault(self) -> Exception | None:
        """Why a device is of no use any more, so that the process has to start anew; None if all are well."""
        faults = (device.lost for device in self._devices())
        return next((fault for fault in faults if fault is not None), None)

    def slowest_call(self) -> tuple[float, str | None]:
        """How many seconds the slowest model has been at its present batch, and for whose job."""
        calls = [device.running_call for device in self._devices()]
        return max(calls, default=(0.0, None), key=lambda call: call[0])

    def loading_seconds(self) -> float:
        """How long a model has been loading; 0 while none is."""
        since = self._loading_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End every device's thread after the batch that it is at."""
        with self._changed:
            models, self._held = [held.model for held in self._held.values()], {}
        for model in models:
            _close(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _devices(self) -> list[DeviceThread]:
        with self._changed:
            return [device for held in self._held.values() for device in held.model.devices]

    # ---- loading

    def _take(self, name: str) -> _Held | None:
        with self._changed:
            held = self._held.pop(name, None)
            if held is not None:
                self._held[name] = held  # now it is the one used last
                held.user_count += 1
            return held

    def _load_and_take(self, name: str) -> _Held:
        with self._loading:
            held = self._take(name)  # somebody else may have loaded it meanwhile
            if held is not None:
                return held
            self._loading_since = time.monotonic()
            try:
                return self._hold(name)
            finally:
                self._loading_since = None

    def _hold(self, name: str) -> _Held:
        known = self._costs.get(name)
        if known is not None:
            self._make_room(name, known)
        model, cost = self._load_or_lack(name) or self._load_alone(name)
        try:
            self._make_room(name, cost)
        except BaseException:
            _close(model)
            del model
            drop_unused()
            raise
        held = _Held(model, cost, user_count=1)
        with self._changed:
            self._held[name] = held
        return held

    def _load_or_lack(self, name: str) -> tuple[LoadedModel, MemoryCost] | None:
        """Return the loaded model, or None if it finds no memory; of what it then held, nothing is kept."""
        with suppress(_LacksMemory):
            return self._load_on_devices(name)
        drop_unused()
        return None

    def _load_alone(self, name: str) -> tuple[LoadedModel, MemoryCost]:
        """Load a model that found no memory beside the others, now without those that nobody uses."""
        with self._changed:
            unused = [other for other, held in self._held.items() if not held.user_count]
            unloaded = [self._held.pop(other).model for other in unused]
            in_use = [held.cost for held in self._held.values()]
        if unloaded:
            self._unload(unloaded)
            found = self._load_or_lack(name)
            if found is not None:
                return found
        if not in_use:
            raise ModelFault(f"There is not enough memory to load model {name!r}.")
        with self._changed:
            self._costs[name] = self._budget.more_than_left(in_use)
        raise NoRoomForModel(name)

    def _make_room(self, name: str, cost: MemoryCost) -> None:
        """Unload unused models, longest unused first, until `cost` fits into the budget too."""
        if not self._budget.takes(cost):
            raise ModelFault(
                f"Model {name!r} takes {_told(cost)}; all models together may take "
                f"{_told_budget(self._budget)}."
            )
        unloaded = []
        with self._changed:
            while not self._budget.takes(cost, [held.cost for held in self._held.values()]):
                unused = next((other for other, held in self._held.items() if not held.user_count), None)
                if unused is None:
                    break
                unloaded.append(self._held.pop(unused).model)
            fits = self._budget.takes(cost, [held.cost for held in self._held.values()])
        self._unload(unloaded)
        if not fits:
            raise NoRoomForModel(name)

    def _unload(self, models: list[LoadedModel]) -> None:
        for model in models:
            _log.info("model unloaded", model=model.detector.name)
            _close(model)
        models.clear()
        drop_unused()

    def _load_on_devices(self, name: str) -> tuple[LoadedModel, MemoryCost]:
        torch.set_num_threads(self._torch_threads)
        unfinished = self._profiles.unfinished_attempts(name)
        if self._most_attempts is not None and unfinished >= self._most_attempts:
            raise ModelFault(f"The engine ended {unfinished} times while it loaded model {name!r}.")
        with self._profiles.attempt(name):
            try:
                return self._load_and_measure(name)
            except Exception as error:  # the model's boundary: whatever it raises is its own fault
                if _is_lack_of_memory(error):
                    _log.warning("model found no memory to load", exc_info=error, model=name)
                    raise _LacksMemory(name) from error
                lost = why_lost(error, self._device_names, self._ask_device)
                if lost is not None:
                    raise DeviceLost(str(lost)) from lost
                if isinstance(error, FrameboxError):
                    raise
                _log.error("model failed to load", exc_info=error, model=name)
                raise ModelFault(
                    f"Model {name!r} raised {type(error).__name__} when it was loaded and tried."
                ) from error

    def _load_and_measure(self, name: str) -> tuple[LoadedModel, MemoryCost]:
        meter = MemoryMeter(self._device_names[0])
        first = self._load(name, self._device_names[0])
        kept = self._profiles.read(first.fingerprint, first.device)
        profile = kept or measure(first, meter)
        if kept is None:
            self._profiles.write(first.fingerprint, first.device, profile)
        others = [self._load(name, device) for device in self._device_names[1:]]
        # All devices take the same batches: a frame's boxes may depend on the size of its batch.
        detectors = [SizedDetector(detector, profile["batch_size"]) for detector in (first, *others)]
        model = LoadedModel(tuple(DeviceThread(detector) for detector in detectors))
        cost = _cost(profile, device_count=len(detectors))
        with self._changed:
            self._costs[name] = cost
            self._descriptions[name] = describe_detector(model.detector, profile)
        for device in model.devices:
            device.start()
        return model, cost


def _close(model: LoadedModel) -> None:
    for device in model.devices:
        device.close()


def _is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether that is what an error comes of: formats say of all that goes wrong that a file is broken."""
    while error is not None:
        if isinstance(error, Exception) and is_out_of_memory(error):
            return True
        error = error.__cause__
    return False


def _cost(profile: ModelProfile, *, device_count: int) -> MemoryCost:
    """Return what a model takes that was measured so: once a device, and it is loaded on one at a time."""
    running = profile["host_bytes"]
    return MemoryCost(
        running * device_count,
        profile["device_bytes"],
        running * (device_count - 1) + profile["loading_bytes"],
    )


def _told(cost: MemoryCost) -> str:
    on_device = f" and {cost.device_bytes // MIB} MiB on its device" if cost.device_bytes else ""
    return f"{cost.peak_host_bytes // MIB} MiB of host memory{on_device}"


def _told_budget(budget: ModelBudget) -> str:
    limits = ((budget.host_bytes, "of host memory"), (budget.device_bytes, "on a device"))
    return " and ".join(f"{limit // MIB} MiB {what}" for limit, what in limits if limit is not None)
