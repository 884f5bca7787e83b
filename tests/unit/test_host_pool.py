"""What happens to work when hosts die, lack memory or refuse a model. The hosts here follow the test.

tests/e2e/test_hosts.py has real ones.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_reports import model_facts

from app.detection.model_facts import ModelFacts, NoRoomForModel
from app.engine.host_pool import MOST_RENEWALS, HostPool, NoHost
from app.engine.host_process import HostLimits, fault_of
from app.engine.turns import SegmentTurns
from app.errors import InternalError, UnsupportedVideo
from app.host.host import failure
from app.host.messages import (
    HOST_OWN_BYTES,
    Advanced,
    Cancel,
    DecoderPlan,
    Failed,
    Heartbeat,
    HostPlan,
    HostReady,
    HostUnusable,
    IndexDone,
    IndexFound,
    IndexVideo,
    LendRoom,
    ModelInUse,
    Reason,
    ReleaseModel,
    RoomLent,
    RunSegment,
    SegmentDone,
    TakeRoomBack,
    UseModel,
)
from app.metrics import Metrics
from app.pipeline.pace import FrameMeter
from app.pipeline.runner import IndexTask
from app.pipeline.segment_task import RecordRules, SegmentOutcome, SegmentTask
from app.storage.parts import Part
from app.video.protocol.limits import VideoLimits
from app.video.protocol.packets import Entry
from app.video.results import WorkCancelled
from app.video.sampling import Sampling
from app.video.segments import Segment

WAIT_SECONDS = 10
FACTS = model_facts()
BEAT = Heartbeat(frozenset(), frozenset(), 0.0, 0.0, None, 0, 0.0, None)
PLAN = HostPlan(
    device=None,
    devices=(),
    models=None,
    model_hashes=None,
    precision="float32",
    memory_bytes=1 << 40,
    torch_threads=None,
    verdicts=Path("verdicts"),
    decoders=DecoderPlan(VideoLimits(), 1, 1 << 29, 1 << 26, 60.0, require_sandbox=True, ready_children=0),
    log_level="INFO",
)


def task(job_id: str = "job", number: int = 0) -> SegmentTask:
    segment = Segment(
        number, 0, np.arange(3), np.ones(3, dtype=np.bool_), Entry(0, 0, 0, 0, 1), packet_count=3
    )
    return SegmentTask(
        job_id=job_id,
        video=Path("video"),
        facts=None,  # type: ignore[arg-type]  # not used here
        segment=segment,
        parts_folder=Path("parts"),
        identity="",
        model=FACTS.name,
        model_identity=FACTS.identity,
        max_side=None,
        rules=RecordRules(FACTS.labels, 0.5),
    )


OUTCOME = SegmentOutcome(3, part=Part(Path("part"), 0, 0, {}))


@dataclass
class FakeHost:
    """One host: the messages that it got, and a way to answer. A real process represents it, to be ended."""

    channel: Connection
    process: subprocess.Popen[bytes]

    def __post_init__(self) -> None:
        self.heard: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                self.heard.put(self.channel.recv())
        except (EOFError, OSError, TypeError):  # the last is what a channel says that was closed meanwhile
            return

    def say(self, *messages: object) -> None:
        for message in messages:
            self.channel.send(message)

    def hears(self, kind: type) -> Any:
        """The next message of that kind; others are passed over."""
        while not isinstance(message := self.heard.get(timeout=WAIT_SECONDS), kind):
            pass
        return message

    def die(self) -> None:
        self.process.kill()
        self.channel.close()


class Hosts:
    """Every host that was started."""

    def __init__(self) -> None:
        self.all: list[FakeHost] = []

    def spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.all.append(FakeHost(Connection(os.dup(descriptor)), process))
        return process


def never() -> bool:
    return False


class Setup:
    """A pool, and a thread in place of the engine's."""

    def __init__(self) -> None:
        self.hosts, self.metrics, self.meter = Hosts(), Metrics(), FrameMeter()
        self.pool = HostPool(
            plan=PLAN,
            spawn=self.hosts.spawn,
            limits=HostLimits(10.0, 10.0, 1 << 40),
            turns=SegmentTurns(slots=2),
            metrics=self.metrics,
            meter=self.meter,
            wake=lambda: None,
        )
        self.threads = ThreadPoolExecutor(4)
        self.deaths: list[Any] = []
        self.uses = ExitStack()
        self.met = 0  # hosts that the test knows

    def tend_until(self, condition: Callable[[], Any]) -> Any:
        for _ in range(WAIT_SECONDS * 100):
            self.deaths += self.pool.tend()
            if found := condition():
                return found
            threading.Event().wait(0.01)
        raise AssertionError("not in time")

    def next_host(self, *, devices: tuple[str, ...] = ("cpu",)) -> FakeHost:
        """Return the next host that is started, ready for work."""
        self.tend_until(lambda: len(self.hosts.all) > self.met)
        host = self.hosts.all[self.met]
        self.met += 1
        host.say(HostReady("cpu", devices, "decoder", None, (), 0, "a test", 0), BEAT)
        self.tend_until(lambda: host.process.pid in self.ready_pids())
        return host

    def retried(self, why: str) -> float | None:
        """Return how many segments were run again because their host ended for this reason."""
        return self.metrics.registry.get_sample_value("framebox_segments_retried_total", {"reason": why})

    def ready_pids(self) -> list[int]:
        return [status.pid for status in self.pool.statuses() if status.ready]

    def ask_for_model(self) -> Future[ModelFacts]:
        """Begin to use the model, in a thread of its own."""
        return self.threads.submit(self.uses.enter_context, self.pool.use("model", never))

    def hold_model(self, host: FakeHost, done: threading.Event) -> ModelFacts:
        """Use the model until `done`, in a thread of its own; return once the host holds it."""
        held: queue.Queue[ModelFacts] = queue.Queue()

        def use() -> None:
            with self.pool.use("model", lambda: False) as facts:
                held.put(facts)
                done.wait(WAIT_SECONDS)

        self.threads.submit(use)
        host.say(ModelInUse(host.hears(UseModel).ticket, FACTS))
        return held.get(timeout=WAIT_SECONDS)


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    for host in made.hosts.all:
        host.process.kill()
    made.uses.close()
    made.pool.close(grace_seconds=5.0)
    made.threads.shutdown()


