"""Kills a random process of a whole instance, or cancels a job, at random times, and counts what came of it.

    python -m benchmarks.random_kills KILLS [SEED]

Every job is posted with a key, and again when its connection breaks. Prints: kills by program, how the jobs
ended and whether their answers equal the undisturbed one, how long cancellations took, and what was left.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import psutil
import requests

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests" / "e2e"))

from instance import Instance, repeat_clip  # noqa: E402

OPTIONS = {"model": "hog-people", "max_side": 320}
JOBS_AT_ONCE = 2
CANCEL_SHARE = 0.2  # of the events
PROGRAMS = ("engine", "web worker", "gunicorn", "decoder", "nginx")
FINAL = ("succeeded", "failed", "cancelled")


class Trial:
    """One instance, its jobs, and what was done to them."""

    def __init__(self, instance: Instance, video: Path, chance: random.Random) -> None:
        self.instance = instance
        self.chance = chance
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.cancel_seconds: list[float] = []
        self._video = video
        self._expected = instance.post(video, **OPTIONS).content
        self._active: list[str] = []
        self._final_states: dict[str, str] = {}  # of jobs that were cancelled, or ended before that

    def step(self) -> None:
        """Let a random time pass with some jobs under way, then kill or cancel."""
        while len(self._active) < JOBS_AT_ONCE:
            self._active.append(self._post())
        time.sleep(self.chance.uniform(0.0, 3.0))
        if self.chance.random() < CANCEL_SHARE:
            self._cancel(self._active.pop(0))
        else:
            self._kill(self.chance.choice(PROGRAMS))
        self._collect()

    def finish(self) -> None:
        """Wait for the jobs that are under way."""
        self.instance.wait(self.instance.is_ready, 120, "ready")
        self.instance.wait(self._all_ended, 300, "the last jobs' ends")

    def _all_ended(self) -> bool:
        self._collect()
        return not self._active

    def leftovers(self) -> list[str]:
        """What lies in the data folder beside finished documents."""
        data = self.instance.data
        jobs = [path for path in (data / "jobs").glob("*/*") if path.name != "result.pairs"]
        return [str(path.relative_to(data)) for path in [*jobs, *(data / "incoming").iterdir()]]

    def _post(self) -> str:
        headers = {"Prefer": "respond-async", "Idempotency-Key": uuid4().hex}
        while True:
            try:
                answer = self.instance.post(self._video, headers, **OPTIONS)
            except requests.RequestException:
                continue
            if answer.status_code == 202:
                return str(answer.headers["Framebox-Job"])
            time.sleep(0.05)

    def _kill(self, program: str) -> None:
        victims = self._processes(program)
        if victims:
            self.kills[program] += 1
            self.chance.choice(victims).kill()

    def _processes(self, program: str) -> list[psutil.Process]:
        instance = self.instance
        try:
            match program:
                case "engine":
                    return instance.find("-m", "app", "engine")
                case "decoder":
                    return instance.decoders()
                case "web worker":
                    return instance.http_workers()
                case "gunicorn":
                    return [p for p in instance.find("gunicorn") if p.ppid() == instance.supervisor_pid]
                case _:
                    return instance.find("nginx")
        except (psutil.NoSuchProcess, ValueError):
            return []  # it is being started again

    def _cancel(self, job_id: str) -> None:
        began = time.monotonic()
        while not self._tried(lambda: self._cancelled(job_id)):
            time.sleep(0.02)
        self.cancel_seconds.append(time.monotonic() - began)
        self.ends[self._final_states[job_id]] += 1

    def _cancelled(self, job_id: str) -> bool:
        state = self.instance.report(job_id)["state"]
        if state in FINAL:
            self._final_states[job_id] = state
            return True
        requests.delete(f"{self.instance.url}/v1/jobs/{job_id}", timeout=10)
        return False

    def _collect(self) -> None:
        for job_id in list(self._active):
            if self._tried(lambda job_id=job_id: self._ended(job_id)):
                self._active.remove(job_id)

    def _ended(self, job_id: str) -> bool:
        report = self.instance.report(job_id)
        state = report["state"]
        if state not in FINAL:
            return False
        if state == "succeeded" and not report["completeness"]["complete"]:
            self.ends["succeeded, told as incomplete"] += 1  # two kills met one segment's decoder
        else:
            same = state == "succeeded" and self.instance.result(job_id) == self._expected
            self.ends["succeeded, equal" if same else f"{state}, NOT equal"] += 1
        return True

    def _tried(self, attempt: object) -> bool:
        """What `attempt` says; False while nobody answers."""
        try:
            return bool(attempt())  # type: ignore[operator]
        except (requests.RequestException, KeyError, AssertionError):
            return False


def main() -> None:
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        video = repeat_clip(CHECKOUT / "docs" / "walkers.mp4", Path(folder) / "v.mp4", times=3)
        with Instance(Path(folder) / "data", segment_frames=50) as instance:
            trial = Trial(instance, video, random.Random(seed))
            while sum(trial.kills.values()) < kills:
                trial.step()
            trial.finish()
            deadline = time.monotonic() + 20
            while trial.leftovers() and time.monotonic() < deadline:
                time.sleep(0.1)
            print(f"kills {sum(trial.kills.values())}: {dict(trial.kills)}")
            print(f"jobs {sum(trial.ends.values())}: {dict(trial.ends)}")
            print(f"cancelled within {max(trial.cancel_seconds, default=0):.1f} s at most")
            print(f"left behind: {trial.leftovers() or 'nothing'}")


if __name__ == "__main__":
    main()
