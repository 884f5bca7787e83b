"""The models of this engine: the trial of each, and what is known of it.

The folder of models is looked through now and then: a model that is new or has changed is tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from app.detection.model_facts import (
    ModelFacts,
    ModelState,
    ModelStatus,
    NoRoomForModel,
    Refusal,
    UntriedModel,
    Verdict,
)
from app.detection.model_files import FileMarks, changed_fault, file_marks, find_models, read_model
from app.engine.host_pool import HostPool
from app.engine.trials import SpawnTrial, TrialCrashed, TrialLacksMemory, TrialTooLate, run_trial
from app.errors import FrameboxError, ModelFault, error_classes
from app.host.messages import TrialPlan
from app.host.verdicts import VerdictStore
from app.video.results import Cancelled, WorkCancelled

CHECK_SECONDS = 0.1  # between two checks whether there is something to do
SCAN_SECONDS = 5.0  # between two looks into the folder of models
SETTLE_SECONDS = 2.0  # since a change of a model's files was seen: they may still be being written
FIRST_SECONDS = 15.0  # for a trial; one that takes longer is repeated after the others, with more time
MORE_TIME = 4.0  # times as much
CONVERSION_SECONDS = 240.0  # for the conversion of a model to ONNX
MOST_CHANGES = 3  # of a model's files while one job waits for it
MIB = 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrialRules:
    """What all trials have in common."""

    models: Path | None
    allowed_hashes: Path | None
    verdicts: Path
    host_bytes: int  # host memory of each host
    most_seconds: float


@dataclass(slots=True, eq=False)
class _Model:
    """A model, and what is known of it; neither facts nor refusal: it waits for its trial."""

    marks: FileMarks | None = None  # of its files when they were last looked at; None: it is built in
    changed_at: float = 0.0  # monotonic seconds
    facts: ModelFacts | None = None
    refusal: Refusal | None = None
    is_stale: bool = False  # a host has not accepted the verdict that is kept
    seconds: float = FIRST_SECONDS  # for its next trial
    needs_whole_host: bool = False  # beside a host there was too little memory for its trial
    is_on_trial: bool = False
    job_count: int = 0  # that wait for its verdict

    @property
    def is_untried(self) -> bool:
        return self.facts is None and self.refusal is None


class Catalog:
    """What this engine knows of its models. Thread-safe."""

    def __init__(
        self,
        hosts: HostPool,
        default_model: str,
        rules: TrialRules,
        *,
        spawn: SpawnTrial,
        stop: threading.Event,
        wake: Callable[[], None],
    ) -> None:
        """`stop` is set when the engine stops. `wake` is called when `is_ready` or `fault` changes."""
        self._hosts = hosts
        self._default_model = default_model
        self._rules = rules
        self._spawn = spawn
        self._stop = stop
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._must_load_default = False
        self._changed = threading.Condition()  # guards what follows
        self._models: dict[str, _Model] = {}
        self.is_ready = False  # the default model has been loaded once
        self.fault: Exception | None = None  # why the default model could not be loaded at first

    @contextmanager
    def use(self, name: str, cancelled: Cancelled) -> Iterator[ModelFacts]:
        """Do what `HostPool.use` does, once the model has passed its trial.

        Raises the reason if it is refused, and NoRoomForModel if its trial has to wait for the hosts' work.
        """
        with ExitStack() as stack:
            for _ in range(MOST_CHANGES):
                self._wait_for_verdict(name, cancelled)
                try:
                    facts = stack.enter_context(self._hosts.use(name, cancelled))
                except UntriedModel:  # its files have changed
                    self._note(name, facts=None, refusal=None, is_stale=True)
                except ModelFault as error:
                    self._note(name, refusal=Refusal(code=error.code, detail=error.detail))
                    raise
                else:
                    self._note(name, facts=facts, refusal=None, is_stale=False)
                    yield facts
                    return
        raise changed_fault(name)

    def crowded_models(self) -> frozenset[str]:
        """Return the models for which there is no room now, beside those in use."""
        crowded = self._hosts.crowded_models()
        if self._hosts.is_idle():
            return crowded
        with self._changed:
            waiting = {name for name, each in self._models.items() if self._must_wait(each)}
        return crowded | waiting

    def load_in_background(self, *, has_host_died: bool) -> None:
        """Try each model once, the default one first. After a host's death, load the default model again."""
        self._must_load_default |= has_host_died
        if self._thread is None and self._hosts.machine is not None:
            self._thread = threading.Thread(target=self._tend_models, name="models", daemon=True)
            self._thread.start()

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return the state of every model; nothing before the first host is ready."""
        loaded = self._hosts.loaded_models()
        statuses = []
        with self._changed:
            for name, model in sorted(self._models.items()):
                if model.refusal is not None:
                    state = ModelState.REFUSED
                elif model.facts is None:
                    state = ModelState.LOADING
                else:
                    state = ModelState.READY if name in loaded else ModelState.UNLOADED
                statuses.append(ModelStatus(name=name, state=state, facts=model.facts, refusal=model.refusal))
        return tuple(statuses)

    def _note(self, name: str, **news: object) -> None:
        with self._changed:
            if name in self._models:
                for field, value in news.items():
                    setattr(self._models[name], field, value)
                self._changed.notify_all()

    def _must_wait(self, model: _Model) -> bool:
        """Whether the trial of a model waits until no host has work."""
        return model.is_untried and model.needs_whole_host and not model.is_on_trial

    def _wait_for_verdict(self, name: str, cancelled: Cancelled) -> None:
        with self._changed:
            model = self._models.get(name)
            if model is None or model.marks is None:
                return
            model.job_count += 1
            try:
                while model.is_untried and self._models.get(name) is model:
                    if cancelled():
                        raise WorkCancelled
                    if self._must_wait(model) and not self._hosts.is_idle():
                        raise NoRoomForModel(name)
                    self._changed.wait(CHECK_SECONDS)
            finally:
                model.job_count -= 1
            if model.refusal is not None:
                raise error_classes()[model.refusal.code](model.refusal.detail)

    # ---- in the thread that tends the models

    def _tend_models(self) -> None:
        default, started = self._default_model, time.monotonic()
        next_scan = 0.0
        try:
            self._scan()
            _log.info("default model is loading", model=default)
            while (model := self._models.get(default)) and model.marks is not None and model.is_untried:
                self._judge(default, model)
                if self._stop.is_set():
                    return
            with self.use(default, self._stop.is_set):
                self.is_ready = True
            _log.info("default model loaded", model=default, seconds=round(time.monotonic() - started, 2))
            self._wake()
            while not self._stop.wait(CHECK_SECONDS):
                if time.monotonic() >= next_scan:
                    self._scan()
                    next_scan = time.monotonic() + SCAN_SECONDS
                if (name := self._next_untried()) is not None:
                    self._judge(name, self._models[name])
                elif self._must_load_default and self._hosts.is_idle():
                    self._must_load_default = False
                    self._load(default)
        except Exception as error:  # noqa: BLE001 - the thread's boundary
            if self._stop.is_set():
                return
            if self.is_ready:
                _log.error("models are no longer tried", exc_info=True)
            else:
                self.fault = error
                self._wake()

    def _scan(self) -> None:
        """Note which models there are, and which of them have changed."""
        machine = self._hosts.machine
        found = find_models(self._rules.models)
        marks = {name: file_marks(*paths) for name, paths in found.items()}
        with self._changed:
            for name in [*self._models]:
                if self._models[name].marks is not None and name not in found:
                    del self._models[name]
            for name in () if machine is None else machine.built_in_models:
                if name not in found:
                    self._models.setdefault(name, _Model())
            for name, mark in marks.items():
                known = self._models.get(name)
                if known is None or known.marks != mark:
                    is_first = not self.is_ready
                    self._models[name] = _Model(mark, 0.0 if is_first else time.monotonic())
            self._changed.notify_all()

    def _next_untried(self) -> str | None:
        """Return the model to try next: one that jobs wait for, else one whose files have settled."""
        is_idle, now = self._hosts.is_idle(), time.monotonic()
        with self._changed:
            able = [
                (not model.job_count, model.seconds, model.needs_whole_host, name)
                for name, model in self._models.items()
                if model.is_untried
                and (model.job_count or now - model.changed_at >= SETTLE_SECONDS)
                and (is_idle or not (model.needs_whole_host or model.marks is None))
            ]
        return min(able)[-1] if able else None

    def _load(self, name: str) -> None:
        try:
            with self.use(name, self._stop.is_set):
                pass
        except FrameboxError as error:
            _log.error("model cannot be used", model=name, code=error.code, detail=error.detail)
        except (NoRoomForModel, WorkCancelled):
            pass

    def _judge(self, name: str, model: _Model) -> None:
        """Find the verdict on a model among those that are kept, or by a trial, which may be put off."""
        if model.marks is None:
            self._load(name)
            return
        rules = self._rules
        try:
            content = read_model(name, rules.models, rules.allowed_hashes, most_bytes=rules.host_bytes)
            if content is None:
                return  # it was removed, which the next scan notices
            machine = self._hosts.machine
            store = VerdictStore(rules.verdicts, "" if machine is None else machine.runtime)
            fingerprint = content.fingerprint(0)
            verdict = None if model.is_stale else store.read(fingerprint)
            if verdict is None or not self._holds(verdict, name):
                verdict = self._try(name, model)
                if verdict is None:
                    return
                store.write(fingerprint, verdict)
        except ModelFault as error:
            verdict = Verdict(name=name, refusal=Refusal(code=error.code, detail=error.detail))
        if verdict.refusal is not None:
            _log.error("model cannot be used", model=name, **verdict.refusal.model_dump())
        facts = verdict.facts and verdict.facts.model_copy(update={"name": name})
        with self._changed:
            model.facts, model.refusal, model.is_stale = facts, verdict.refusal, False
            self._changed.notify_all()

    def _holds(self, verdict: Verdict, name: str) -> bool:
        """Whether a kept verdict still holds: a refusal names its model, and more memory or time may help."""
        return verdict.facts is not None or (
            verdict.name == name
            and (verdict.room_bytes is None or self._rules.host_bytes <= verdict.room_bytes)
            and (verdict.deadline_seconds is None or self._rules.most_seconds <= verdict.deadline_seconds)
        )

    def _try(self, name: str, model: _Model) -> Verdict | None:
        """Try a model; None if it has to be tried again. Raises ModelFault for one that cannot be used."""
        rules, started = self._rules, time.monotonic()
        seconds = min(model.seconds, rules.most_seconds)

        def cancelled() -> bool:
            """Whether a job needs the memory, or waits for another trial, and none for this one."""
            with self._changed:
                others = any(each.job_count and each.is_untried for each in self._models.values())
                is_in_the_way = not model.job_count and (others or self._hosts.is_room_wanted())
            return self._stop.is_set() or is_in_the_way

        is_whole = model.needs_whole_host
        model.is_on_trial = True
        try:
            with self._hosts.room_for_trial(name, whole=is_whole, cancelled=cancelled) as plan:
                verdict = run_trial(self._spawn, plan, seconds=seconds, cancelled=cancelled)
                if verdict.facts is not None and verdict.facts.is_convertible:
                    verdict = self._convert(replace(plan, verdict=verdict), verdict, is_whole, cancelled)
        except WorkCancelled:
            return None
        except TrialTooLate:
            if seconds < rules.most_seconds:
                model.seconds *= MORE_TIME
                return None
            detail = (
                f"The trial of model {name!r} did not end within {seconds:g} seconds "
                "(FRAMEBOX_MODEL_LOAD_SECONDS)."
            )
            refusal = Refusal(code=ModelFault.code, detail=detail)
            return Verdict(name=name, refusal=refusal, deadline_seconds=seconds)
        except (TrialLacksMemory, TrialCrashed) as error:
            if not is_whole:  # native code may crash where memory is short
                _log.info("model needs a trial of its own", model=name, reason=type(error).__name__)
                model.needs_whole_host = True
                return None
            if isinstance(error, TrialCrashed):
                raise ModelFault(f"The trial of model {name!r} ended with {error}.") from error
            refusal = Refusal(code=ModelFault.code, detail=self._lack(name, error))
            return Verdict(name=name, refusal=refusal, room_bytes=rules.host_bytes)
        finally:
            model.is_on_trial = False
            self._must_load_default = True  # it may have made room
        _log.info("model tried", model=name, seconds=round(time.monotonic() - started, 2))
        return verdict

    def _convert(self, plan: TrialPlan, verdict: Verdict, is_whole: bool, cancelled: Cancelled) -> Verdict:
        """Have a model that passed its trial converted; if that fails, it runs as it is.

        Raises TrialLacksMemory if there is more memory to be had.
        """
        seconds = min(CONVERSION_SECONDS, self._rules.most_seconds)
        try:
            converted = run_trial(self._spawn, plan, seconds=seconds, cancelled=cancelled)
            if converted.converted is None:
                return verdict
            plan = replace(plan, verdict=converted)
            return run_trial(self._spawn, plan, seconds=seconds, cancelled=cancelled)
        except (TrialTooLate, TrialCrashed, TrialLacksMemory) as error:
            if isinstance(error, TrialLacksMemory) and not is_whole:
                raise
            _log.warning("model stays on torch", model=plan.model, reason=f"{type(error).__name__} {error}")
            return verdict

    def _lack(self, name: str, error: TrialLacksMemory) -> str:
        setting = f"Raise FRAMEBOX_HOST_MEMORY_BYTES, which is {self._rules.host_bytes // MIB} MiB."
        needed = error.needed
        if needed is None:
            return f"Model {name!r} needs more host memory than there is. {setting}"
        on_device = f" and {needed.device_bytes // MIB} MiB on its device" if needed.device_bytes else ""
        return (
            f"Model {name!r} takes at least {needed.needed_bytes // MIB} MiB of host memory{on_device}; all "
            f"models together may take {needed.budget}. {setting}"
        )