def test_the_next_host_runs_a_lost_segment_and_its_frames_count_once(
    setup: Setup,
) -> None:
    host, done = setup.next_host(), threading.Event()
    assert setup.hold_model(host, done) == FACTS
    future = setup.pool.submit(task(), never)
    host.say(Advanced(host.hears(RunSegment).ticket, 2))
    setup.tend_until(lambda: setup.meter.of("job") == 2)
    host.die()
    second = setup.next_host()
    assert setup.meter.of("job") == 0
    second.say(ModelInUse(second.hears(UseModel).ticket, FACTS))
    run = second.hears(RunSegment)
    second.say(Advanced(run.ticket, 3), SegmentDone(run.ticket, OUTCOME, 1.0))
    assert future.result(WAIT_SECONDS).frames_decoded == 3
    assert setup.meter.of("job") == 3
    assert setup.retried("host died") == 1
    assert [death.job_ids for death in setup.deaths] == [{"job"}]
    done.set()


def test_a_repeated_index_passes_nothing_to_its_reader_twice(setup: Setup) -> None:
    facts: Any = "facts"  # the pool passes both on as they are
    summary: Any = "summary"
    host = setup.next_host()
    read: list[Any] = []
    future = setup.pool.index(IndexTask("job", Path("video"), 100, Sampling()), read.append, never)
    ticket = host.hears(IndexVideo).ticket
    items = [facts, *"0123"]
    host.say(*(IndexFound(ticket, item) for item in items[:4]))
    setup.tend_until(lambda: read == items[:4])
    host.die()
    second = setup.next_host()
    ticket = second.hears(IndexVideo).ticket
    second.say(*(IndexFound(ticket, item) for item in items), IndexDone(ticket, summary))
    assert future.result(WAIT_SECONDS) == summary
    assert read == items


