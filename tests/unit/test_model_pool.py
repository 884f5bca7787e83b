"""Models within a budget: which are loaded, which have to go, who waits. The detectors are fakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_reports import model_facts
from torch import Tensor

from app.detection.detector import Detections, DeviceLost
from app.detection.device import DeviceThread
from app.detection.measuring import MemoryCost, MemoryMeter, Timing, best_timing, measure, speed_ratio
from app.detection.model_facts import ModelFacts, NoRoomForModel, UntriedModel, Verdict
from app.detection.model_pool import ModelBudget, ModelPool, TriedModel, WornOut
from app.detection.side_by_side import Arrangement
from app.errors import ModelFault
from app.host.verdicts import VerdictStore

MIB = 1024 * 1024
WAIT_SECONDS = 10


class FakeDetector:
    """Finds nothing."""

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


def facts(name: str) -> ModelFacts:
    return model_facts(name, sha256=FakeDetector(name).fingerprint, input_size=(64, 32), memory_bytes=0)


class Models:
    """Finds fakes, and remembers which were loaded. Each costs 100 MiB, except `large`, which costs 500."""

    def __init__(self, before: Callable[[str], Callable[[Tensor], object]] = lambda _: len) -> None:
        self.loaded: list[str] = []
        self.faults: dict[str, BaseException] = {}
        self.costs = {"large": MemoryCost(500 * MIB)}
        self.before = before

    def load(self, name: str) -> FakeDetector:
        self.loaded.append(name)
        if name in self.faults:
            raise self.faults[name]
        return FakeDetector(name, before=self.before(name))

    def __call__(self, name: str, _: Verdict | None) -> TriedModel:
        cost = self.costs.get(name, MemoryCost(100 * MIB))
        return TriedModel(facts(name), cost, Arrangement(8, 8), lambda: self.load(name))


def make_pool(models: Models, mib: int | None = None) -> ModelPool:
    return ModelPool(device="cpu", find=models, budget=ModelBudget(None if mib is None else mib * MIB))


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def pool(models: Models) -> Iterator[ModelPool]:
    with make_pool(models, 200) as made:
        yield made


def loaded(pool: ModelPool) -> list[str]:
    return sorted(pool.loaded())


def test_models_may_need_more_while_they_load_than_beside_each_other(models: Models) -> None:
    models.costs = {name: MemoryCost(30 * MIB, loading_bytes=120 * MIB) for name in "abc"}
    with make_pool(models, 180) as pool:
        use_once(pool, "a", "b", "c")
        assert loaded(pool) == ["a", "b", "c"]
    with make_pool(models, 179) as pool:
        use_once(pool, "a", "b", "c")
        assert loaded(pool) == ["b", "c"]
    with make_pool(models, 100) as pool, pytest.raises(ModelFault, match="takes 120 MiB of host memory"):
        use_once(pool, "a")


def use_once(pool: ModelPool, *names: str) -> None:
    for name in names:
        with pool.use(name):
            pass


def test_a_model_is_loaded_once_and_stays(pool: ModelPool, models: Models) -> None:
    use_once(pool, "a", "b", "a", "b")
    assert models.loaded == ["a", "b"]
    assert loaded(pool) == ["a", "b"]


def test_the_model_longest_unused_makes_room(pool: ModelPool, models: Models) -> None:
    use_once(pool, "a", "b", "a", "c")
    assert loaded(pool) == ["a", "c"]
    use_once(pool, "b")
    assert loaded(pool) == ["b", "c"]
    assert models.loaded == ["a", "b", "c", "b"]
    assert pool.facts_of("b") == facts("b")
    with pytest.raises(KeyError):
        pool.facts_of("a")


def test_a_model_whose_files_have_changed_is_loaded_anew_once_it_is_not_in_use(
    pool: ModelPool, models: Models
) -> None:
    old = Verdict(name="a", facts=facts("a"))
    new = Verdict(name="a", facts=facts("a").model_copy(update={"sha256": "b" * 64}))
    with pool.use("a", old) as held, pool.use("a", new) as same:
        assert same is held
    assert models.loaded == ["a"]
    with pool.use("a", old):
        pass
    assert models.loaded == ["a"]
    with pool.use("a", new) as other:
        assert other is not held
    assert models.loaded == ["a", "a"]


def test_a_model_whose_threads_cannot_start_is_not_taken_for_loaded(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with make_pool(models) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(DeviceThread, "start", start)
            with pytest.raises(WornOut):
                use_once(pool, "a")
        assert loaded(pool) == []
        use_once(pool, "a")


def test_a_model_in_use_never_makes_room(pool: ModelPool) -> None:
    use_once(pool, "c")
    with pool.use("a") as a, pool.use("b"):
        assert pool.crowded_models() == {"c"}
        with pytest.raises(NoRoomForModel), pool.use("c"):
            pass
        assert a.submit(torch.zeros(1, 4, 4, 3, dtype=torch.uint8).numpy()).result(WAIT_SECONDS)
    assert pool.crowded_models() == frozenset()
    use_once(pool, "c")


def test_a_model_larger_than_the_budget_is_refused_with_both_numbers(pool: ModelPool) -> None:
    use_once(pool, "a")
    with pytest.raises(ModelFault, match=r"takes 500 MiB.*may take 200 MiB.*FRAMEBOX_HOST_MEMORY_BYTES"):
        use_once(pool, "large")
    assert loaded(pool) == ["a"]
    assert "large" not in pool.crowded_models()  # it would wait for ever


def test_a_model_loads_once_for_all_who_ask_at_a_time() -> None:
    entered, leave = threading.Event(), threading.Event()

    class SlowModels(Models):
        def load(self, name: str) -> FakeDetector:
            entered.set()
            assert leave.wait(WAIT_SECONDS)
            return super().load(name)

    models = SlowModels()
    with make_pool(models) as pool:
        threads = [threading.Thread(target=use_once, args=(pool, "a")) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert entered.wait(WAIT_SECONDS)
        assert pool.loading_seconds() > 0  # what shows a watchdog that it hangs
        leave.set()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        assert pool.loading_seconds() == 0
    assert models.loaded == ["a"]


def test_a_call_names_the_job_that_it_is_for() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(frames: Tensor) -> None:
        entered.set()
        leave.wait(WAIT_SECONDS)

    frames = torch.zeros(1, 4, 4, 3, dtype=torch.uint8).numpy()
    with make_pool(Models(lambda _: hold)) as pool, pool.use("a") as model:
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
        (ModelFault("its own words"), "its own words"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_model_raises_at_load_is_its_fault(error: BaseException, reason: str, models: Models) -> None:
    models.faults["a"] = error
    with make_pool(models) as pool:
        with pytest.raises(ModelFault, match=reason) as caught:
            use_once(pool, "a")
        assert "secret" not in caught.value.detail
        use_once(pool, "b")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_never_the_models_fault(error: BaseException, models: Models) -> None:
    """It has passed its trial: a new process has the room."""
    models.faults["a"] = error
    with make_pool(models) as pool:
        with pytest.raises(WornOut, match="not enough memory to load"):
            use_once(pool, "a")
        use_once(pool, "b")


def test_a_lack_of_memory_shows_through_the_words_of_a_format(models: Models) -> None:
    models.faults["a"] = ModelFault("The file cannot be read.")
    models.faults["a"].__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with make_pool(models) as pool, pytest.raises(WornOut):
        use_once(pool, "a")


def test_a_model_whose_code_has_changed_is_tried_again(models: Models) -> None:
    models.faults["a"] = UntriedModel("a")
    with make_pool(models) as pool, pytest.raises(UntriedModel):
        use_once(pool, "a")


def test_a_fault_at_load_keeps_its_cause(models: Models) -> None:
    fault, cause = ModelFault("The file cannot be read."), ValueError("not JSON")
    fault.__cause__ = cause
    models.faults["a"] = fault
    with make_pool(models) as pool:
        with pytest.raises(ModelFault) as caught:
            use_once(pool, "a")
        assert caught.value.__cause__ is cause


def test_a_lost_device_is_not_the_models_fault(models: Models) -> None:
    models.faults["a"] = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with make_pool(models) as pool, pytest.raises(DeviceLost, match="illegal memory access"):
        use_once(pool, "a")


def test_a_device_that_is_lost_while_a_model_loads_is_not_the_models_fault_in_any_words(
    models: Models,
) -> None:
    models.faults["a"] = ModelFault("The file cannot be read.")
    sticking = torch.AcceleratorError("CUDA error: unspecified launch failure")
    pool = ModelPool(device="other", find=models, find_fault={"one": None, "other": sticking}.get)
    with pool, pytest.raises(DeviceLost, match="unspecified launch failure"):
        use_once(pool, "a")


def test_a_trial_gets_two_thirds_of_the_room_and_no_model_in_use_has_to_go(models: Models) -> None:
    with make_pool(models, 600) as pool:
        use_once(pool, "a", "b", "c")
        before = pool.lend_room().host_bytes
        assert loaded(pool) == ["b", "c"]  # 200 MiB are a third
        with pytest.raises(NoRoomForModel), pool.use("large"):
            pass
        use_once(pool, "a")
        pool.take_room_back()
        with pool.use("a"), pool.use("b"), pool.use("c"):
            assert pool.lend_room().host_bytes == before + 100 * MIB
            assert loaded(pool) == ["a", "b", "c"]
            assert pool.crowded_models() == {"large"}
        pool.take_room_back()
        use_once(pool, "large")


def test_a_process_in_which_memory_does_not_come_back_is_worn_out(models: Models) -> None:
    """Then a new process would have the room: whoever asks has it replaced."""
    kept: list[bytearray] = []
    with make_pool(models, 600) as pool:
        use_once(pool, "large", "a", "b")
        assert loaded(pool) == ["a", "b"]
        kept.append(bytearray(b"x") * (200 * MIB))  # what an allocator would not give back
        with pytest.raises(WornOut), pool.use("large"):
            pass


def test_a_frame_that_finds_no_memory_where_other_models_are_or_were_is_no_fault_of_its_model() -> None:
    """Those that nobody uses make room first; then only a process that has had no other tells for certain."""

    def run_one_frame_of_a(pool: ModelPool) -> None:
        with pool.use("a") as model:
            model.submit(np.zeros((1, 32, 64, 3), np.uint8)).result(WAIT_SECONDS)

    def lacks_memory(_: Tensor) -> None:
        raise MemoryError

    models = Models(lambda name: lacks_memory if name == "a" else len)
    with make_pool(models) as pool:
        use_once(pool, "b")
        with pytest.raises(WornOut, match="no memory for one frame"):
            run_one_frame_of_a(pool)
        assert loaded(pool) == ["a"]
    with make_pool(models) as pool, pytest.raises(ModelFault, match="no memory for one frame"):
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
def test_the_smallest_piece_that_is_about_as_fast_is_chosen(speeds: dict[int, float], chosen: int) -> None:
    timings = [Timing(size, speed, MemoryCost(0)) for size, speed in speeds.items()]
    assert best_timing(timings).piece_size == chosen


def test_two_are_compared_in_turns() -> None:
    calls: list[str] = []

    def detector(name: str, seconds: float) -> FakeDetector:
        def note(frames: Tensor) -> None:
            calls.append(name)
            time.sleep(seconds * len(frames))

        return FakeDetector(name, before=note)

    slow, fast = detector("slow", 0.02), detector("fast", 0.005)
    ratio = speed_ratio((fast, Arrangement(2, 2)), (slow, Arrangement(2, 1, callers=2)))
    assert 1 < ratio < 3  # two threads sleep at a time for the slow one
    turns = [name for name, _ in groupby(calls)]
    assert turns == ["fast", "slow"] * (len(turns) // 2)
    assert len(turns) >= 6


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


def test_a_verdict_is_of_one_model_and_runtime(tmp_path: Path) -> None:
    verdict = Verdict(name="a", facts=facts("a"), profile={"batch_size": 4})
    store = VerdictStore(tmp_path / "kept", "one")
    store.write("f" * 64, verdict)
    assert store.read("f" * 64) == verdict
    assert store.read("e" * 64) is None
    assert VerdictStore(tmp_path / "kept", "two").read("f" * 64) is None


@pytest.mark.parametrize("content", [b'{"name": "a', b'{"name": "a", "unknown": 1}', b"[]"])
def test_a_verdict_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    store = VerdictStore(tmp_path / "kept", "one")
    store.write("f" * 64, Verdict(name="a"))
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(content)
    assert store.read("f" * 64) is None
