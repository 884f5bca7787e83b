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
from app.detection.model_files import (
    FileMarks,
    changed_fault,
    file_marks,
    find_models,
    is_of_the_machine,
    read_model,
    reason,
)
from app.engine.host_pool import HostPool
from app.engine.trials import SpawnTrial, TrialCrashed, TrialLacksMemory, TrialTooLate, run_trial
from app.errors import ModelFault, error_classes
from app.host.messages import TrialPlan, TrialStep
from app.host.verdicts import VerdictStore
from app.storage.space import free_bytes, is_disk_full
from app.video.results import Cancelled, WorkCancelled

CHECK_SECONDS = 0.1  # between two checks whether there is something to do
SCAN_SECONDS = 5.0  # between two looks into the folder of models
SETTLE_SECONDS = 2.0  # since a change of a model's files was seen: they may still be being written
FAULT_SECONDS = 5.0  # after a fault of the machine
MOST_FAULTS = 3  # in a row, at one model: then it is refused, and tried again after REFUSED_SECONDS
REFUSED_SECONDS = 300.0
MOST_LOAD_FAULTS = 2  # of hosts, at a model that passes its trial again after the first
ROOM_SECONDS = 5.0  # that a model gets to be loaded after a trial has made room for it
FIRST_SECONDS = 15.0  # for a trial; one that takes longer is repeated after the others, with more time
MORE_TIME = 4.0  # times as much
PRECEDENCE_SECONDS = 60.0  # a trial of up to so long, for which jobs wait, goes before other jobs
CONVERSION_SECONDS = 240.0  # for the conversion of a model to ONNX
MOST_CANCELLED = 3  # trials of a model in a row: the next one goes before jobs
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
    min_free_bytes: int  # on disk: with less, no model is converted


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
    is_first: bool = False  # its trial goes before jobs of other models
    cancelled_count: int = 0  # of its trials, in a row
    fault_count: int = 0  # of the machine, in a row, for which there is no verdict
    load_fault_count: int = 0  # in a row, of hosts, although it passed its trial
    next_trial: float = 0.0  # monotonic seconds
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

    def check(self) -> None:
        """Raise the reason if it is refused."""
        if self.refusal is not None:
            raise error_classes()[self.refusal.code](self.refusal.detail)


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
        self._must_load_default = True
        self._has_cleaned = self._rules.models is None  # the store of verdicts
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
                if (facts := self._hold(stack, name, model, cancelled)) is not None:
                    yield facts
                    return
        raise changed_fault(name)

    def _hold(self, stack: ExitStack, name: str, model: _Model, cancelled: Cancelled) -> ModelFacts | None:
        """Have a host hold a model until `stack` closes; None if it has to be tried again, or is refused.

        Raises what `HostPool.use` raises.
        """
        verdict = model.verdict
        try:
            facts = stack.enter_context(self._hosts.use(name, cancelled, verdict))
        except (UntriedModel, ModelFault, OSError) as error:
            if is_disk_full(error):
                raise
            _log.warning("model was not loaded", model=name, reason=str(error))
            self._note_not_loaded(name, model, verdict, error)
            return None
        with self._changed:
            model.load_fault_count = 0
            if model.marks is None:
                model.facts, model.refusal, model.fault_count = facts, None, 0
        return facts

    def _note_not_loaded(self, name: str, model: _Model, verdict: Verdict | None, error: Exception) -> None:
        """Have a model tried again that a host could not load; refuse it if that has been done before.

        Raises `error` if there is no trial, because it is built in.
        """
        refusal = Refusal(code=error.code, detail=error.detail) if isinstance(error, ModelFault) else None
        with self._changed:
            if model.marks is None:
                model.refusal, self._next_scan = refusal, 0.0  # it may be a model of the folder by now
                raise error
            if model.verdict is not verdict or model.is_stale:
                return  # another has seen that before
            model.facts, model.passed, model.is_stale = None, None, True
            model.load_fault_count += not isinstance(error, UntriedModel)
            if model.load_fault_count >= MOST_LOAD_FAULTS and refusal is not None:
                model.refusal = refusal
            elif model.load_fault_count >= MOST_LOAD_FAULTS:
                self._refuse_for_a_while(name, model, error)

    def _refuse_for_a_while(self, name: str, model: _Model, error: Exception) -> None:
        detail = f"Model {name!r} could not be tried ({reason(error)}). It is tried again later."
        self._settle(name, model, refusal=Refusal(code=ModelFault.code, detail=detail))
        model.fault_count, model.next_trial = MOST_FAULTS, time.monotonic() + REFUSED_SECONDS

    def note_claim(self, name: str) -> None:
        """Note that a job for this model is about to start."""
        with self._changed:
            if name in self._models:
                self._models[name].claimed_at = time.monotonic()

    def crowded_models(self) -> frozenset[str]:
        """Return the models for which there is no room now, and none is to be made.

        A job for a model that only lacks the room of a trial is started: with that, the trial is cancelled.
        """
        crowded, displaced = self._hosts.crowded_models(), self._hosts.displaced_models()
        is_idle = self._hosts.is_idle()
        with self._changed:
            if any(model.is_first for model in self._models.values()):
                crowded |= displaced
            waiting = {name for name, model in self._models.items() if model.must_wait}
            if not is_idle:
                return crowded | waiting
            # The hosts stay idle for the trial that a job waits for.
            if any(self._models[name].is_awaited for name in waiting):
                return frozenset(self._models) - waiting
        return crowded

    def load_in_background(self, *, has_host_died: bool) -> None:
        """Tend the models in a thread of its own. After a host's death, load the default model again."""
        if has_host_died:  # else the other thread's value must stay
            self._must_load_default = True
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
                model.check()
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
        _log.info("default model is loading", model=self._default_model)
        while not self._stop.wait(CHECK_SECONDS):
            try:
                self._tend_once()
            except Exception as error:  # noqa: BLE001 - of the machine, or of the default model
                if not self.is_ready:
                    if not self._stop.is_set():
                        self.fault = error  # the engine ends with it
                        self._wake()
                    return
                _log.exception("models could not be tended")
                self._stop.wait(FAULT_SECONDS)

    def _tend_once(self) -> None:
        """Try the next model, or load the default one, if there is reason to.

        This thread never waits for a verdict: no other finds one.
        """
        self._scan()
        name = self._next_untried() if time.monotonic() >= self._next_trial else None
        if name is not None:
            self._judge(name, self._models[name])
        elif self._must_load_default and self._hosts.is_idle():
            self._load_default()
        elif not self._has_cleaned and not any(model.is_untried for model in self._models.values()):
            self._has_cleaned = True  # the verdicts on all models have just been read
            self._store().remove_unused()

    def _load_default(self) -> None:
        """Load the default model, unless it has to be tried first. Raises why it cannot be."""
        name, started = self._default_model, time.monotonic()
        model = self._models.get(name, _Model())
        if model.marks is not None and model.is_untried:
            return
        self._must_load_default = False
        if not self.is_ready:
            model.check()
        elif model.refusal is not None:
            return
        if not self._load(name, model):
            self._must_load_default = True
        elif not self.is_ready:
            self.is_ready = True
            _log.info("default model loaded", model=name, seconds=round(time.monotonic() - started, 2))
            self._wake()

    def _load(self, name: str, model: _Model) -> bool:
        """Have a host load a model. False if it has to be tried again, or there is no room for it now."""
        try:
            with ExitStack() as stack:
                return self._hold(stack, name, model, self._stop.is_set) is not None
        except (NoRoomForModel, WorkCancelled):
            return False

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
        """Return the model to try next: one that jobs wait for, else one whose files have settled.

        Before the default model is loaded, only that one is tried.
        """
        is_idle, now = self._hosts.is_idle(), time.monotonic()
        with self._changed:
            able = [
                (
                    not model.job_count,
                    name != self._default_model,
                    model.fault_count,
                    model.seconds,
                    model.needs_whole_host,
                    name,
                )
                for name, model in self._models.items()
                if (model.is_untried or model.fault_count)
                and now >= model.next_trial
                and (self.is_ready or (name == self._default_model and model.marks is not None))
                and (model.job_count or now - model.changed_at >= SETTLE_SECONDS)
                and (is_idle or not (model.needs_whole_host or model.marks is None))
            ]
        return min(able)[-1] if able else None

    def _store(self) -> VerdictStore:
        machine = self._hosts.machine
        return VerdictStore(self._rules.verdicts, "" if machine is None else machine.runtime)

    def _judge(self, name: str, model: _Model) -> None:
        """Find a verdict on a model; after a fault, whatever it was, it is tried again after the others."""
        try:
            if model.marks is None:
                self._load(name, model)
            else:
                self._find_verdict(name, model)
        except (WorkCancelled, ModelFault):  # the latter is noted as its refusal
            return
        except Exception as error:  # noqa: BLE001 - other models must not wait for this one
            _log.exception("model could not be tried", model=name)
            model.fault_count += 1
            model.next_trial = time.monotonic() + FAULT_SECONDS
            if model.fault_count >= MOST_FAULTS:
                self._refuse_for_a_while(name, model, error)

    def _find_verdict(self, name: str, model: _Model) -> None:
        """Find the verdict on a model among those that are kept, or by a trial, which may be put off.

        Raises whatever keeps it from being found.
        """
        rules, store = self._rules, self._store()
        paths = find_models(rules.models).get(name)
        if paths is None or self._marks(*paths) != model.marks:
            self._next_scan = 0.0  # it is being changed
            return
        verdict = None
        try:
            content = read_model(name, rules.models, rules.allowed_hashes, most_bytes=rules.host_bytes)
            if content is None:
                return
            fingerprint = content.fingerprint(0)
            verdict = None if model.is_stale else store.read(fingerprint)
            if verdict is None or not self._holds(verdict, name):
                verdict = self._try(name, model, fingerprint)
                if verdict is None:
                    return
                # A refusal is kept if it took long to find; the others may have a cause outside the files.
                if verdict.facts or verdict.room_bytes is not None or verdict.deadline_seconds is not None:
                    store.write(fingerprint, verdict)
            refusal = verdict.refusal
        except ModelFault as error:
            if is_of_the_machine(error):
                raise OSError(error.detail) from error
            refusal = Refusal(code=error.code, detail=error.detail)
        self._settle(name, model, verdict, refusal)

    def _settle(
        self, name: str, model: _Model, verdict: Verdict | None = None, refusal: Refusal | None = None
    ) -> None:
        if refusal is not None:
            _log.error("model cannot be used", model=name, **refusal.model_dump())
        with self._changed:
            model.refusal, model.is_stale, model.verdict, model.fault_count = refusal, False, verdict, 0
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
            is_idle, is_early = self._hosts.is_idle(), time.monotonic() - started <= PRECEDENCE_SECONDS
            with self._changed:
                is_awaited = model.job_count > 0 and model.seconds <= PRECEDENCE_SECONDS and is_early
                model.is_first = is_awaited or model.cancelled_count >= MOST_CANCELLED
                others = any(
                    each.job_count and each.is_untried and (is_idle or not each.must_wait)
                    for each in self._models.values()
                    if each is not model
                )
            if model.is_first or self._stop.is_set():
                return self._stop.is_set()
            if self._hosts.is_room_wanted():
                self._next_trial = time.monotonic() + ROOM_SECONDS
            elif not others:
                return False
            model.cancelled_count += 1
            return True

        def run(plan: TrialPlan, seconds: float) -> Verdict:
            return run_trial(self._spawn, plan, seconds=seconds, cancelled=cancelled)

        model.is_on_trial = True
        try:
            with self._hosts.room_for_trial(name, whole=is_whole, cancelled=cancelled) as plan:
                verdict = model.passed or run(plan, seconds)
                if verdict.content != fingerprint:  # its files have changed meanwhile, or could not be read
                    why = "its files have changed" if verdict.refusal is None else verdict.refusal.detail
                    raise OSError(why)
                if verdict.facts is not None:
                    model.passed = verdict
                    verdict = self._convert(plan, verdict, is_whole, run)
        except WorkCancelled:
            return None
        except TrialTooLate:
            model.cancelled_count = 0
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
            model.is_on_trial = model.is_first = False
            self._must_load_default = True  # it may have made room
        model.cancelled_count = 0
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
        if free_bytes(self._rules.verdicts.parent) < self._rules.min_free_bytes:
            _log.warning("model stays on torch", model=plan.model, reason="the disk is full")
            return verdict
        seconds = min(CONVERSION_SECONDS, self._rules.most_seconds)
        try:
            converted = run(replace(plan, step=TrialStep.CONVERT, verdict=verdict), seconds)
            if converted.converted is None:
                return verdict
            measured = run(replace(plan, step=TrialStep.MEASURE, verdict=converted), seconds)
        except (TrialTooLate, TrialCrashed, TrialLacksMemory) as error:
            if isinstance(error, TrialLacksMemory) and not is_whole:
                raise
            _log.warning("model stays on torch", model=plan.model, reason=f"{type(error).__name__} {error}")
            return verdict
        return measured if measured.facts is not None and measured.content == verdict.content else verdict

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
