"""The courier's loop: each fetch and each delivery gets a thread, a few at a time.

There is one courier a data folder; its process holds the folder's courier lock. All of its state is in the
database and on disk, so if it dies, the next one resumes its work.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import structlog

from app.courier.deliverer import Deliverer
from app.courier.fetcher import Fetcher
from app.jobs.database import Database
from app.jobs.deliveries import DeliveryStore
from app.jobs.fetches import FetchStore
from app.jobs.heartbeats import Heartbeats
from app.storage.space import is_disk_full
from app.wakeups import Listener, Program, Wakeups

TICK_SECONDS = 1.0  # for work that is due at some time; for new work it is woken
HEARTBEAT_SECONDS = 1.0
NO_ROOM_SECONDS = 5.0
DELIVERIES_AT_ONCE = 8  # of which DeliveryStore gives one receiver half
STOP_SECONDS = 20.0  # for attempts under way to end; one that does not is made again later

_Threads = dict[str, threading.Thread]  # by job, or by delivery

_log = structlog.get_logger()


class Courier:
    """Starts fetches and deliveries until it is stopped."""

    def __init__(
        self,
        *,
        database: Database,
        fetcher: Fetcher,
        deliverer: Deliverer | None,
        fetches_at_once: int,
        stop: threading.Event,
        wakeups: Wakeups,
    ) -> None:
        """`deliverer` is None if there is no secret to sign with: then callbacks wait."""
        self._database = database
        self._heartbeats = Heartbeats(database)
        self._fetches = FetchStore(database)
        self._deliveries = DeliveryStore(database)
        self._fetcher = fetcher
        self._deliverer = deliverer
        self._fetches_at_once = fetches_at_once
        self._stop = stop
        self._fetching: _Threads = {}
        self._delivering: _Threads = {}
        self._ended: deque[str] = deque()  # their keys, from their own threads
        self._wakeups = wakeups
        self._listener: Listener | None = None
        self._next_heartbeat = 0.0

    def run(self) -> None:
        """Fetch and deliver until the stop event is set."""
        _log.info("courier ready", fetches=self._fetches_at_once, delivers=self._deliverer is not None)
        try:
            self._fetcher.recover()
            with self._wakeups.listen(Program.COURIER) as self._listener:
                while not self._stop.is_set():
                    self._tick()
                    self._listener.wait(TICK_SECONDS)
            deadline = time.monotonic() + STOP_SECONDS
            for thread in (*self._fetching.values(), *self._delivering.values()):
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            self._database.close()

    def stop(self) -> None:
        """Ask `run` to return. Safe in a signal."""
        self._stop.set()
        self._look_again()

    def _look_again(self) -> None:
        if self._listener is not None:
            self._listener.interrupt()

    def _tick(self) -> None:
        try:
            if time.monotonic() >= self._next_heartbeat:
                self._heartbeats.report_courier()
                self._next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
            while self._ended:  # before the database is asked what to begin, so that it shows their ends
                key = self._ended.popleft()
                self._fetching.pop(key, None)
                self._delivering.pop(key, None)
            self._fetcher.remove_unwanted(self._fetching.keys())
            if len(self._fetching) < self._fetches_at_once:
                for job_id in self._fetches.wanted(2 * self._fetches_at_once):
                    if len(self._fetching) < self._fetches_at_once:
                        self._start(self._fetching, job_id, job_id, partial(self._fetcher.fetch, job_id))
            if self._deliverer is not None and len(self._delivering) < DELIVERIES_AT_ONCE:
                for due in self._deliveries.due(2 * DELIVERIES_AT_ONCE, now=time.time()):
                    if len(self._delivering) < DELIVERIES_AT_ONCE:
                        deliver = partial(self._deliverer.deliver, due)
                        self._start(self._delivering, due.id, due.job_id, deliver)
        except sqlite3.Error as error:
            if not is_disk_full(error):
                raise
            _log.warning("no room on disk for the courier's records", exc_info=True)
            self._stop.wait(NO_ROOM_SECONDS)

    def _start(self, under_way: _Threads, key: str, job_id: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own. After an internal error it is tried again, after a pause."""
        if key in under_way:
            return

        def run() -> None:
            with structlog.contextvars.bound_contextvars(job_id=job_id):
                try:
                    work()
                except Exception:  # noqa: BLE001 - the thread's boundary: it is logged, and a later tick tries again
                    _log.exception("courier's work failed")
                    self._stop.wait(NO_ROOM_SECONDS)
                finally:
                    self._database.close()
                    self._ended.append(key)
                    self._look_again()  # another fetch or delivery may start

        name = f"courier-{key.removeprefix('msg_')[:8]}"
        under_way[key] = threading.Thread(target=run, name=name, daemon=True)
        under_way[key].start()
