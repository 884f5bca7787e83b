"""Work that waits for hosts ends in every case: nothing waits forever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.host_pool import HostDeath, HostPool
from app.engine.host_process import HostLimits
from app.engine.turns import SegmentTurns
from app.host.messages import DecoderPlan, HostPlan
from app.metrics import Metrics
from app.pipeline.pace import FrameMeter
from app.pipeline.runner import IndexItem, IndexTask, ModelChanged
from app.pipeline.segment_task import RecordRules, SegmentTask
from app.video.protocol.limits import VideoLimits
from app.video.results import WorkCancelled
from app.video.sampling import Sampling

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 20.0

# A host that is ready, holds any model, accepts all work and does nothing.
IDLE_HOST = """
import sys
from multiprocessing.connection import Connection
from app.detection.model_facts import ModelFacts
from app.host.messages import HostReady, ModelInUse, UseModel

FACTS = dict(
    sha256="new", device="cpu", runtime="", batch_size=1, labels=(), input_size=(1, 1), default_min_score=0,
    precision="", precision_effect=None, frames_per_second=1, memory_bytes=0, device_memory_bytes=0,
)

channel = Connection(int(sys.argv[1]))
channel.recv()
channel.send(HostReady("cpu", ("cpu",), "decoder", None, ("none",), 0, "a test", 0))
while True:
    command = channel.recv()
    if isinstance(command, UseModel):
        channel.send(ModelInUse(command.ticket, ModelFacts(name=command.model, **FACTS)))
"""


def read_nothing(item: IndexItem) -> None:
    raise AssertionError(item)


def spawn_idle(descriptor: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", IDLE_HOST, str(descriptor)]
    return subprocess.Popen(command, pass_fds=(descriptor,), cwd=CHECKOUT, start_new_session=True)


def never() -> bool:
    return False


@pytest.fixture
def pool() -> Iterator[HostPool]:
    """A pool that has no host before `tend` is called."""
    nothing = Path("/nonexistent")
    decoders = DecoderPlan(VideoLimits(), 1, 0, 0, 1.0, require_sandbox=False, ready_children=0)
    made = HostPool(
        plan=HostPlan(None, (), None, None, "float32", 0, None, nothing, decoders, "info"),
        spawn=spawn_idle,
        limits=HostLimits(60.0, 60.0, 1 << 40),
        turns=SegmentTurns(slots=2),
        metrics=Metrics(),
        meter=FrameMeter(),
        wake=lambda: None,
    )
    yield made
    made.close(grace_seconds=5.0)


@pytest.fixture
def task(tmp_path: Path) -> SegmentTask:
    return SegmentTask(
        job_id="job",
        video=tmp_path / "video",
        facts=None,  # type: ignore[arg-type]  # no host looks at it
        segment=None,  # type: ignore[arg-type]  # nor at this
        parts_folder=tmp_path,
        identity="",
        model="none",
        model_identity=("old", "cpu", "", 1),
        max_side=None,
        rules=RecordRules((), 0.0),
    )


def tend_until(pool: HostPool, condition: Callable[[], bool]) -> list[HostDeath]:
    """Return the deaths until `condition` holds."""
    deaths: list[HostDeath] = []
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        deaths += pool.tend()
        time.sleep(0.01)
    return deaths


def index_task(tmp_path: Path) -> IndexTask:
    return IndexTask("job", tmp_path / "video", 100, Sampling())


def test_a_segment_that_its_job_takes_back_is_settled(pool: HostPool, task: SegmentTask) -> None:
    is_cancelled = threading.Event()
    future = pool.submit(task, is_cancelled.is_set)
    future.cancel()  # as a job's thread does, which then waits for all that it had submitted
    is_cancelled.set()
    pool.tend()
    assert wait([future], SECONDS).done


def test_waiting_segments_of_a_parked_pool_are_cancelled(pool: HostPool, task: SegmentTask) -> None:
    before = pool.submit(task, never)
    pool.park()
    after = pool.submit(task, never)
    assert wait([before, after], SECONDS).not_done == set()
    assert before.cancelled()
    assert after.cancelled()


def test_closing_the_pool_cancels_all_work(pool: HostPool, tmp_path: Path) -> None:
    begun = pool.index(index_task(tmp_path), read_nothing, never)
    tend_until(pool, lambda: pool.machine is not None and not pool.is_idle())
    pool.close(grace_seconds=5.0)
    late = pool.index(index_task(tmp_path), read_nothing, never)
    for future in (begun, late):
        with pytest.raises(WorkCancelled):
            future.result(SECONDS)


def test_a_segment_is_not_run_with_another_model_of_the_same_name(pool: HostPool, task: SegmentTask) -> None:
    tend_until(pool, lambda: pool.machine is not None)
    with pool.use("none", never) as facts:
        assert facts.identity == ("new", "cpu", "", 1)
        stale = pool.submit(task, never)
        begun = pool.submit(replace(task, model_identity=facts.identity), never)
        tend_until(pool, stale.done)
        with pytest.raises(ModelChanged):
            stale.result()
        assert begun.running()


def test_a_hosts_death_counts_for_the_jobs_whose_videos_it_was_indexing(
    pool: HostPool, tmp_path: Path
) -> None:
    """Else a video that kills every host would be indexed again forever."""
    pool.index(index_task(tmp_path), read_nothing, never)
    tend_until(pool, lambda: pool.machine is not None and not pool.is_idle())
    os.kill(pool.statuses()[0].pid, signal.SIGKILL)
    deaths = tend_until(pool, lambda: pool.statuses()[0].restarts == 1)
    assert [death.job_ids for death in deaths] == [{"job"}]
