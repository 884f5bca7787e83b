"""Kills a random process of a whole instance at random times while clients work, and counts what came of it.

    python -m benchmarks random_kills [--kills 200] [--clients 3] [--seed 1] [--pause 5]

Each client posts a video with a key of its own, waits or comes back for the answer, and does again what
failed, as a careful program does. Prints: kills by program, answers that equal the undisturbed one, segments
that were done again although their part was finished, and what was left when all was over.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import psutil
import requests

from benchmarks.census import (
    CHECKOUT,
    Instance,
    differences,
    leftover_files,
    make_clip,
    processes,
    segments_done_twice,
    state_at_rest,
    strangers,
)
from benchmarks.machine import describe_machine

KINDS = (
    "engine",
    "host",
    "HTTP worker",
    "gunicorn master",
    "decoder",
    "decoders' parent",
    "nginx master",
    "nginx worker",
    "courier",
)
FORMS = ("pairs", "pairs", "csv")
JOB_SECONDS = 300.0
SETTLE_SECONDS = 60.0
AGAIN_SECONDS = 0.1


class Order:
    """A video, how it is to be analysed, and the answer in each form."""

    def __init__(self, instance: Instance, video: Path, options: dict[str, object]) -> None:
        self.video = video
        self.options = options
        job_id = instance.post_async(video, **options)
        instance.wait_for_end(job_id)
        self.answers = {form: _result(instance, job_id, form).content for form in set(FORMS)}


class Client(threading.Thread):
    """Has one job after another done until it is told to stop."""

    def __init__(self, instance: Instance, orders: list[Order], number: int, seed: int) -> None:
        super().__init__(name=f"client-{number}")
        self.outcomes: Counter[str] = Counter()
        self.attempts = 0
        self.wrong: list[str] = []
        self.stopping = threading.Event()
        self._instance = instance
        self._orders = orders
        self._chance = random.Random(seed * 1000 + number)

    def run(self) -> None:
        while not self.stopping.is_set():
            order, form = self._chance.choice(self._orders), self._chance.choice(FORMS)
            self.outcomes[self._have_done(order, form, waits=self._chance.random() < 0.5)] += 1

    def _have_done(self, order: Order, form: str, *, waits: bool) -> str:
        headers = {"Idempotency-Key": uuid4().hex} | ({} if waits else {"Prefer": "respond-async"})
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            self.attempts += 1
            try:
                answer = self._instance.post(order.video, headers, format=form, **order.options)
                if answer.status_code == 202:
                    answer = self._come_back(answer.headers["Framebox-Job"], form, deadline)
            except requests.RequestException:
                continue
            if answer.status_code == 200:
                return self._compare(answer, order.answers[form])
            if answer.status_code < 500:
                self.wrong.append(answer.text[:300])
                return f"answered {answer.status_code}"
            time.sleep(AGAIN_SECONDS)
        return "never answered"

    def _come_back(self, job_id: str, form: str, deadline: float) -> requests.Response:
        """Ask for the result until it is there; 409 while it is not."""
        while time.monotonic() < deadline:
            try:
                answer = _result(self._instance, job_id, form)
            except requests.RequestException:
                continue
            if answer.status_code != 409 and answer.status_code < 500:
                return answer
            time.sleep(AGAIN_SECONDS)
        raise requests.Timeout(f"job {job_id} has no result")

    def _compare(self, answer: requests.Response, expected: bytes) -> str:
        if answer.headers["Framebox-Complete"] != "true":
            return "told as incomplete"
        if answer.content == expected:
            return "equal"
        self.wrong.append(f"job {answer.headers['Framebox-Job']} differs")
        return "NOT equal"


def _result(instance: Instance, job_id: str, form: str) -> requests.Response:
    return requests.get(f"{instance.url}/v1/jobs/{job_id}/result", params={"format": form}, timeout=60)


def kill_one(instance: Instance, chance: random.Random) -> str | None:
    """Kill a process of a random kind; return the kind, None if it has none just now."""
    kind = chance.choice(KINDS)
    victims = processes(instance).get(kind)
    if not victims:
        return None
    try:
        chance.choice(victims).kill()
    except psutil.NoSuchProcess:
        return None
    return kind


def kill_while_they_work(
    instance: Instance, clients: list[Client], kills: int, pause_seconds: float, chance: random.Random
) -> Counter[str]:
    counted: Counter[str] = Counter()
    for client in clients:
        client.start()
    while counted.total() < kills:
        time.sleep(chance.uniform(0.0, pause_seconds))
        kind = kill_one(instance, chance)
        if kind is not None:
            counted[kind] += 1
            if counted.total() % 20 == 0:
                print(f"{counted.total()} kills", flush=True)
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(JOB_SECONDS + SETTLE_SECONDS)
    return counted


def settle(instance: Instance, before: dict[str, int]) -> None:
    """Wait until the instance rests, or for SETTLE_SECONDS: what differs then is left over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        is_clean = not leftover_files(instance.data) and not strangers(instance)
        if is_clean and instance.is_ready() and not differences(before, state_at_rest(instance)):
            return
        time.sleep(0.5)


def make_orders(instance: Instance, folder: Path) -> list[Order]:
    drawn = make_clip(folder / "drawn.mp4", frames=1500, size="160x120")
    return [
        Order(instance, CHECKOUT / "docs" / "walkers.mp4", {"model": "hog-people", "max_side": 320}),
        Order(instance, drawn, {"model": "none"}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two kills, at most")
    parser.add_argument("--log", type=Path, help="where the instance's log is kept")
    arguments = parser.parse_args()
    print(describe_machine())
    with (
        tempfile.TemporaryDirectory() as folder,
        Instance(Path(folder) / "data", segment_frames=24) as instance,
    ):
        try:
            run(instance, Path(folder), arguments)
        finally:
            if arguments.log:
                arguments.log.write_bytes(instance.log.read_bytes())


def run(instance: Instance, folder: Path, arguments: argparse.Namespace) -> None:
    orders = make_orders(instance, folder)
    before = state_at_rest(instance)
    clients = [Client(instance, orders, number, arguments.seed) for number in range(arguments.clients)]
    started = time.monotonic()
    chance = random.Random(arguments.seed)
    kills = kill_while_they_work(instance, clients, arguments.kills, arguments.pause, chance)
    seconds = time.monotonic() - started
    settle(instance, before)
    outcomes = sum((client.outcomes for client in clients), Counter())
    finished, twice = segments_done_twice(instance.log)
    print(f"kills {kills.total()} in {seconds:.0f} s: {dict(kills)}")
    print(f"answers {outcomes.total()}: {dict(outcomes)}; posts {sum(client.attempts for client in clients)}")
    print(f"segments finished {finished}, of them done before: {twice}")
    print(f"files left: {leftover_files(instance.data) or 'none'}")
    print(f"processes left: {strangers(instance) or 'none'}")
    print(f"at rest, before → after: {differences(before, state_at_rest(instance)) or 'the same'}")
    for client in clients:
        print(*client.wrong, sep="\n", end="")


if __name__ == "__main__":
    main()
