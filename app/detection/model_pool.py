"""The models that a device holds, within a budget: loaded when asked for, unloaded when unused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import structlog
import torch

from app.detection.detector import Detector, DeviceLost, is_lack_of_memory
from app.detection.device import DeviceStats, DeviceThread, add_stats
from app.detection.devices import FaultFinder, sticking_fault, why_lost
from app.detection.measuring import MemoryCost, drop_unused
from app.detection.model_facts import ModelFacts, NoRoomForModel, UntriedModel, Verdict
from app.detection.side_by_side import Arrangement
from app.errors import FrameboxError, ModelFault
from app.memory import large_blocks_apart, memory_use

MIB = 1024 * 1024

_log = structlog.get_logger(__name__)


class WornOut(Exception):
    """Unloaded models have left this process less memory than they should: a new process would have room."""


@dataclass(frozen=True, slots=True)
class TriedModel:
    """A model that passed its trial: what it is, what it takes, and how to load it."""

    facts: ModelFacts
    cost: MemoryCost
    arrangement: Arrangement
    load: Callable[[], Detector]  # takes seconds; raises whatever loading a model raises


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

    def describe(self) -> str:
        """Return the limits in words; empty if there is none."""
        limits = ((self.host_bytes, "of host memory"), (self.device_bytes, "on a device"))
        return " and ".join(f"{limit // MIB} MiB {what}" for limit, what in limits if limit is not None)


NO_BUDGET = ModelBudget()
NO_COST = MemoryCost(0)
LEAST_SHARE = 3  # models keep this part, one third, of their memory while a model is on trial


@dataclass(slots=True, eq=False)
class _Held:
    model: DeviceThread
    facts: ModelFacts
    cost: MemoryCost
    user_count: int = 0

    def is_outdated_by(self, verdict: Verdict | None) -> bool:
        """Whether it is another model than the verdict is on."""
        facts = None if verdict is None else verdict.facts
        return facts is not None and facts.identity != self.facts.identity


class ModelPool:
    """Loads models on demand, and unloads those longest unused when another needs their room.

    A model in use stays. Safe to use from many threads; models load one at a time.
    """

    def __init__(
        self,
        *,
        device: str,
        find: Callable[[str, Verdict | None], TriedModel],
        budget: ModelBudget = NO_BUDGET,
        find_fault: FaultFinder = sticking_fault,
    ) -> None:
        """`find` takes a model's name, and the verdict of its trial if it is not built in. It raises
        InvalidOption for an unknown one, ModelFault for one that may not be loaded, and UntriedModel for one
        whose files the verdict is not on.
        """
        self._device = device
        self._find = find
        self._whole_budget = self._budget = budget
        self._find_fault = find_fault
        self._torch_threads = torch.get_num_threads()  # each thread has its own number
        self._own_at_start = memory_use().own
        self._is_fresh = True  # no model was unloaded yet, or found too little memory
        self._loading = threading.Lock()  # held while a model loads: seconds
        self._loading_since: float | None = None
        self._changed = threading.Lock()  # guards what follows; never held for long
        self._held: dict[str, _Held] = {}  # longest unused first
        self._costs: dict[str, MemoryCost] = {}  # of every model that was ever asked for
        self._past = DeviceStats()  # of unloaded models

    # ---- for jobs

    @contextmanager
    def use(self, name: str, verdict: Verdict | None = None) -> Iterator[DeviceThread]:
        """Yield model `name`, loading it first if need be: seconds. It stays loaded during the block.

        With `verdict`, an unused model that was loaded by another verdict is unloaded first.

        Raises NoRoomForModel while models in use hold its room, or a trial has it; WornOut if there is less
        memory than there should be, also for a lack of memory in the block; ModelFault if it cannot be
        loaded, or takes more than the whole budget; and what `find` raises.
        """
        held = self._take(name, verdict)
        if held is None:
            with self._loading:
                held = self._take(name, verdict)  # another thread may have loaded it meanwhile
                if held is None:
                    self._loading_since = time.monotonic()
                    try:
                        held = self._load_and_hold(name, verdict)
                    finally:
                        self._loading_since = None
        try:
            yield held.model
        except Exception as error:
            if is_lack_of_memory(error):
                with self._changed:
                    is_whole = self._budget == self._whole_budget
                    is_only_one_ever = self._is_fresh and is_whole and [*self._held.values()] == [held]
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

    def without_room(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the models for which `use` would find no room now, as far as their costs are known.

        First those that do not fit beside the models in use, then those that do not while room is lent.
        """
        with self._changed:
            in_use = [held.cost for held in self._held.values() if held.user_count]
            others = [
                (name, cost)
                for name, cost in self._costs.items()
                if name not in self._held and self._whole_budget.takes(cost)
            ]
            crowded = {name for name, cost in others if not self._whole_budget.takes(cost, in_use)}
            lacking = {name for name, cost in others if not self._budget.takes(cost, in_use)}
        return frozenset(crowded), frozenset(lacking - crowded)

    def facts_of(self, name: str) -> ModelFacts:
        """Return the facts of a model that is loaded. KeyError if it is not."""
        with self._changed:
            return self._held[name].facts

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

    def lend_room(self) -> MemoryCost:
        """Load no more than a third of what models may take, until `take_room_back`; models in use stay.

        Return what this process then takes at most: of host memory in all, of the device for models.
        """
        whole = self._whole_budget
        with self._loading:
            with self._changed:
                in_use = [held.cost for held in self._held.values() if held.user_count]
                host_bytes = sum(cost.host_bytes for cost in in_use)
                device_bytes = sum(cost.device_bytes for cost in in_use)
                self._budget = replace(
                    whole,
                    host_bytes=max(host_bytes, (whole.host_bytes or 0) // LEAST_SHARE),
                    device_bytes=max(device_bytes, (whole.device_bytes or 0) // LEAST_SHARE),
                )
            self._unload_until_fits(NO_COST)
        return MemoryCost(
            self._own_at_start + whole.own_bytes + (self._budget.host_bytes or 0),
            self._budget.device_bytes or 0,
        )

    def take_room_back(self) -> None:
        """Load as many models as before."""
        with self._changed:
            self._budget = self._whole_budget

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

    def _take(self, name: str, verdict: Verdict | None) -> _Held | None:
        with self._changed:
            held = self._held.get(name)
            if held is None or (held.is_outdated_by(verdict) and not held.user_count):
                return None
            self._held[name] = self._held.pop(name)  # now it is the one used last
            held.user_count += 1
            return held

    def _load_and_hold(self, name: str, verdict: Verdict | None) -> _Held:
        found = self._find(name, verdict)
        with self._changed:
            self._costs[name] = found.cost
            outdated = self._held.pop(name, None)
        if outdated is not None:
            self._unload([outdated.model])
        self._make_room(name, found.cost)
        # The budget has room for it; this process may not, if unloaded models have left it less memory.
        if self._budget.host_bytes is not None and not self._is_fresh:
            with self._changed:
                is_used = any(held.user_count for held in self._held.values())
            taken = memory_use().own - self._own_at_start
            allowed = self._budget.host_bytes + self._budget.own_bytes
            if not is_used and taken + found.cost.peak_host_bytes > allowed:
                _log.warning("memory of unloaded models has not come back", bytes=taken, model=name)
                raise WornOut(self._lack(name))
        torch.set_num_threads(self._torch_threads)
        try:
            with large_blocks_apart():
                detector = found.load()
            model = DeviceThread(detector, arrangement=found.arrangement, free_memory=self._free_memory)
            model.start()
        except BaseException as error:  # the model's boundary: whatever it raises, a panic in Rust too
            if is_lack_of_memory(error):  # although its trial found enough
                _log.warning("model found no memory to load", exc_info=error, model=name)
                self._is_fresh = False
                raise WornOut(self._lack(name)) from None  # the error would hold what the model allocated
            if (lost := why_lost(error, [self._device], self._find_fault)) is not None:
                raise DeviceLost(str(lost)) from error
            if isinstance(error, FrameboxError | UntriedModel):
                raise
            _log.error("model failed to load", exc_info=error, model=name)
            raise ModelFault(f"Model {name!r} raised {type(error).__name__} when it was loaded.") from error
        held = _Held(model, found.facts, found.cost, user_count=1)
        with self._changed:
            self._held[name] = held
        return held

    def _free_memory(self) -> None:
        """Give a running model all memory it can have: while none loads, and without the unused ones."""
        with self._loading:
            self._unload_unused()

    def _unload_unused(self) -> None:
        """Unload models that are not in use. The caller holds `_loading`."""
        with self._changed:
            unused = [name for name, held in self._held.items() if not held.user_count]
            models = [self._held.pop(name).model for name in unused]
        self._unload(models)

    def _lack(self, name: str) -> str:
        allowed = self._whole_budget.describe()
        limit = f": all models together may take {allowed}" if allowed else ""
        return f"There is not enough memory to load model {name!r}{limit}."

    def _make_room(self, name: str, cost: MemoryCost) -> None:
        """Unload unused models, longest unused first, until `cost` fits into the budget too."""
        if not self._whole_budget.takes(cost):
            on_device = f" and {cost.device_bytes // MIB} MiB on its device" if cost.device_bytes else ""
            raise ModelFault(
                f"Model {name!r} takes {cost.peak_host_bytes // MIB} MiB of host memory{on_device}; all "
                f"models together may take {self._whole_budget.describe()}. Raise FRAMEBOX_HOST_MEMORY_BYTES."
            )
        if not self._unload_until_fits(cost):
            raise NoRoomForModel(name)

    def _unload_until_fits(self, cost: MemoryCost) -> bool:
        """Unload unused models, longest unused first, until `cost` fits beside the others. False if not."""
        unloaded = []
        with self._changed:
            while not (fits := self._budget.takes(cost, [held.cost for held in self._held.values()])):
                unused = next((other for other, held in self._held.items() if not held.user_count), None)
                if unused is None:
                    break
                unloaded.append(self._held.pop(unused).model)
        self._unload(unloaded)
        return fits

    def _unload(self, models: list[DeviceThread]) -> None:
        for model in models:
            _log.info("model unloaded", model=model.detector.name)
            model.close()
            self._is_fresh = False
            with self._changed:
                self._past = add_stats([self._past, model.stats])
        models.clear()
        drop_unused()
