"""Models within a budget: which are loaded, which have to go, who waits. The detectors are fakes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from app.detection.detector import Detections, DeviceLost
from app.detection.devices import describe_runtime
from app.detection.measuring import MemoryCost, MemoryMeter, ModelProfile, Trial, best_trial, measure
from app.detection.model_facts import NoRoomForModel
from app.detection.model_pool import ModelBudget, ModelPool, WornOut
from app.errors import ModelFault
from app.storage.model_profiles import ProfileStore

MIB = 1024 * 1024
WAIT_SECONDS = 10


class FakeDetector:
    """Finds nothing. What it costs stands in its kept profile, so that nothing has to be measured."""

    class_names = ("thing",)
    default_min_score = 0.5
    device = "cpu"
    precision = "float32"
    takes_device_frames = False

    def __init__(self, name: str, *, batch_size: int = 8, before: Callable[[Tensor], object] = len) -> None:
        self.name = name
        self.fingerprint = name.encode().hex().ljust(64, "0")
        self.batch_size = batch_size
        self.before = before

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        return min(width, 64), min(height, 32)

    def detect(self, frames: Tensor) -> list[Detections]:
        self.before(frames)
        return [Detections.empty() for _ in frames]


class Loads:
    """Loads fakes, and remembers which."""

    def __init__(self, **faults: BaseException) -> None:
        self.names: list[str] = []
        self.faults = faults

    def __call__(self, name: str) -> FakeDetector:
        self.names.append(name)
        if name in self.faults:
            raise self.faults[name]
        return FakeDetector(name)


def profile(mib: int) -> ModelProfile:
    return {
        "batch_size": 4,
        "frames_per_second": 10.0,
        "host_bytes": mib * MIB,
        "loading_bytes": 0,
        "device_bytes": 0,
    }


@pytest.fixture
def profiles(tmp_path: Path) -> ProfileStore[ModelProfile]:
    """Models a, b and c cost 100 MiB each, and `large` 500."""
    store: ProfileStore[ModelProfile] = ProfileStore(tmp_path / "kept", tmp_path / "tried", runtime="test")
    for name, mib in (("a", 100), ("b", 100), ("c", 100), ("large", 500)):
        store.write(FakeDetector(name).fingerprint, "cpu", profile(mib))
    return store


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def pool(loads: Loads, profiles: ProfileStore[ModelProfile]) -> Iterator[ModelPool]:
    with ModelPool(
        device="cpu", load=loads, profiles=profiles, budget=ModelBudget(host_bytes=200 * MIB)
    ) as made:
        yield made


def loaded(pool: ModelPool) -> list[str]:
    return sorted(pool.loaded())


def test_models_may_need_more_while_they_load_than_beside_each_other(
    loads: Loads, profiles: ProfileStore[ModelProfile]
) -> None:
    for name in "abc":
        profiles.write(FakeDetector(name).fingerprint, "cpu", profile(30) | {"loading_bytes": 120 * MIB})
    budget = ModelBudget(host_bytes=180 * MIB)
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        use_once(pool, "a", "b", "c")
        assert loaded(pool) == ["a", "b", "c"]
        assert [pool.facts_of(name).memory_bytes for name in "abc"] == [120 * MIB] * 3
    budget = ModelBudget(host_bytes=179 * MIB)
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        use_once(pool, "a", "b", "c")
        assert loaded(pool) == ["b", "c"]
    with (
        ModelPool(
            device="cpu", load=loads, profiles=profiles, budget=ModelBudget(host_bytes=100 * MIB)
        ) as pool,
        pytest.raises(ModelFault, match="takes 120 MiB of host memory"),
    ):
        use_once(pool, "a")


def use_once(pool: ModelPool, *names: str) -> None:
    for name in names:
        with pool.use(name):
            pass


def test_a_model_is_loaded_once_and_stays(pool: ModelPool, loads: Loads) -> None:
    use_once(pool, "a", "b", "a", "b")
    assert loads.names == ["a", "b"]
    assert loaded(pool) == ["a", "b"]


def test_the_model_longest_unused_makes_room(pool: ModelPool, loads: Loads) -> None:
    use_once(pool, "a", "b", "a", "c")
    assert loaded(pool) == ["a", "c"]
    use_once(pool, "b")
    assert loaded(pool) == ["b", "c"]
    assert loads.names == ["a", "b", "c", "b"]
    facts = pool.facts_of("a")  # of one that is not loaded any more, too
    assert facts.memory_bytes == 100 * MIB
    assert facts.runtime == describe_runtime("cpu", threads=torch.get_num_threads())


def test_a_model_in_use_never_makes_room(pool: ModelPool) -> None:
    use_once(pool, "c")
    with pool.use("a") as a, pool.use("b"):
        assert pool.crowded_models() == {"c"}
        with pytest.raises(NoRoomForModel), pool.use("c"):
            pass
        assert a.submit(torch.zeros(1, 4, 4, 3, dtype=torch.uint8).numpy()).result(WAIT_SECONDS)
    assert pool.crowded_models() == frozenset()
    use_once(pool, "c")


def test_a_model_whose_cost_is_not_known_yet_is_turned_away_when_it_is(pool: ModelPool) -> None:
    with pool.use("a"), pool.use("b"):
        with pytest.raises(NoRoomForModel), pool.use("c"):
            pass
        assert loaded(pool) == ["a", "b"]
        assert pool.crowded_models() == {"c"}


def test_a_model_larger_than_the_budget_is_refused_with_both_numbers(pool: ModelPool) -> None:
    use_once(pool, "a")
    for _ in range(2):  # the second time its cost is known
        with pytest.raises(ModelFault, match=r"takes 500 MiB of host memory.*together may take 200 MiB"):
            use_once(pool, "large")
    assert loaded(pool) == ["a"]
    assert "large" not in pool.crowded_models()  # it would wait for ever


def test_a_model_loads_once_for_all_who_ask_at_a_time(profiles: ProfileStore[ModelProfile]) -> None:
    entered, leave = threading.Event(), threading.Event()
    names: list[str] = []

    def load(name: str) -> FakeDetector:
        names.append(name)
        entered.set()
        assert leave.wait(WAIT_SECONDS)
        return FakeDetector(name)

    with ModelPool(device="cpu", load=load, profiles=profiles) as pool:
        threads = [threading.Thread(target=use_once, args=(pool, "a")) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert entered.wait(WAIT_SECONDS)
        assert pool.loading_seconds() > 0  # what shows a watchdog that it hangs
        leave.set()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        assert pool.loading_seconds() == 0
    assert names == ["a"]


def test_a_call_names_the_job_that_it_is_for(profiles: ProfileStore[ModelProfile]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(frames: Tensor) -> None:
        entered.set()
        leave.wait(WAIT_SECONDS)

    def load(name: str) -> FakeDetector:
        return FakeDetector(name, before=hold)

    frames = torch.zeros(1, 4, 4, 3, dtype=torch.uint8).numpy()
    with (
        ModelPool(device="cpu", load=load, profiles=profiles) as pool,
        pool.use("a") as model,
    ):
        future = model.submit(frames, owner="job")
        assert entered.wait(WAIT_SECONDS)
        seconds, job_id = model.running_call
        assert pool.devices() == [model]
        assert seconds > 0
        assert job_id == "job"
        leave.set()
        future.result(WAIT_SECONDS)
        assert model.running_call == (0.0, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("/secret"), "raised KeyError when it was loaded"),
        (SystemExit(1), "raised SystemExit when it was loaded"),  # as a panic in Rust, no Exception
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory to load"),
        (MemoryError(), "not enough memory to load"),
        (RuntimeError("can't start new thread"), "not enough memory to load"),
        (ModelFault("its own words"), "its own words"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_model_raises_at_load_is_its_fault(
    profiles: ProfileStore[ModelProfile], error: BaseException, reason: str
) -> None:
    with ModelPool(device="cpu", load=Loads(a=error), profiles=profiles) as pool:
        with pytest.raises(ModelFault, match=reason) as caught:
            use_once(pool, "a")
        assert "secret" not in caught.value.detail
        use_once(pool, "b")


def test_a_fault_at_load_keeps_its_cause(profiles: ProfileStore[ModelProfile]) -> None:
    fault, cause = ModelFault("The file cannot be read."), ValueError("not JSON")
    fault.__cause__ = cause
    with ModelPool(device="cpu", load=Loads(a=fault), profiles=profiles) as pool:
        with pytest.raises(ModelFault) as caught:
            use_once(pool, "a")
        assert caught.value.__cause__ is cause


def test_a_lost_device_is_not_the_models_fault(profiles: ProfileStore[ModelProfile]) -> None:
    fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with (
        ModelPool(device="cpu", load=Loads(a=fault), profiles=profiles) as pool,
        pytest.raises(DeviceLost, match="illegal memory access"),
    ):
        use_once(pool, "a")


def test_a_device_that_is_lost_while_a_model_loads_is_not_the_models_fault_in_any_words(
    profiles: ProfileStore[ModelProfile],
) -> None:
    sticking = torch.AcceleratorError("CUDA error: unspecified launch failure")
    pool = ModelPool(
        device="other",
        load=Loads(a=ModelFault("The file cannot be read.")),
        profiles=profiles,
        find_fault={"one": None, "other": sticking}.get,
    )
    with pool, pytest.raises(DeviceLost, match="unspecified launch failure"):
        use_once(pool, "a")


def test_a_library_that_found_no_memory_on_a_device_has_not_lost_it(
    profiles: ProfileStore[ModelProfile],
) -> None:
    fault = torch.AcceleratorError("CUDA error: out of memory")
    with (
        ModelPool(device="cpu", load=Loads(a=fault), profiles=profiles) as pool,
        pytest.raises(ModelFault, match="not enough memory to load"),
    ):
        use_once(pool, "a")


class CrampedLoads(Loads):
    """Finds memory for a model of the name `large` only while no other is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: ModelPool | None = None

    def __call__(self, name: str) -> FakeDetector:
        assert self.pool is not None
        if name == "large" and loaded(self.pool):
            lack = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            raise ModelFault("The file cannot be read.") from lack
        return super().__call__(name)


