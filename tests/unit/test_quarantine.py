"""Jobs at which hosts or engines die: which are quarantined, which run without others, which fail."""

from __future__ import annotations

import pytest
from stores import Stores

from app.engine.turns import (
    EXCLUSIVE_SECONDS,
    MOST_HANGS,
    PART_CHECK_SECONDS,
    QUARANTINE_DEATHS,
    QUARANTINED,
    TRUSTED,
    Quarantine,
    must_requeue,
    why_failed,
)
from app.errors import InternalError, ModelFault
from app.jobs.job import OWNER, Job, JobRequest, VideoSource
from app.jobs.queue import Claim
from app.pipeline.options import DetectionOptions
from app.storage.data_folder import new_job_id


def add(store: Stores) -> str:
    request = JobRequest(owner=OWNER, request_id="request", model="none", options=DetectionOptions())
    return store.add(new_job_id(), request, VideoSource(1, "ab" * 32, "clip.mp4")).id


def claim_all(store: Stores, epoch: int) -> list[str]:
    claimed = []
    while (job := store.queue.claim(epoch)) is not None:
        claimed.append(job.id)
    return claimed


def begin(store: Stores, **parts: str) -> int:
    """The next engine, which finds `parts` and comes to be ready."""
    epoch = store.queue.begin_epoch(pid=1, part_traces=parts)
    store.heartbeats.report_engine(epoch, ready=True)
    return epoch


def die(store: Stores, job_id: str, *, parts: str = "", times: int = 1) -> None:
    """Let engines take the job up and die."""
    for _ in range(times):
        claim_all(store, store.heartbeats.engine().epoch)
        begin(store, **{job_id: parts})


def test_deaths_in_a_row_are_counted_until_a_part_is_made(store: Stores) -> None:
    begin(store)
    job_id = add(store)
    die(store, job_id, times=3)
    assert store.get(job_id, owner=OWNER).deaths == 3
    die(store, job_id, parts="two")
    assert store.get(job_id, owner=OWNER).deaths == 0
    die(store, job_id, parts="two")
    assert store.get(job_id, owner=OWNER).deaths == 1


def test_an_engine_that_said_that_it_stops_did_not_die(store: Stores) -> None:
    epoch = begin(store)
    job_id = add(store)
    for _ in range(3):
        claim_all(store, epoch)
        store.heartbeats.report_engine(epoch, ready=False)
        epoch = begin(store, **{job_id: ""})
    assert store.get(job_id, owner=OWNER).deaths == 0


def test_only_jobs_that_were_running_are_counted(store: Stores) -> None:
    epoch = begin(store)
    running, queued = add(store), add(store)
    store.queue.claim(epoch)
    assert store.queue.running() == {running}
    begin(store, **{running: "", queued: ""})
    assert (store.get(running, owner=OWNER).deaths, store.get(queued, owner=OWNER).deaths) == (1, 0)


def test_quarantined_jobs_are_claimed_separately(store: Stores) -> None:
    begin(store)
    quarantined = add(store)
    assert not store.queue.has_queued(deaths=QUARANTINE_DEATHS)
    die(store, quarantined, times=QUARANTINE_DEATHS)
    other = add(store)
    assert store.queue.has_queued(deaths=QUARANTINE_DEATHS)
    epoch = store.heartbeats.engine().epoch
    claimed = store.queue.claim(epoch, Claim(deaths=TRUSTED))
    assert claimed is not None
    assert claimed.id == other
    assert store.queue.claim(epoch, Claim(deaths=TRUSTED)) is None
    claimed = store.queue.claim(epoch, Claim(deaths=QUARANTINED))
    assert claimed is not None
    assert (claimed.id, claimed.deaths) == (quarantined, QUARANTINE_DEATHS)
    assert not store.queue.has_queued(deaths=QUARANTINE_DEATHS)