def test_a_videos_fault_arrives_as_the_error_that_the_host_raised(setup: Setup) -> None:
    host = setup.next_host()
    future = setup.pool.index(IndexTask("job", Path("video"), 100, Sampling()), lambda _: None, never)
    fault = UnsupportedVideo("No video.", {"allowed": "others"})
    host.say(failure(host.hears(IndexVideo).ticket, fault))
    with pytest.raises(UnsupportedVideo) as caught:
        future.result(WAIT_SECONDS)
    assert caught.value.to_problem() == fault.to_problem()


def test_a_full_disk_at_a_host_arrives_as_the_same_oserror(setup: Setup) -> None:
    host, done = setup.next_host(), threading.Event()
    setup.hold_model(host, done)
    future = setup.pool.submit(task(), never)
    host.say(failure(host.hears(RunSegment).ticket, OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as caught:
        future.result(WAIT_SECONDS)
    assert caught.value.errno == 28
    done.set()


def test_cancelled_work_is_cancelled_at_the_host(setup: Setup) -> None:
    host, done, cancelled = setup.next_host(), threading.Event(), threading.Event()
    setup.hold_model(host, done)
    future = setup.pool.submit(task(), cancelled.is_set)
    ticket = host.hears(RunSegment).ticket
    cancelled.set()
    setup.tend_until(lambda: not host.heard.empty())
    assert host.hears(Cancel).ticket == ticket
    host.say(Failed(ticket, Reason.CANCELLED))
    with pytest.raises(WorkCancelled):
        future.result(WAIT_SECONDS)
    done.set()


def test_a_host_without_memory_for_a_model_is_renewed_a_limited_number_of_times(setup: Setup) -> None:
    host = setup.next_host()
    asking = setup.ask_for_model()
    for _ in range(MOST_RENEWALS):
        host.say(Failed(host.hears(UseModel).ticket, Reason.WORN, "There is not enough memory."))
        host = setup.next_host()
    assert [death.why for death in setup.deaths] == ["host renewed"] * MOST_RENEWALS
    assert setup.retried("host renewed") == 0
    assert not any(death.job_ids for death in setup.deaths)
    host.say(Failed(host.hears(UseModel).ticket, Reason.WORN, "There is not enough memory."))
    with pytest.raises(InternalError, match=r"not enough memory.*FRAMEBOX_HOST_MEMORY_BYTES"):
        asking.result(WAIT_SECONDS)


def test_a_host_without_memory_for_a_segment_is_renewed_a_limited_number_of_times(setup: Setup) -> None:
    host, done = setup.next_host(), threading.Event()
    setup.hold_model(host, done)
    future = setup.pool.submit(task(), never)
    for _ in range(MOST_RENEWALS):
        run = host.hears(RunSegment)
        host.say(Advanced(run.ticket, 2), Failed(run.ticket, Reason.WORN, "There is no memory for a frame."))
        host = setup.next_host()
        assert setup.meter.of("job") == 0
        host.say(ModelInUse(host.hears(UseModel).ticket, FACTS))
    assert not any(death.job_ids for death in setup.deaths)
    host.say(Failed(host.hears(RunSegment).ticket, Reason.WORN, "There is no memory for a frame."))
    with pytest.raises(InternalError, match="no memory for a frame"):
        future.result(WAIT_SECONDS)
    done.set()


def test_lack_of_memory_for_an_index_is_an_internal_error(setup: Setup) -> None:
    host = setup.next_host()
    future = setup.pool.index(IndexTask("job", Path("video"), 100, Sampling()), lambda _: None, never)
    for _ in range(MOST_RENEWALS):
        host.say(Failed(host.hears(IndexVideo).ticket, Reason.WORN, "There is not enough memory."))
        host = setup.next_host()
    host.say(Failed(host.hears(IndexVideo).ticket, Reason.WORN, "There is not enough memory."))
    with pytest.raises(InternalError, match="memory to index the video"):
        future.result(WAIT_SECONDS)


def test_a_model_without_room_on_one_host_is_used_on_another(setup: Setup) -> None:
    first, done = setup.next_host(devices=("cpu", "cpu")), threading.Event()
    second = setup.next_host()
    asking = setup.ask_for_model()
    first.say(Failed(first.hears(UseModel).ticket, Reason.NO_ROOM))
    second.say(ModelInUse(second.hears(UseModel).ticket, FACTS))
    assert asking.result(WAIT_SECONDS) == FACTS
    future = setup.pool.submit(task(), never)
    second.say(SegmentDone(second.hears(RunSegment).ticket, OUTCOME, 1.0))
    assert future.result(WAIT_SECONDS) == OUTCOME
    done.set()


def test_a_model_without_room_on_any_host_raises(setup: Setup) -> None:
    host = setup.next_host()
    asking = setup.ask_for_model()
    host.say(Failed(host.hears(UseModel).ticket, Reason.NO_ROOM, "model"))
    with pytest.raises(NoRoomForModel):
        asking.result(WAIT_SECONDS)


def test_a_host_keeps_working_while_it_lends_room_to_a_trial(setup: Setup) -> None:
    host, done = setup.next_host(), threading.Event()
    setup.hold_model(host, done)
    with ExitStack() as trial:
        entering = setup.threads.submit(
            trial.enter_context, setup.pool.room_for_trial("new", whole=False, cancelled=never)
        )
        host.say(RoomLent(host.hears(LendRoom).ticket, 700 << 20, 5))
        plan = entering.result(WAIT_SECONDS)
        assert plan.model == "new"
        assert plan.host.device == "cpu"
        assert (plan.room_bytes, plan.kept_device_bytes) == (PLAN.memory_bytes - (700 << 20), 5)
        future = setup.pool.submit(task(), never)
        host.say(SegmentDone(host.hears(RunSegment).ticket, OUTCOME, 1.0))
        assert future.result(WAIT_SECONDS) == OUTCOME
        assert not setup.pool.is_room_wanted()
        asking = setup.threads.submit(setup.uses.enter_context, setup.pool.use("other", never))
        host.say(Failed(host.hears(UseModel).ticket, Reason.NO_ROOM))
        with pytest.raises(NoRoomForModel):
            asking.result(WAIT_SECONDS)
        assert setup.pool.is_room_wanted()
    host.hears(TakeRoomBack)
    assert not setup.pool.is_room_wanted()
    done.set()


def test_room_that_was_lent_to_a_trial_before_is_not_taken_for_that_of_the_next(setup: Setup) -> None:
    host, stopped = setup.next_host(), threading.Event()
    with ExitStack() as trial:
        entering = setup.threads.submit(
            trial.enter_context, setup.pool.room_for_trial("new", whole=False, cancelled=stopped.is_set)
        )
        earlier = host.hears(LendRoom)
        stopped.set()
        with pytest.raises(WorkCancelled):
            entering.result(WAIT_SECONDS)
        entering = setup.threads.submit(
            trial.enter_context, setup.pool.room_for_trial("new", whole=False, cancelled=never)
        )
        later = host.hears(LendRoom)
        host.say(RoomLent(earlier.ticket, 900 << 20, 0))
        host.say(RoomLent(later.ticket, 700 << 20, 0))
        assert entering.result(WAIT_SECONDS).room_bytes == PLAN.memory_bytes - (700 << 20)


def test_a_host_that_starts_during_a_trial_lends_it_room_too(setup: Setup) -> None:
    host = setup.next_host()
    with ExitStack() as trial:
        entering = setup.threads.submit(
            trial.enter_context, setup.pool.room_for_trial("new", whole=False, cancelled=never)
        )
        host.say(RoomLent(host.hears(LendRoom).ticket, 0, 0))
        entering.result(WAIT_SECONDS)
        host.die()
        setup.next_host().hears(LendRoom)


def test_a_trial_can_have_the_room_of_the_whole_host_once_it_has_no_work(setup: Setup) -> None:
    host, done = setup.next_host(), threading.Event()
    setup.hold_model(host, done)
    future = setup.pool.submit(task(), never)
    run = host.hears(RunSegment)
    with ExitStack() as trial:
        entering = setup.threads.submit(
            trial.enter_context, setup.pool.room_for_trial("new", whole=True, cancelled=never)
        )
        setup.tend_until(lambda: not setup.ready_pids())
        assert host.process.poll() is None
        host.say(SegmentDone(run.ticket, OUTCOME, 1.0))
        plan = setup.tend_until(lambda: entering.done() and entering.result())
        assert future.result(WAIT_SECONDS) == OUTCOME
        assert plan.room_bytes == PLAN.memory_bytes - HOST_OWN_BYTES
        assert host.process.poll() is not None
        setup.deaths.clear()
        setup.tend_until(setup.pool.is_serving)
        assert len(setup.hosts.all) == setup.met
        assert not setup.deaths
        done.set()
        setup.ask_for_model()
        setup.tend_until(setup.pool.is_room_wanted)
    setup.next_host().hears(UseModel)


def test_a_trial_whose_room_is_no_longer_wanted_gives_it_back(setup: Setup) -> None:
    setup.next_host()
    with pytest.raises(WorkCancelled), setup.pool.room_for_trial("new", whole=False, cancelled=lambda: True):
        pass
    assert setup.ready_pids()


def test_a_model_is_released_after_its_last_use(setup: Setup) -> None:
    host, done = setup.next_host(), threading.Event()
    setup.hold_model(host, done)
    done.set()
    assert host.hears(ReleaseModel).model == "model"


def test_a_hang_names_the_job_whose_batch_it_was(setup: Setup) -> None:
    host, done = setup.next_host(), threading.Event()
    setup.hold_model(host, done)
    setup.pool.submit(task("hanging"), never)
    setup.pool.submit(task("other"), never)
    for _ in range(2):
        host.hears(RunSegment)
    host.say(replace(BEAT, call_seconds=11.0, call_job_id="hanging"))
    (death,) = setup.tend_until(lambda: setup.deaths)
    assert (death.why, death.hung_job_id) == ("model hangs", "hanging")
    assert death.job_ids == {"hanging"}
    done.set()


def test_segments_are_distributed_among_hosts(setup: Setup) -> None:
    first, done = setup.next_host(devices=("cpu", "cpu")), threading.Event()
    second = setup.next_host()
    setup.hold_model(first, done)
    second.say(ModelInUse(second.hears(UseModel).ticket, FACTS))
    threading.Event().wait(0.1)
    for number in range(2):
        setup.pool.submit(task(number=number), never)
    numbers = {host.hears(RunSegment).task.segment.number for host in (first, second)}
    assert numbers == {0, 1}
    done.set()


def test_a_machine_that_can_run_no_host_raises_with_the_reason(setup: Setup) -> None:
    setup.tend_until(lambda: setup.hosts.all)
    setup.hosts.all[0].say(HostUnusable("FRAMEBOX_DEVICES: there is no device 'cuda:9'"))
    with pytest.raises(NoHost, match="cuda:9"):
        setup.tend_until(lambda: None)


@pytest.mark.parametrize(
    ("told", "silent_seconds", "fault"),
    [
        ({}, 29, None),
        ({}, 31, "host does not answer"),
        ({"call_seconds": 1.0}, 298, None),  # a model may keep the interpreter to itself
        ({"call_seconds": 1.0}, 300, "model hangs"),
        ({"call_seconds": 301.0}, 0, "model hangs"),
        ({"loading_seconds": 1.0}, 598, None),
        ({"loading_seconds": 1.0}, 600, "model hangs while it loads"),
        ({"loading_seconds": 500.0, "call_seconds": 301.0}, 0, "model hangs"),
        ({"loading_seconds": 601.0, "call_seconds": 1.0}, 0, "model hangs while it loads"),
        ({"device_fault": "CUDA error"}, 0, "device lost"),
    ],
)
def test_a_silent_host_may_take_as_long_as_its_model(
    told: dict[str, Any], silent_seconds: float, fault: str | None
) -> None:
    limits = HostLimits(call_seconds=300.0, load_seconds=600.0, memory_bytes=1)
    assert fault_of(replace(BEAT, **told), silent_seconds, limits) == fault