def test_a_model_that_finds_no_memory_is_loaded_without_those_that_nobody_uses(
    profiles: ProfileStore[ModelProfile],
) -> None:
    loads, budget = CrampedLoads(), ModelBudget(host_bytes=1000 * MIB)
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        loads.pool = pool
        use_once(pool, "a", "b", "large")
        assert loaded(pool) == ["large"]
        assert loads.names == ["a", "b", "large"]


def test_a_model_that_finds_no_memory_waits_for_those_in_use(profiles: ProfileStore[ModelProfile]) -> None:
    loads, budget = CrampedLoads(), ModelBudget(host_bytes=1000 * MIB)
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        loads.pool = pool
        use_once(pool, "b")
        with pool.use("a"):
            with pytest.raises(NoRoomForModel), pool.use("large"):
                pass
            assert loaded(pool) == ["a"]
            assert pool.crowded_models() == {"large"}
        assert pool.crowded_models() == frozenset()
        use_once(pool, "large")
        assert loaded(pool) == ["large"]


def test_a_model_at_whose_loading_the_process_ended_again_and_again_is_refused(
    profiles: ProfileStore[ModelProfile], loads: Loads
) -> None:
    def die() -> None:
        profiles.begin_attempt("a")  # and no more: the process is gone

    pool = ModelPool(device="cpu", load=loads, profiles=profiles, most_attempts=2)
    die()
    use_once(pool, "a")  # one that comes to an end is forgotten
    pool.close()
    die()
    die()
    for _ in range(2):
        with pytest.raises(ModelFault, match="ended 2 times while it loaded model 'a'"):
            use_once(pool, "a")
    use_once(pool, "b")
    pool.close()


