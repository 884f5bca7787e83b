"""What the engine knows of its models: trials, verdicts, refusals. Hosts and trials follow the test."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_host_pool import FACTS, PLAN, WAIT_SECONDS

from app.detection.model_facts import ModelFacts, ModelState, NoRoomForModel, Refusal, UntriedModel, Verdict
from app.detection.model_files import read_model
from app.engine import catalog as catalog_module
from app.engine.catalog import Catalog, TrialRules
from app.engine.trials import TrialCrashed, TrialLacksMemory, TrialTooLate
from app.errors import ModelFault
from app.host.messages import HostReady, TrialPlan, TrialTooLarge
from app.video.results import Cancelled, WorkCancelled

HOST_BYTES = 1 << 30


class FakeHosts:
    """As much of a HostPool as a catalog uses."""

    def __init__(self) -> None:
        self.machine = HostReady("cpu", ("cpu",), "decoder", None, ("none",), HOST_BYTES, "a test", 0)
        self.is_busy = False
        self.is_wanted = False
        self.used: list[tuple[str, Verdict | None]] = []
        self.faults: list[Exception] = []
        self.whole: list[bool] = []
        self.displaced: frozenset[str] = frozenset()

    @contextmanager
    def use(self, name: str, _: Cancelled, verdict: Verdict | None = None) -> Iterator[ModelFacts]:
        self.used.append((name, verdict))
        if name != "none" and self.faults:
            raise self.faults.pop(0)
        if name != "none" and verdict is None:
            raise UntriedModel(name)
        yield FACTS if verdict is None or verdict.facts is None else verdict.facts

    @contextmanager
    def room_for_trial(self, name: str, *, whole: bool, **_: Cancelled) -> Iterator[TrialPlan]:
        self.whole.append(whole)
        yield TrialPlan(replace(PLAN, device="cpu"), name, HOST_BYTES)

    def is_idle(self) -> bool:
        return not self.is_busy

    def is_room_wanted(self) -> bool:
        return self.is_wanted

    def crowded_models(self) -> frozenset[str]:
        return frozenset()

    def displaced_models(self) -> frozenset[str]:
        return self.displaced

    def loaded_models(self) -> frozenset[str]:
        return frozenset()


class Setup:
    """A catalog of a folder with one model, whose trials end as the test says."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(catalog_module, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(catalog_module, "SCAN_SECONDS", 0.05)
        monkeypatch.setattr(catalog_module, "FAULT_SECONDS", 0.05)
        monkeypatch.setattr(catalog_module, "ROOM_SECONDS", 0.05)
        monkeypatch.setattr(catalog_module, "run_trial", self.run_trial)
        self.folder = tmp_path / "models"
        self.folder.mkdir()
        self.write("first")
        self.verdicts = tmp_path / "verdicts"
        self.min_free_bytes = 0
        self.hosts = FakeHosts()
        self.outcomes: list[Any] = []  # of the next trials: an error, a change of the passing verdict, a call
        self.tried: list[float] = []  # the seconds that each trial had
        self.stop = threading.Event()
        self.catalog = self.start()

    def start(
        self,
        host_bytes: int = HOST_BYTES,
        allowed_hashes: Path | None = None,
        default_model: str = "none",
    ) -> Catalog:
        """Return a new catalog that has seen the folder; the one before has stopped."""
        made = self.begin(host_bytes, allowed_hashes, default_model)
        self.wait_for(lambda: made.is_ready)
        return made

    def begin(
        self,
        host_bytes: int = HOST_BYTES,
        allowed_hashes: Path | None = None,
        default_model: str = "none",
    ) -> Catalog:
        self.stop.set()
        self.stop = threading.Event()
        rules = TrialRules(self.folder, allowed_hashes, self.verdicts, host_bytes, 100.0, self.min_free_bytes)
        made = Catalog(
            self.hosts,  # type: ignore[arg-type]
            default_model,
            rules,
            spawn=lambda *_: None,  # type: ignore[arg-type]
            stop=self.stop,
            wake=lambda: None,
        )
        made.load_in_background(has_host_died=False)
        return made

    def write(self, content: str) -> None:
        (self.folder / "street.onnx").write_text(content)

    def passing(self) -> Verdict:
        content = read_model("street", self.folder, None)
        assert content is not None
        facts = FACTS.model_copy(update={"run_by": "onnxruntime", "sha256": content.fingerprint(1)})
        return Verdict(name="street", content=content.fingerprint(0), facts=facts)

    def run_trial(self, *_: object, seconds: float, **__: Cancelled) -> Verdict:
        self.tried.append(seconds)
        outcome = self.outcomes.pop(0) if self.outcomes else {}
        if isinstance(outcome, Exception):
            raise outcome
        if callable(outcome):
            outcome()
            outcome = {}
        return self.passing().model_copy(update=outcome)

    def state(self, name: str = "street") -> ModelState | None:
        return next((each.state for each in self.catalog.statuses() if each.name == name), None)

    def refusal(self) -> str:
        (status,) = (each for each in self.catalog.statuses() if each.name == "street")
        assert status.refusal is not None
        return status.refusal.detail

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "not in time"
            time.sleep(0.01)

    def wait_for_state(self, state: ModelState) -> None:
        self.wait_for(lambda: self.state() is state)

    def use(self) -> ModelFacts:
        with self.catalog.use("street", lambda: False) as facts:
            return facts


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    made = Setup(tmp_path, monkeypatch)
    yield made
    made.stop.set()
    time.sleep(0.2)


