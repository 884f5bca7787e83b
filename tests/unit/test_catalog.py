"""What the engine knows of its models: trials, verdicts, refusals. Hosts and trials follow the test."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
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
from app.video.results import Cancelled

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
        self.hosts = FakeHosts()
        self.outcomes: list[Any] = []  # of the next trials: an error, a change of the passing verdict, a call
        self.tried: list[float] = []  # the seconds that each trial had
        self.stop = threading.Event()
        self.catalog = self.start()

    def start(self, host_bytes: int = HOST_BYTES, allowed_hashes: Path | None = None) -> Catalog:
        """Return a new catalog that has seen the folder; the one before has stopped."""
        self.stop.set()
        self.stop = threading.Event()
        rules = TrialRules(self.folder, allowed_hashes, self.verdicts, host_bytes, 100.0)
        made = Catalog(
            self.hosts,  # type: ignore[arg-type]
            "none",
            rules,
            spawn=lambda *_: None,  # type: ignore[arg-type]
            stop=self.stop,
            wake=lambda: None,
        )
        made.load_in_background(has_host_died=False)
        self.wait_for(lambda: made.is_ready)
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

    def state(self) -> ModelState | None:
        return next((each.state for each in self.catalog.statuses() if each.name == "street"), None)

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
    setup.outcomes.append(TrialCrashed("signal 6 (SIGABRT)"))
    setup.wait_for_state(ModelState.UNLOADED)
    assert setup.hosts.whole == [False, True]
    setup.write("second")
    setup.outcomes += [TrialCrashed("signal 6 (SIGABRT)")] * 2
    setup.wait_for_state(ModelState.REFUSED)
    assert setup.refusal() == "The trial of model 'street' ended with signal 6 (SIGABRT)."


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