def test_the_batch_size_is_measured_once_and_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    def load(name: str) -> FakeDetector:
        return FakeDetector(name, before=lambda frames: calls.append(len(frames)))

    def batch_size() -> int:
        kept: ProfileStore[ModelProfile] = ProfileStore(
            tmp_path / "kept", tmp_path / "tried", runtime="1 thread"
        )
        with ModelPool(device="cpu", load=load, profiles=kept) as pool, pool.use("new") as model:
            return model.batch_size

    first = batch_size()
    assert set(calls) <= {1, 2, 4, 8}
    calls.clear()
    assert batch_size() == first
    assert calls == []


def test_other_models_stand_still_while_one_is_measured(profiles: ProfileStore[ModelProfile]) -> None:
    """What they take meanwhile would be counted as its own, and kept for good."""
    calls: list[str] = []

    def load(name: str) -> FakeDetector:
        return FakeDetector(name, before=lambda _: calls.append(name))

    frames = torch.zeros(1, 4, 4, 3, dtype=torch.uint8).numpy()
    with ModelPool(device="cpu", load=load, profiles=profiles) as pool, pool.use("a") as model:
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                model.submit(frames).result(WAIT_SECONDS)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        while "a" not in calls:
            stop.wait(0.001)
        use_once(pool, "new")
        stop.set()
        busy.join(WAIT_SECONDS)
    measured = [place for place, name in enumerate(calls) if name == "new"]
    assert calls[measured[0] : measured[-1] + 1] == ["new"] * len(measured)
    assert len(measured) > 2


def test_a_process_in_which_memory_does_not_come_back_is_worn_out(
    profiles: ProfileStore[ModelProfile], loads: Loads
) -> None:
    """Then a new process would have the room: whoever asks has it replaced."""
    kept: list[bytearray] = []
    budget = ModelBudget(host_bytes=600 * MIB)
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        use_once(pool, "large", "a", "b")
        assert loaded(pool) == ["a", "b"]
        kept.append(bytearray(b"x") * (200 * MIB))  # what an allocator would not give back
        with pytest.raises(WornOut), pool.use("large"):
            pass


def test_a_model_that_finds_no_memory_where_others_were_before_it_is_not_refused(
    profiles: ProfileStore[ModelProfile],
) -> None:
    """Those that it turned out may have left something behind: only a fresh process tells for certain."""
    loads = Loads(c=MemoryError())
    budget = ModelBudget(host_bytes=600 * MIB)
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        use_once(pool, "a")
        with pytest.raises(WornOut), pool.use("c"):
            pass
        assert loads.names == ["a", "c", "c"]
    with (
        ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool,
        pytest.raises(ModelFault, match="not enough memory"),
    ):
        use_once(pool, "c")