def test_a_model_that_passed_is_used_by_its_verdict(setup: Setup) -> None:
    assert setup.use() == setup.passing().facts
    assert setup.hosts.used[-1] == ("street", setup.passing())
    setup.wait_for_state(ModelState.UNLOADED)


def test_a_verdict_is_kept_and_a_changed_file_is_tried(setup: Setup) -> None:
    setup.use()
    setup.catalog = setup.start()
    setup.wait_for_state(ModelState.UNLOADED)
    assert len(setup.tried) == 1
    before = setup.passing().content
    setup.write("second")
    setup.wait_for(lambda: len(setup.tried) == 2)
    setup.wait_for_state(ModelState.UNLOADED)
    setup.use()
    (_, verdict) = setup.hosts.used[-1]
    assert verdict is not None
    assert verdict.content != before


def test_a_change_of_the_list_of_allowed_hashes_counts_at_once(setup: Setup, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed.sha256"
    allowed.write_text("")
    setup.catalog = setup.start(allowed_hashes=allowed)
    setup.wait_for_state(ModelState.REFUSED)
    digest = hashlib.sha256(b"first").hexdigest()
    assert f"{digest}  street.onnx" in setup.refusal()
    allowed.write_text(f"{digest}  street.onnx\n")
    setup.wait_for_state(ModelState.UNLOADED)
    allowed.write_text("")
    setup.wait_for_state(ModelState.REFUSED)


def test_a_refusal_is_tried_again_at_the_next_start(setup: Setup) -> None:
    refusal = {"facts": None, "refusal": Refusal(code="model_fault", detail="A package is missing.")}
    setup.outcomes.append(refusal)
    with pytest.raises(ModelFault, match="A package is missing"):
        setup.use()
    assert setup.state() is ModelState.REFUSED
    setup.catalog = setup.start()
    setup.wait_for_state(ModelState.UNLOADED)


def test_a_verdict_on_other_files_is_none(setup: Setup) -> None:
    setup.outcomes.append(lambda: setup.write("written during its trial"))
    setup.use()
    (_, verdict) = setup.hosts.used[-1]
    assert verdict == setup.passing()


def test_a_lack_of_memory_is_judged_by_the_room_of_a_whole_host_and_kept_until_there_is_more(
    setup: Setup,
) -> None:
    lack = TrialLacksMemory(TrialTooLarge(5 << 30, 0, "900 MiB of host memory"))
    setup.outcomes += [lack, lack]
    setup.wait_for_state(ModelState.REFUSED)
    assert setup.hosts.whole == [False, True]
    refusal = setup.refusal()
    assert "needs 5120 MiB of host memory, or more" in refusal
    assert "900 MiB of host memory" in refusal
    assert "FRAMEBOX_HOST_MEMORY_BYTES" in refusal
    setup.catalog = setup.start()
    setup.wait_for_state(ModelState.REFUSED)
    assert len(setup.tried) == 2
    setup.catalog = setup.start(host_bytes=2 * HOST_BYTES)
    setup.wait_for_state(ModelState.UNLOADED)


def test_a_crash_is_judged_where_there_is_memory_enough(setup: Setup) -> None:
    setup.outcomes.append(TrialCrashed("signal 6 (Aborted)"))
    setup.wait_for_state(ModelState.UNLOADED)
    assert setup.hosts.whole == [False, True]
    setup.write("second")
    setup.outcomes += [TrialCrashed("signal 6 (Aborted)")] * 2
    setup.wait_for_state(ModelState.REFUSED)
    assert setup.refusal() == "The trial of model 'street' ended with signal 6 (Aborted)."


def test_a_trial_that_takes_too_long_gets_more_time_up_to_the_limit(setup: Setup) -> None:
    setup.outcomes += [TrialTooLate(), TrialTooLate(), TrialTooLate()]
    setup.wait_for_state(ModelState.REFUSED)
    assert setup.tried == [15.0, 60.0, 100.0]
    assert "did not end within 100 seconds" in setup.refusal()
    setup.catalog = setup.start()
    setup.wait_for_state(ModelState.REFUSED)
    assert len(setup.tried) == 3


def test_a_fault_of_the_machine_ends_no_tending(setup: Setup) -> None:
    setup.outcomes += [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
    setup.wait_for_state(ModelState.UNLOADED)
    assert len(setup.tried) == 3


def test_a_folder_that_is_away_for_a_while_comes_back(setup: Setup) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    away = setup.folder.with_name("away")
    setup.folder.rename(away)
    time.sleep(0.3)
    away.rename(setup.folder)
    setup.write("second")
    setup.wait_for(lambda: len(setup.tried) == 2)


def test_a_host_that_does_not_know_the_files_has_them_tried_again(setup: Setup) -> None:
    setup.hosts.faults.append(UntriedModel("street"))
    setup.use()
    assert len(setup.tried) == 2


def test_a_model_that_needs_a_whole_host_waits_for_its_work_and_then_goes_first(setup: Setup) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    setup.hosts.is_busy = True
    setup.outcomes.append(TrialLacksMemory())
    setup.write("second")
    setup.wait_for(lambda: len(setup.tried) == 2)
    with pytest.raises(NoRoomForModel):
        setup.use()
    assert setup.catalog.crowded_models() == {"street"}
    entered = threading.Event()

    def hold() -> None:
        entered.set()
        assert setup.catalog.crowded_models() == frozenset()  # it is on trial

    setup.outcomes.append(hold)
    setup.catalog.note_claim("street")
    setup.hosts.is_busy = False
    setup.use()
    assert entered.is_set()
    assert setup.hosts.whole[-2:] == [False, True]


def test_the_default_model_is_tried_again_if_a_host_asks_for_it(setup: Setup) -> None:
    """At a start, and while the service runs: the thread that tends the models never waits for itself."""
    setup.wait_for_state(ModelState.UNLOADED)
    setup.hosts.faults.append(UntriedModel("street"))
    setup.catalog = setup.start(default_model="street")
    assert len(setup.tried) == 2
    setup.hosts.faults.append(UntriedModel("street"))
    setup.catalog.load_in_background(has_host_died=True)
    setup.wait_for(lambda: len(setup.tried) == 3)
    setup.wait_for_state(ModelState.UNLOADED)


def test_a_default_model_that_is_replaced_while_it_is_to_be_loaded_is_tried_first(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.catalog = setup.start(default_model="street")
    monkeypatch.setattr(catalog_module, "SETTLE_SECONDS", 0.5)
    setup.hosts.is_busy = True
    setup.catalog.load_in_background(has_host_died=True)
    setup.write("second")
    setup.wait_for_state(ModelState.LOADING)
    setup.hosts.is_busy = False
    setup.wait_for_state(ModelState.UNLOADED)
    setup.wait_for(lambda: setup.hosts.used[-1] == ("street", setup.passing()))


def test_a_default_model_that_is_refused_ends_the_start(setup: Setup) -> None:
    setup.write("second")
    setup.outcomes.append({"facts": None, "refusal": Refusal(code="model_fault", detail="its own words")})
    catalog = setup.begin(default_model="street")
    setup.wait_for(lambda: catalog.fault)
    assert isinstance(catalog.fault, ModelFault)
    assert catalog.fault.detail == "its own words"


def test_a_trial_that_could_not_read_the_files_is_repeated_and_then_refused_for_a_while(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "REFUSED_SECONDS", 0.3)
    setup.wait_for_state(ModelState.UNLOADED)
    setup.write("second")
    unread = Refusal(code="model_fault", detail="A file cannot be read: Input/output error.")
    setup.outcomes += [{"content": "", "facts": None, "refusal": unread}] * 4
    setup.wait_for_state(ModelState.REFUSED)
    assert "could not be tried (OSError: A file cannot be read: Input/output error)" in setup.refusal()
    setup.wait_for_state(ModelState.UNLOADED)
    assert len(setup.tried) == 6


def test_a_model_that_cannot_be_judged_keeps_no_other_waiting(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    tried: list[str] = []

    def run_trial(_: object, plan: TrialPlan, **__: object) -> Verdict:
        tried.append(plan.model)
        if plan.model == "odd":
            raise KeyError("unforeseen")
        return setup.passing()

    monkeypatch.setattr(catalog_module, "run_trial", run_trial)
    (setup.folder / "odd.onnx").write_text("odd")
    setup.write("second")
    setup.wait_for(lambda: tried.count("odd") == catalog_module.MOST_FAULTS)
    setup.wait_for_state(ModelState.UNLOADED)
    assert tried.index("street") <= 1
    setup.wait_for(lambda: setup.state("odd") is ModelState.REFUSED)


def test_a_file_may_have_any_bytes_for_a_name(setup: Setup) -> None:
    folder = setup.folder / "odd"
    folder.mkdir()
    (folder / "network.onnx").write_text("odd")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("odd")
    content = read_model("odd", setup.folder, None)
    assert content is not None
    assert len(content.fingerprint(0)) == 64
    refused = ModelFault(f"There is {next(iter(content.digests))}.")
    assert Refusal(code="model_fault", detail=refused.detail).detail == "There is caf\\udce9.txt."


def test_a_fault_of_a_host_at_a_model_that_passed_is_judged_by_another_trial(setup: Setup) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    setup.hosts.faults.append(ModelFault("A file of model 'street' cannot be read."))
    setup.use()
    assert len(setup.tried) == 2
    setup.hosts.faults.append(OSError(errno.EIO, "Input/output error"))
    setup.use()
    assert len(setup.tried) == 3
    setup.hosts.faults += [ModelFault("It ended its host.")] * 2
    with pytest.raises(ModelFault, match="ended its host"):
        setup.use()
    assert len(setup.tried) == 4
    assert setup.state() is ModelState.REFUSED


def test_a_model_whose_files_hosts_cannot_read_is_refused_for_a_while(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "REFUSED_SECONDS", 0.3)
    setup.wait_for_state(ModelState.UNLOADED)
    setup.hosts.faults += [OSError(errno.EIO, "Input/output error")] * 2
    with pytest.raises(ModelFault, match=r"could not be tried \(OSError: .*Input/output error\)"):
        setup.use()
    setup.wait_for_state(ModelState.UNLOADED)
    setup.use()


def test_a_full_disk_is_no_fault_of_a_model(setup: Setup) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    setup.hosts.faults.append(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        setup.use()
    assert setup.state() is ModelState.UNLOADED


@pytest.mark.parametrize(("min_free_bytes", "trials"), [(0, 2), (1 << 62, 1)])
def test_no_model_is_converted_while_the_disk_is_full(setup: Setup, min_free_bytes: int, trials: int) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    setup.min_free_bytes = min_free_bytes
    torch_facts = FACTS.model_copy(update={"run_by": "torch", "frames_per_second": 10.0})
    setup.write("second")
    setup.outcomes.append({"facts": torch_facts})
    setup.catalog = setup.start()
    setup.wait_for_state(ModelState.UNLOADED)
    assert len(setup.tried) == 1 + trials
    assert setup.use().run_by == "torch"


def test_a_conversion_that_could_not_be_measured_is_not_used(setup: Setup) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    torch_facts = FACTS.model_copy(update={"run_by": "torch", "frames_per_second": 10.0})
    unread = Refusal(code="model_fault", detail="A file cannot be read: Input/output error.")
    setup.outcomes += [
        {"facts": torch_facts},
        {"facts": torch_facts, "converted": "a file"},
        {"content": "", "facts": None, "refusal": unread},
    ]
    setup.write("second")
    setup.wait_for(lambda: not setup.outcomes)
    assert setup.use().run_by == "torch"


def test_verdicts_in_use_are_kept_however_long_an_engine_ran(setup: Setup) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    long_ago = time.time() - 31 * 86400
    unused = setup.verdicts / "unused.json"
    unused.write_text("{}")
    for path in setup.verdicts.iterdir():
        os.utime(path, (long_ago, long_ago))
    setup.catalog = setup.start()
    setup.wait_for_state(ModelState.UNLOADED)
    setup.wait_for(lambda: not unused.exists())
    assert len(setup.tried) == 1
    assert [*setup.verdicts.iterdir()]


def trial_of(setup: Setup, ask: Callable[[Cancelled], None]) -> Callable[..., Verdict]:
    """A trial that calls `ask` with the function that tells whether to cancel it."""

    def run_trial(*_: object, seconds: float, cancelled: Cancelled) -> Verdict:
        setup.tried.append(seconds)
        ask(cancelled)
        if cancelled():
            raise WorkCancelled
        return setup.passing()

    return run_trial


def test_a_trial_goes_before_jobs_for_a_minute_and_no_longer(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, bool]] = []

    def ask(cancelled: Cancelled) -> None:
        setup.hosts.is_wanted = not asked
        setup.wait_for(lambda: setup.catalog._models["street"].job_count or asked)
        early = cancelled()
        assert setup.catalog.crowded_models() == (frozenset() if early else {"small"})
        with monkeypatch.context() as patch:
            patch.setattr(catalog_module, "PRECEDENCE_SECONDS", 0.0)
            asked.append((early, cancelled()))

    setup.wait_for_state(ModelState.UNLOADED)
    monkeypatch.setattr(catalog_module, "run_trial", trial_of(setup, ask))
    setup.hosts.displaced = frozenset(["small"])
    setup.write("second")
    setup.wait_for_state(ModelState.LOADING)
    setup.use()
    assert asked[0] == (False, True)
    assert setup.catalog.crowded_models() == frozenset()


def test_a_trial_that_is_cancelled_again_and_again_is_let_finish(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.wait_for_state(ModelState.UNLOADED)
    monkeypatch.setattr(catalog_module, "run_trial", trial_of(setup, lambda _: None))
    setup.hosts.is_wanted = True
    setup.write("second")
    setup.wait_for(lambda: len(setup.tried) == 2 + catalog_module.MOST_CANCELLED)
    setup.wait_for_state(ModelState.UNLOADED)


def test_a_trial_gives_way_at_once_to_one_that_a_job_waits_for(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to one that needs a whole host, once the hosts are idle: no other job starts meanwhile."""
    setup.wait_for_state(ModelState.UNLOADED)
    monkeypatch.setattr(catalog_module, "ROOM_SECONDS", 100.0)  # a delay would show
    setup.hosts.is_busy = True
    setup.outcomes.append(TrialLacksMemory())
    setup.write("second")
    setup.wait_for(lambda: setup.catalog._models["street"].must_wait)
    begun, threads = threading.Event(), ThreadPoolExecutor(1)

    def run_trial(_: object, plan: TrialPlan, *, seconds: float, cancelled: Cancelled) -> Verdict:
        if plan.model == "street":
            return setup.passing()
        begun.set()
        setup.wait_for(cancelled)
        raise WorkCancelled

    monkeypatch.setattr(catalog_module, "run_trial", run_trial)
    (setup.folder / "other.onnx").write_text("other")
    assert begun.wait(WAIT_SECONDS)
    setup.hosts.is_busy = False
    assert threads.submit(setup.use).result(WAIT_SECONDS) == setup.passing().facts