def test_a_job_at_which_too_many_engines_died_ends(store: Stores) -> None:
    begin(store)
    job_id = add(store)
    die(store, job_id, times=4)
    assert why_failed(store.get(job_id, owner=OWNER), most_deaths=5, call_seconds=300) is None
    die(store, job_id)
    reason = why_failed(store.get(job_id, owner=OWNER), most_deaths=5, call_seconds=300)
    assert isinstance(reason, InternalError)
    assert "died 5 times in a row" in reason.detail


def test_the_deaths_of_hosts_count_as_those_of_engines(store: Stores) -> None:
    epoch = begin(store)
    job_id, other = add(store), add(store)
    claim_all(store, epoch)
    seen = []
    for _ in range(3):
        (job,) = store.queue.count_deaths(epoch, {job_id: ""}, hung=None)
        is_final = why_failed(job, most_deaths=3, call_seconds=300) is not None
        seen.append((must_requeue(job, most_deaths=3), is_final))
    assert seen == [(False, False), (True, False), (True, True)]
    (job,) = store.queue.count_deaths(epoch, {job_id: "a part"}, hung=None)
    assert (job.deaths, store.get(other, owner=OWNER).deaths) == (0, 0)


def test_a_job_at_which_a_model_hangs_again_and_again_ends(store: Stores) -> None:
    """Its deaths are not counted then: the reason is known."""
    epoch = begin(store)
    job_id, other = add(store), add(store)
    claim_all(store, epoch)
    for _ in range(MOST_HANGS):
        assert why_failed(store.get(job_id, owner=OWNER), most_deaths=8, call_seconds=300) is None
        store.queue.count_deaths(epoch, {job_id: "", other: ""}, hung=job_id)
    reason = why_failed(store.get(job_id, owner=OWNER), most_deaths=8, call_seconds=300)
    assert isinstance(reason, ModelFault)
    assert reason.detail == "Model 'none' gave no answer within 300 seconds, 2 times."
    assert must_requeue(store.get(job_id, owner=OWNER), most_deaths=8)
    assert not must_requeue(store.get(other, owner=OWNER), most_deaths=8)
    assert (
        store.get(job_id, owner=OWNER).deaths,
        store.get(other, owner=OWNER).deaths,
        store.get(other, owner=OWNER).hangs,
    ) == (0, 0, 0)


class Parts:
    """Tells the same of the parts of every job."""

    trace = "seven"

    def __call__(self, job_id: str) -> str:
        assert job_id
        return self.trace


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def quarantined(store: Stores) -> Job:
    begin(store)
    job_id = add(store)
    die(store, job_id, times=QUARANTINE_DEATHS)
    return store.get(job_id, owner=OWNER)


def test_a_quarantined_job_runs_without_others_until_it_makes_a_part(quarantined: Job) -> None:
    parts, clock = Parts(), Clock()
    quarantine = Quarantine(parts, clock=clock)
    assert quarantine.exclusive_job_id() is None
    quarantine.note_started(quarantined)
    assert quarantine.exclusive_job_id() == quarantined.id
    parts.trace = "eight"
    clock.seconds += PART_CHECK_SECONDS
    assert quarantine.exclusive_job_id() is None
    assert not quarantine.is_occupied()


def test_a_slow_quarantined_job_delays_others_only_for_a_while(quarantined: Job) -> None:
    clock = Clock()
    quarantine = Quarantine(Parts(), clock=clock)
    quarantine.note_started(quarantined)
    clock.seconds = EXCLUSIVE_SECONDS
    assert quarantine.exclusive_job_id() is None
    assert quarantine.is_occupied()
    quarantine.note_ended("another")
    assert quarantine.is_occupied()
    quarantine.note_ended(quarantined.id)
    assert not quarantine.is_occupied()


def test_a_trusted_job_is_not_quarantined(store: Stores) -> None:
    quarantine = Quarantine(Parts(), clock=Clock())
    quarantine.note_started(store.get(add(store), owner=OWNER))
    assert not quarantine.is_occupied()
