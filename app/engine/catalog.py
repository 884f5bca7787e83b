"""Which models there are, and how each stands: what the engine tells the web workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog

from app.detection.model_facts import ModelFacts, ModelState, ModelStatus, NoRoomForModel, Refusal
from app.engine.host_pool import HostPool
from app.errors import FrameboxError, InvalidOption, ModelFault
from app.pipeline.runner import Cancelled, WorkCancelled

NO_ROOM_SECONDS = 5.0  # a model that found no room is tried again after so long

_log = structlog.get_logger(__name__)


class Catalog:
    """What this engine has learnt of its models. Safe to use from many threads."""

    def __init__(self, hosts: HostPool) -> None:
        self._hosts = hosts
        self._facts: dict[str, ModelFacts] = {}
        self._refusals: dict[str, Refusal] = {}
        self._lock = threading.Lock()

    @contextmanager
    def use(self, name: str, cancelled: Cancelled) -> Iterator[ModelFacts]:
        """As `HostPool.use`; what comes of it is remembered."""
        with ExitStack() as stack:
            try:
                facts = stack.enter_context(self._hosts.use(name, cancelled))
            except (ModelFault, InvalidOption) as error:
                with self._lock:
                    self._refusals[name] = Refusal(code=error.code, detail=error.detail)
                raise
            with self._lock:
                self._facts[name] = facts
                self._refusals.pop(name, None)
            yield facts

    def has_untried(self) -> bool:
        """Whether there are models that nobody has tried to load."""
        return bool(self._untried())

    def try_next(self, stop: threading.Event) -> None:
        """Load one of them, to check and to measure it.

        Returns once it is known how that model stands, or that it has to wait for room, or the engine stops.
        """
        name = self._untried()[0]
        try:
            with self.use(name, stop.is_set):
                pass
        except FrameboxError as error:
            _log.error("model left out", model=name, code=error.code, detail=error.detail)
        except (NoRoomForModel, WorkCancelled):
            stop.wait(NO_ROOM_SECONDS)

    def _untried(self) -> list[str]:
        with self._lock:
            known = self._facts.keys() | self._refusals.keys()
        return [name for name in self._hosts.machine.model_names if name not in known]

    def statuses(self) -> tuple[ModelStatus, ...]:
        """How every model stands."""
        loaded = self._hosts.loaded_models()
        with self._lock:
            return tuple(
                ModelStatus(
                    name=name,
                    state=self._state(name, name in loaded),
                    facts=self._facts.get(name),
                    refusal=self._refusals.get(name),
                )
                for name in (self._hosts.machine.model_names if self._hosts.has_begun else ())
            )

    def _state(self, name: str, is_loaded: bool) -> ModelState:
        if name in self._refusals:
            return ModelState.REFUSED
        if name not in self._facts:
            return ModelState.LOADING
        return ModelState.READY if is_loaded else ModelState.UNLOADED
