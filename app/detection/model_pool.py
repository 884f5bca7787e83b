"""The models that a device holds, within a budget: loaded when asked for, unloaded when unused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import structlog
import torch

from app.detection.detector import Detector, DeviceLost, is_out_of_memory
from app.detection.device import CallGate, DeviceStats, DeviceThread, add_stats
from app.detection.devices import FaultFinder, describe_runtime, sticking_fault, why_lost
from app.detection.measuring import MemoryCost, MemoryMeter, ModelProfile, drop_unused, measure
from app.detection.model_facts import ModelFacts, NoRoomForModel
from app.detection.registry import describe_detector
from app.errors import FrameboxError, ModelFault
from app.memory import large_blocks_apart, memory_use

MIB = 1024 * 1024

_log = structlog.get_logger(__name__)


class WornOut(Exception):
    """Unloaded models have left this process less memory than they should: a new process would have room."""


class Profiles(Protocol):
    """Keeps measurements, so that they are made once."""

    def read(self, fingerprint: str, device: str) -> ModelProfile | None: ...

    def write(self, fingerprint: str, device: str, profile: ModelProfile) -> None: ...

    def unfinished_attempts(self, name: str) -> int:
        """Return how often in a row the process ended while it loaded `name`."""

    def begin_attempt(self, name: str) -> None:
        """Note that `name` is being loaded."""

    def end_attempt(self, name: str) -> None:
        """Note that its loading has finished or failed, so that no attempt counts any more."""


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """What all models together may take, in bytes; None: no limit."""

    host_bytes: int | None = None
    device_bytes: int | None = None
    own_bytes: int = 0  # of the host, for the process itself

    def takes(self, cost: MemoryCost, held: Iterable[MemoryCost] = ()) -> bool:
        """Whether a model of that cost may be loaded, and then run, beside those in `held`."""
        beside = tuple(held)
        host = cost.peak_host_bytes + sum(other.host_bytes for other in beside)
        device = cost.device_bytes + sum(other.device_bytes for other in beside)
        fits_host = self.host_bytes is None or host <= self.host_bytes
        return fits_host and (self.device_bytes is None or device <= self.device_bytes)

    def more_than_left(self, held: Sequence[MemoryCost]) -> MemoryCost:
        """Return the least cost that does not fit beside `held`: the cost of a model that just did not."""
        host = _one_more_than_left(self.host_bytes, sum(other.host_bytes for other in held))
        device = _one_more_than_left(self.device_bytes, sum(other.device_bytes for other in held))
        return MemoryCost(0, device, loading_bytes=host)

    def describe(self) -> str:
        """Return the limits in words; empty if there is none."""
        limits = ((self.host_bytes, "of host memory"), (self.device_bytes, "on a device"))
        return " and ".join(f"{limit // MIB} MiB {what}" for limit, what in limits if limit is not None)


def _one_more_than_left(budget: int | None, held: int) -> int:
    return 0 if budget is None else min(budget, max(0, budget - held) + 1)


NO_BUDGET = ModelBudget()


@dataclass(slots=True, eq=False)
class _Held:
    model: DeviceThread
    cost: MemoryCost
    user_count: int = 0


class ModelPool:
    """Loads models on demand, and unloads those longest unused when another needs their room.

    A model in use stays. Safe to use from many threads; models load one at a time.
    """

    def __init__(
        self,
        *,
        device: str,
        load: Callable[[str], Detector],
        profiles: Profiles,
        budget: ModelBudget = NO_BUDGET,
        most_attempts: int | None = None,
        find_fault: FaultFinder = sticking_fault,
    ) -> None:
        """`load` takes a model's name and loads it onto `device`; InvalidOption for an unknown name.

        A model is refused after `most_attempts` processes in a row have died while they loaded it.
        """
        self._device = device
        self._load = load
        self._profiles = profiles
        self._budget = budget
        self._most_attempts = most_attempts
        self._find_fault = find_fault
        self._torch_threads = torch.get_num_threads()  # each thread has its own number
        self._gate = CallGate()
        self._own_at_start = memory_use().own
        self._is_fresh = True  # no model was unloaded yet, or found too little memory
        self._loading = threading.Lock()  # held while a model loads: seconds
        self._loading_since: float | None = None
        self._changed = threading.Lock()  # guards what follows; never held for long
        self._held: dict[str, _Held] = {}  # longest unused first
        self._costs: dict[str, MemoryCost] = {}  # of every model that was ever loaded
        self._facts: dict[str, ModelFacts] = {}
        self._past = DeviceStats()  # of unloaded models

    # ---- for jobs

    @contextmanager
    def use(self, name: str) -> Iterator[DeviceThread]:
        """Yield model `name`, loading it first if need be: seconds. It stays loaded during the block.

        Raises NoRoomForModel while models in use hold its room; WornOut if the memory that unloaded models
        should have left cannot be had, also for a lack of memory in the block; ModelFault if it cannot be
        loaded, or takes more than the whole budget; InvalidOption for an unknown name.
        """
        held = self._take(name)
        if held is None:
            with self._loading:
                held = self._take(name)  # another thread may have loaded it meanwhile
                if held is None:
                    self._loading_since = time.monotonic()
                    try:
                        held = self._load_and_hold(name)
                    finally:
                        self._loading_since = None
        try:
            yield held.model
        except Exception as error:
            if _is_lack_of_memory(error):
                with self._changed:
                    is_only_one_ever = self._is_fresh and [*self._held.values()] == [held]
                if not is_only_one_ever:
                    raise WornOut(str(error)) from error
            raise
        finally:
            with self._changed:
                held.user_count -= 1

    def in_use(self, name: str) -> DeviceThread:
        """Return a model that the caller, or the caller's caller, uses. KeyError if it is not loaded."""
        with self._changed:
            return self._held[name].model

    # ---- for the host

    def crowded_models(self) -> frozenset[str]:
        """Return the models for which `use` would find no room now, as far as their costs are known."""
        with self._changed:
            in_use = [held.cost for held in self._held.values() if held.user_count]
            return frozenset(
                name
                for name, cost in self._costs.items()
                if name not in self._held
                and self._budget.takes(cost)
                and not self._budget.takes(cost, in_use)
            )

    def facts_of(self, name: str) -> ModelFacts:
        """Return the facts of a model that was loaded before. KeyError if it never was."""
        with self._changed:
            return self._facts[name]

    def loaded(self) -> frozenset[str]:
        with self._changed:
            return frozenset(self._held)

    def devices(self) -> list[DeviceThread]:
        """Return the device threads of all loaded models."""
        with self._changed:
            return [held.model for held in self._held.values()]

    def totals(self) -> DeviceStats:
        """Return what all models have done since the start, unloaded ones included."""
        with self._changed:
            return add_stats([self._past, *(held.model.stats for held in self._held.values())])

    def loading_seconds(self) -> float:
        """Return how long the current loading has taken; 0 while there is none."""
        since = self._loading_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End every device's thread after its current batch."""
        with self._changed:
            models, self._held = [held.model for held in self._held.values()], {}
        for model in models:
            model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- loading

    def _take(self, name: str) -> _Held | None:
        with self._changed:
            held = self._held.pop(name, None)
            if held is not None:
                self._held[name] = held  # now it is the one used last
                held.user_count += 1
            return held

    def _load_and_hold(self, name: str) -> _Held:
        known = self._costs.get(name)
        if known is not None:
            self._make_room(name, known)
            # The budget has room for it; this process may not, if unloaded models have left it less memory.
            if self._budget.host_bytes is not None and not self._is_fresh:
                with self._changed:
                    is_used = any(held.user_count for held in self._held.values())
                taken = memory_use().own - self._own_at_start
                allowed = self._budget.host_bytes + self._budget.own_bytes
                if not is_used and taken + known.peak_host_bytes > allowed:
                    _log.warning("memory of unloaded models has not come back", bytes=taken, model=name)
                    raise WornOut(self._lack(name))
        was_fresh = self._is_fresh
        loaded = self._try_to_load(name)
        if loaded is None:  # it found no memory beside the others: try again without the unused ones
            had_unused = self._unload_unused()
            loaded = self._try_to_load(name) if had_unused else None
            if loaded is None:
                with self._changed:
                    in_use = [held.cost for held in self._held.values()]
                    if in_use:
                        self._costs[name] = self._budget.more_than_left(in_use)
                        raise NoRoomForModel(name)
                fault = self._lack(name)
                # Where no other model was ever loaded, no other model's memory can be missing.
                raise WornOut(fault) if had_unused or not was_fresh else ModelFault(fault)
        model, cost = loaded
        del loaded
        try:
            self._make_room(name, cost)
        except BaseException:
            model.close()
            del model
            drop_unused()
            raise
        held = _Held(model, cost, user_count=1)
        with self._changed:
            self._held[name] = held
        return held

    def _free_memory(self) -> None:
        """Give a running model all memory it can have: while none loads, and without the unused ones."""
        with self._loading:
            self._unload_unused()

    def _unload_unused(self) -> bool:
        """Unload models that are not in use; return whether there were any. The caller holds `_loading`."""
        with self._changed:
            unused = [name for name, held in self._held.items() if not held.user_count]
            models = [self._held.pop(name).model for name in unused]
        self._unload(models)
        return bool(unused)

    def _lack(self, name: str) -> str:
        """Return the message for a model that does not fit."""
        allowed = self._budget.describe()
        limit = f": all models together may take {allowed}" if allowed else ""
        return f"There is not enough memory to load model {name!r}{limit}."

    def _make_room(self, name: str, cost: MemoryCost) -> None:
        """Unload unused models, longest unused first, until `cost` fits into the budget too."""
        if not self._budget.takes(cost):
            on_device = f" and {cost.device_bytes // MIB} MiB on its device" if cost.device_bytes else ""
            raise ModelFault(
                f"Model {name!r} takes {cost.peak_host_bytes // MIB} MiB of host memory{on_device}; all "
                f"models together may take {self._budget.describe()}."
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

    def _unload(self, models: list[DeviceThread]) -> None:
        for model in models:
            _log.info("model unloaded", model=model.detector.name)
            model.close()
            self._is_fresh = False
            with self._changed:
                self._past = add_stats([self._past, model.stats])
        models.clear()
        drop_unused()

    def _try_to_load(self, name: str) -> tuple[DeviceThread, MemoryCost] | None:
        """Return the loaded model, or None if it finds no memory; then nothing is kept of it."""
        torch.set_num_threads(self._torch_threads)
        unfinished = self._profiles.unfinished_attempts(name)
        if self._most_attempts is not None and unfinished >= self._most_attempts:
            raise ModelFault(f"The host ended {unfinished} times while it loaded model {name!r}.")
        self._profiles.begin_attempt(name)
        try:
            loaded = self._load_and_measure(name)
        except BaseException as error:  # the model's boundary: whatever it raises, a panic in Rust too
            if _is_lack_of_memory(error):
                _log.warning("model found no memory to load", exc_info=error, model=name)
                self._profiles.end_attempt(name)
            elif (lost := why_lost(error, [self._device], self._find_fault)) is not None:
                raise DeviceLost(str(lost)) from error  # it ends the process: that attempt counts
            else:
                self._profiles.end_attempt(name)
                if isinstance(error, FrameboxError):
                    raise
                _log.error("model failed to load", exc_info=error, model=name)
                what = f"Model {name!r} raised {type(error).__name__} when it was loaded and tried."
                raise ModelFault(what) from error
        else:
            self._profiles.end_attempt(name)
            return loaded
        # Only now: the error would hold what the model had allocated.
        self._is_fresh = False
        drop_unused()
        return None

    def _load_and_measure(self, name: str) -> tuple[DeviceThread, MemoryCost]:
        meter = MemoryMeter(self._device)
        with large_blocks_apart():
            detector = self._load(name)
        kind = detector.device.partition(":")[0]
        profile = self._profiles.read(detector.fingerprint, kind)
        if profile is None:
            with self._gate.alone():  # what other models take meanwhile would count as this one's
                measured = measure(detector, meter)
            # Hosts that measure at the same time all use the first result: the batch size may change boxes.
            profile = self._profiles.read(detector.fingerprint, kind) or measured
            self._profiles.write(detector.fingerprint, kind, profile)
        model = DeviceThread(
            detector, batch_size=profile["batch_size"], gate=self._gate, free_memory=self._free_memory
        )
        cost = MemoryCost(profile["host_bytes"], profile["device_bytes"], profile["loading_bytes"])
        with self._changed:
            self._costs[name] = cost
            runtime = describe_runtime(detector.device, threads=self._torch_threads)
            self._facts[name] = describe_detector(detector, profile, runtime)
        model.start()
        return model, cost


def _is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether a lack of memory caused `error`: formats report any failure as a broken file."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__
    return False
