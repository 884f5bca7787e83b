"""The models of this engine: the trial of each, and what is known of it.

The folder of models is looked through now and then: a model that is new or has changed is tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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
from app.host.messages import TrialPlan, TrialStep
from app.host.verdicts import VerdictStore
from app.video.results import Cancelled, WorkCancelled

CHECK_SECONDS = 0.1  # between two checks whether there is something to do
SCAN_SECONDS = 5.0  # between two looks into the folder of models
SETTLE_SECONDS = 2.0  # since a change of a model's files was seen: they may still be being written
FAULT_SECONDS = 5.0  # after a fault of the machine
ROOM_SECONDS = 5.0  # that a model gets to be loaded after a trial has made room for it
FIRST_SECONDS = 15.0  # for a trial; one that takes longer is repeated after the others, with more time
MORE_TIME = 4.0  # times as much
PRECEDENCE_SECONDS = 60.0  # a trial of up to so long, for which jobs wait, goes before other jobs
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
    """A model, and what is known of it; neither a verdict nor a refusal: it waits for its trial."""

    marks: FileMarks | None = None  # of its files when they were last looked at; None: it is built in
    changed_at: float = 0.0  # monotonic seconds
    facts: ModelFacts | None = None
    verdict: Verdict | None = None  # that it passed
    refusal: Refusal | None = None
    is_stale: bool = False  # a host has not accepted the verdict that is kept
    passed: Verdict | None = None  # of a trial whose conversion was put off
    seconds: float = FIRST_SECONDS  # for its next trial
    needs_whole_host: bool = False  # beside a host there was too little memory for its trial
    is_on_trial: bool = False
    job_count: int = 0  # that wait for its verdict
    claimed_at: float = -ROOM_SECONDS  # monotonic seconds; when a job for it was started

    @property
    def is_untried(self) -> bool:
        return self.facts is None and self.refusal is None

    @property
    def must_wait(self) -> bool:
        """Whether its trial waits until no host has work."""
        return self.is_untried and self.needs_whole_host and not self.is_on_trial

    @property
    def is_awaited(self) -> bool:
        """Whether a job waits for it, or is about to."""
        return self.job_count > 0 or time.monotonic() - self.claimed_at < ROOM_SECONDS

    def refuse(self, error: FrameboxError) -> None:
        self.refusal = Refusal(code=error.code, detail=error.detail)


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
        self._next_scan = self._next_trial = 0.0  # monotonic seconds
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
                model = self._wait_for_verdict(name, cancelled)
                try:
                    facts = stack.enter_context(self._hosts.use(name, cancelled, model.verdict))
                except UntriedModel:  # its files have changed
                    with self._changed:
                        model.facts, model.passed, model.is_stale = None, None, True
                except ModelFault as error:
                    with self._changed:
                        model.refuse(error)
                    raise
                else:
                    if model.marks is None:
                        with self._changed:
                            model.facts = facts
                    yield facts
                    return
        raise changed_fault(name)

    def note_claim(self, name: str) -> None:
        """Note that a job for this model is about to start."""
        with self._changed:
            if name in self._models:
                self._models[name].claimed_at = time.monotonic()

    def crowded_models(self) -> frozenset[str]:
        """Return the models for which there is no room now, beside those in use."""
        crowded, is_idle = self._hosts.crowded_models(), self._hosts.is_idle()
        with self._changed:
            waiting = {name for name, model in self._models.items() if model.must_wait}
            if not is_idle:
                return crowded | waiting
            # The hosts stay idle for the trial that a job waits for.
            if any(self._models[name].is_awaited for name in waiting):
                return frozenset(self._models) - waiting
        return crowded

    def load_in_background(self, *, has_host_died: bool) -> None:
        """Tend the models in a thread of its own. After a host's death, load the default model again."""
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

    def _wait_for_verdict(self, name: str, cancelled: Cancelled) -> _Model:
        """Return the model once it has passed its trial; at once if it is built in or unknown."""
        with self._changed:
            while True:  # its files may change meanwhile: then it is another one
                model = self._models.get(name, _Model())
                if model.refusal is not None:
                    raise error_classes()[model.refusal.code](model.refusal.detail)
                if model.marks is None or model.facts is not None:
                    return model
                if cancelled():
                    raise WorkCancelled
                if model.must_wait and not self._hosts.is_idle():
                    raise NoRoomForModel(name)
                model.job_count += 1
                self._changed.wait(CHECK_SECONDS)
                model.job_count -= 1

    # ---- in the thread that tends the models

    def _tend_models(self) -> None:
        try:
            self._load_default()
        except Exception as error:  # noqa: BLE001 - the engine ends with it
            if not self._stop.is_set():
                self.fault = error
                self._wake()
            return
        if self._rules.models is not None:
            self._store().remove_unused()
        while not self._stop.wait(CHECK_SECONDS):
            try:
                self._tend_once()
            except Exception:  # noqa: BLE001 - of the machine: no process or file can be had
                _log.exception("models could not be tried")
                self._stop.wait(FAULT_SECONDS)

    def _load_default(self) -> None:
        """Load the default model for the first time. Raises why it cannot be."""
        default, started = self._default_model, time.monotonic()
        self._scan()
        _log.info("default model is loading", model=default)
        while (model := self._models.get(default)) and model.marks is not None and model.is_untried:
            self._judge(default, model)
            if self._stop.wait(CHECK_SECONDS):
                raise WorkCancelled
            self._scan()
        with self.use(default, self._stop.is_set):
            self.is_ready = True
        _log.info("default model loaded", model=default, seconds=round(time.monotonic() - started, 2))
        self._wake()

    def _tend_once(self) -> None:
        """Try the next model, or load the default one, if there is reason to."""
        self._scan()
        if time.monotonic() >= self._next_trial and (name := self._next_untried()) is not None:
            self._judge(name, self._models[name])
        elif self._must_load_default and self._hosts.is_idle():
            self._must_load_default = False
            self._load(self._default_model)

    def _scan(self) -> None:
        """Note now and then which models there are, and which of them have changed."""
        now = time.monotonic()
        if now < self._next_scan:
            return
        self._next_scan = now + SCAN_SECONDS
        machine = self._hosts.machine
        found = find_models(self._rules.models)
        marks = {name: self._marks(*paths) for name, paths in found.items()}
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
                    self._models[name] = _Model(mark, now if self.is_ready else 0.0)
            self._changed.notify_all()

    def _marks(self, *paths: Path) -> FileMarks:
        """Return what changes with a model's files, and with the list of those that are allowed."""
        allowed = self._rules.allowed_hashes
        return file_marks(*paths) if allowed is None else file_marks(*paths, allowed)

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

    def _store(self) -> VerdictStore:
        machine = self._hosts.machine
        return VerdictStore(self._rules.verdicts, "" if machine is None else machine.runtime)

    def _judge(self, name: str, model: _Model) -> None:
        """Find the verdict on a model among those that are kept, or by a trial, which may be put off."""
        if model.marks is None:
            self._load(name)
            return
        rules, store = self._rules, self._store()
        paths = find_models(rules.models).get(name)
        if paths is None or self._marks(*paths) != model.marks:
            self._next_scan = 0.0  # it is being changed
            return
        try:
            content = read_model(name, rules.models, rules.allowed_hashes, most_bytes=rules.host_bytes)
            if content is None:
                return
            fingerprint = content.fingerprint(0)
            verdict = None if model.is_stale else store.read(fingerprint)
            if verdict is None or not self._holds(verdict, name):
                verdict = self._try(name, model, fingerprint)
                if verdict is None or verdict.content != fingerprint:  # … or its files changed meanwhile
                    return
                # A refusal is kept if it took long to find; the others may have a cause outside the files.
                if verdict.facts or verdict.room_bytes is not None or verdict.deadline_seconds is not None:
                    store.write(fingerprint, verdict)
            refusal = verdict.refusal
        except ModelFault as error:
            verdict, refusal = None, Refusal(code=error.code, detail=error.detail)
        if refusal is not None:
            _log.error("model cannot be used", model=name, **refusal.model_dump())
        with self._changed:
            model.refusal, model.is_stale, model.verdict = refusal, False, verdict
            if verdict is not None and verdict.facts is not None:
                model.facts = verdict.facts.model_copy(update={"name": name})
            self._changed.notify_all()

    def _holds(self, verdict: Verdict, name: str) -> bool:
        """Whether a kept verdict still holds: a refusal names its model, and more memory or time may help."""
        rules, machine = self._rules, self._hosts.machine
        if verdict.facts is not None:
            return machine is None or verdict.facts.memory_bytes <= machine.models_bytes
        return (
            verdict.name == name
            and (verdict.room_bytes is None or rules.host_bytes <= verdict.room_bytes)
            and (verdict.deadline_seconds is None or rules.most_seconds <= verdict.deadline_seconds)
        )

    def _try(self, name: str, model: _Model, fingerprint: str) -> Verdict | None:
        """Try a model; None if it has to be tried again. Raises ModelFault for one that cannot be used."""
        rules, started = self._rules, time.monotonic()
        seconds, is_whole = min(model.seconds, rules.most_seconds), model.needs_whole_host

        def cancelled() -> bool:
            """Whether a job needs the memory, or waits for another trial, and none for this one."""
            with suppress(OSError):
                self._scan()
            with self._changed:
                is_first = model.job_count and model.seconds <= PRECEDENCE_SECONDS
                others = any(
                    each.job_count and each.is_untried and not each.must_wait
                    for each in self._models.values()
                    if each is not model
                )
            return self._stop.is_set() or (not is_first and (others or self._hosts.is_room_wanted()))

        def run(plan: TrialPlan, seconds: float) -> Verdict:
            return run_trial(self._spawn, plan, seconds=seconds, cancelled=cancelled)

        model.is_on_trial = True
        try:
            with self._hosts.room_for_trial(name, whole=is_whole, cancelled=cancelled) as plan:
                model.passed = model.passed or run(plan, seconds)
                verdict = self._convert(plan, model.passed, is_whole, run)
        except WorkCancelled:
            self._next_trial = time.monotonic() + ROOM_SECONDS
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
            return Verdict(name=name, content=fingerprint, refusal=refusal, deadline_seconds=seconds)
        except (TrialLacksMemory, TrialCrashed) as error:
            if not is_whole:  # native code may crash where memory is short
                _log.info("model needs a trial of its own", model=name, reason=type(error).__name__)
                model.needs_whole_host = True
                return None
            if isinstance(error, TrialCrashed):
                raise ModelFault(f"The trial of model {name!r} ended with {error}.") from error
            refusal = Refusal(code=ModelFault.code, detail=self._lack(name, error))
            return Verdict(name=name, content=fingerprint, refusal=refusal, room_bytes=rules.host_bytes)
        finally:
            model.is_on_trial = False
            self._must_load_default = True  # it may have made room
        _log.info("model tried", model=name, seconds=round(time.monotonic() - started, 2))
        return verdict

    def _convert(
        self,
        plan: TrialPlan,
        verdict: Verdict,
        is_whole: bool,
        run: Callable[[TrialPlan, float], Verdict],
    ) -> Verdict:
        """Have a model that passed its trial converted; if that fails, it runs as it is.

        Raises WorkCancelled, and TrialLacksMemory if there is more memory to be had.
        """
        if verdict.facts is None or not verdict.facts.is_convertible:
            return verdict
        seconds = min(CONVERSION_SECONDS, self._rules.most_seconds)
        try:
            converted = run(replace(plan, step=TrialStep.CONVERT, verdict=verdict), seconds)
            if converted.converted is None:
                return verdict
            return run(replace(plan, step=TrialStep.MEASURE, verdict=converted), seconds)
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
            f"Model {name!r} needs {needed.needed_bytes // MIB} MiB of host memory{on_device}, or more; all "
            f"models together may take {needed.budget}."
            + ("" if needed.is_device_too_small else f" {setting}")
        )
