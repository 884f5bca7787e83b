"""The models of this engine: loading each of them once, and what is known of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import structlog

from app.detection.model_facts import ModelFacts, ModelState, ModelStatus, NoRoomForModel, Refusal
from app.engine.host_pool import HostPool
from app.errors import FrameboxError, InvalidOption, ModelFault
from app.video.results import Cancelled, WorkCancelled

NO_ROOM_SECONDS = 5.0  # before a model without room is tried again
IDLE_CHECK_SECONDS = 0.1  # between two checks whether the hosts are idle

_log = structlog.get_logger(__name__)


class Catalog:
    """What this engine knows of its models. Thread-safe."""

    def __init__(
        self, hosts: HostPool, default_model: str, *, stop: threading.Event, wake: Callable[[], None]
    ) -> None:
        """`stop` is set when the engine stops. `wake` is called when `is_ready` or `fault` changes."""
        self._hosts = hosts
        self._default_model = default_model
        self._stop = stop
        self._wake = wake
        self._loading: threading.Thread | None = None
        self._lock = threading.Lock()
        self._facts: dict[str, ModelFacts] = {}
        self._refusals: dict[str, Refusal] = {}
        self.is_ready = False  # the default model has been loaded once
        self.fault: Exception | None = None  # why the default model could not be loaded at first

    @contextmanager
    def use(self, name: str, cancelled: Cancelled) -> Iterator[ModelFacts]:
        """Do what `HostPool.use` does, and remember the model's facts, or why it was refused."""
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

    def load_in_background(self, *, has_host_died: bool) -> None:
        """Load each model once, the default one first. After a host's death, load the default model again."""
        is_wanted = self._loading is None or (has_host_died and not self._loading.is_alive())
        if is_wanted and self._hosts.machine is not None:
            self._loading = threading.Thread(target=self._load_models, name="load-models", daemon=True)
            self._loading.start()

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return the state of every model; nothing before the first host is ready."""
        machine = self._hosts.machine
        loaded = self._hosts.loaded_models()
        statuses = []
        with self._lock:
            for name in () if machine is None else machine.model_names:
                if name in self._refusals:
                    state = ModelState.REFUSED
                elif name not in self._facts:
                    state = ModelState.LOADING
                else:
                    state = ModelState.READY if name in loaded else ModelState.UNLOADED
                facts, refusal = self._facts.get(name), self._refusals.get(name)
                statuses.append(ModelStatus(name=name, state=state, facts=facts, refusal=refusal))
        return tuple(statuses)

    def _load_models(self) -> None:
        started, default = time.monotonic(), self._default_model
        _log.info("default model is loading", model=default)
        try:
            with self.use(default, self._stop.is_set):
                self.is_ready = True
            _log.info("default model loaded", model=default, seconds=round(time.monotonic() - started, 2))
            self._wake()
            while not self._stop.wait(IDLE_CHECK_SECONDS):
                untried = [each.name for each in self.statuses() if each.state is ModelState.LOADING]
                if not untried:
                    break
                if self._hosts.is_idle():  # loading also measures the model: nothing else should compute
                    try:
                        with self.use(untried[0], self._stop.is_set):
                            pass
                    except FrameboxError as error:
                        _log.error(
                            "model cannot be used", model=untried[0], code=error.code, detail=error.detail
                        )
                    except (NoRoomForModel, WorkCancelled):
                        self._stop.wait(NO_ROOM_SECONDS)
            with self.use(default, self._stop.is_set):
                pass  # others may have taken its memory, or its host may have died
        except Exception as error:  # noqa: BLE001 - the thread's boundary
            if self._stop.is_set():
                return
            if self.is_ready:
                _log.warning("default model could not be loaded again", exc_info=True)
            else:
                self.fault = error
                self._wake()