def test_a_model_that_finds_no_memory_in_a_worn_process_is_not_refused(
    profiles: ProfileStore[ModelProfile],
) -> None:
    lack = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    budget = ModelBudget(host_bytes=600 * MIB)
    loads = Loads()
    with ModelPool(device="cpu", load=loads, profiles=profiles, budget=budget) as pool:
        use_once(pool, "a", "b", "large")  # a and b had to go
        loads.faults["c"] = lack
        with pytest.raises(WornOut), pool.use("c"):
            pass


def test_a_frame_that_finds_no_memory_where_other_models_are_or_were_is_no_fault_of_its_model(
    profiles: ProfileStore[ModelProfile],
) -> None:
    """Those that nobody uses make room first; then only a process that has had no other tells for certain."""

    def run_one_frame_of_a(pool: ModelPool) -> None:
        with pool.use("a") as model:
            model.submit(np.zeros((1, 32, 64, 3), np.uint8)).result(WAIT_SECONDS)

    def lacks_memory(_: Tensor) -> None:
        raise MemoryError

    def load(name: str) -> FakeDetector:
        return FakeDetector(name, before=lacks_memory if name == "a" else len)

    with ModelPool(device="cpu", load=load, profiles=profiles) as pool:
        use_once(pool, "b")
        with pytest.raises(WornOut, match="no memory for one frame"):
            run_one_frame_of_a(pool)
        assert loaded(pool) == ["a"]
    with (
        ModelPool(device="cpu", load=load, profiles=profiles) as pool,
        pytest.raises(ModelFault, match="no memory for one frame"),
    ):
        run_one_frame_of_a(pool)


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({1: 100.0, 2: 167.0, 4: 199.0, 8: 178.0}, 4),
        ({1: 50.0, 2: 50.1, 4: 50.2}, 1),
        ({1: 100.0, 2: 196.0, 4: 200.0}, 2),
        ({3: 7.0}, 3),
    ],
)
def test_the_smallest_batch_that_is_about_as_fast_is_chosen(speeds: dict[int, float], chosen: int) -> None:
    trials = [Trial(size, speed, MemoryCost(0)) for size, speed in speeds.items()]
    assert best_trial(trials).batch_size == chosen


def test_a_batch_that_does_not_fit_ends_the_search() -> None:
    def fits_two(frames: Tensor) -> None:
        if len(frames) > 2:
            raise MemoryError

    found = measure(FakeDetector("tight", before=fits_two), MemoryMeter("cpu"))
    assert found["batch_size"] <= 2


def test_a_batch_for_which_a_network_was_not_exported_ends_the_search() -> None:
    def takes_two(frames: Tensor) -> None:
        if len(frames) > 2:
            raise RuntimeError("Guard failed: 1 <= batch <= 2")

    assert measure(FakeDetector("exported", before=takes_two), MemoryMeter("cpu"))["batch_size"] <= 2


def test_a_device_that_is_lost_meanwhile_is_no_end_of_the_search() -> None:
    def lose(frames: Tensor) -> None:
        if len(frames) > 1:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(torch.AcceleratorError):
        measure(FakeDetector("losing", before=lose), MemoryMeter("cpu"))


def test_what_a_model_takes_is_measured_at_its_peak() -> None:
    def take(frames: Tensor) -> None:
        torch.ones(32 * MIB, dtype=torch.uint8).amax()

    meter = MemoryMeter("cpu")
    kept = torch.ones(64 * MIB, dtype=torch.uint8)
    found = measure(FakeDetector("large", before=take), meter)
    del kept
    assert 90 * MIB <= found["host_bytes"] <= 140 * MIB


def test_a_profile_is_of_one_model_device_and_runtime(tmp_path: Path) -> None:
    store: ProfileStore[ModelProfile] = ProfileStore(tmp_path / "kept", tmp_path / "tried", runtime="one")
    store.write("f" * 64, "cpu", profile(1))
    assert store.read("f" * 64, "cpu") == profile(1)
    assert store.read("e" * 64, "cpu") is None
    assert store.read("f" * 64, "cuda:0") is None
    other: ProfileStore[ModelProfile] = ProfileStore(tmp_path / "kept", tmp_path / "tried", runtime="two")
    assert other.read("f" * 64, "cpu") is None


def test_a_profile_cut_short_is_measured_again(tmp_path: Path) -> None:
    store: ProfileStore[ModelProfile] = ProfileStore(tmp_path / "kept", tmp_path / "tried", runtime="one")
    store.write("f" * 64, "cpu", profile(1))
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:10])
    assert store.read("f" * 64, "cpu") is None
