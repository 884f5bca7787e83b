"""The minimum pace of uploads, on a clock of the test's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.web.upload_pace import PaceKeeper, PaceRule, UploadPace

PIECE = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Trial:
    """An upload on a socket pair; what the keeper does is done when the test says so."""

    def __init__(self, rule: PaceRule) -> None:
        self.clock = Clock()
        self.near, self.far = socket.socketpair()
        self.keeper = PaceKeeper(rule, clock=self.clock)
        self.pace = UploadPace(rule, PIECE, self.near, self.clock)

    def read(self, seconds: float) -> bool:
        """Receive a piece that takes so long, a look at every second; True if it was cut off meanwhile."""
        with self.pace.reading():
            for _ in range(int(seconds)):
                self.clock.now += 1.0
                self.pace.cut_if_too_slow()
        self.pace.count(PIECE)
        return self.pace.was_cut


@pytest.fixture
def trial() -> Iterator[Trial]:
    """100 bytes a second over a minute: 6000 bytes, of which a piece may be on its way."""
    trial = Trial(PaceRule(bytes_per_second=100, window_seconds=60.0))
    yield trial
    trial.near.close()
    trial.far.close()


def test_an_upload_at_the_pace_is_never_cut_off(trial: Trial):
    assert not any(trial.read(10) for _ in range(1000))


def test_an_upload_below_it_is_cut_off_within_a_window(trial: Trial):
    cut = [trial.read(15) for _ in range(5)]
    assert cut[-1]
    assert trial.near.recv(10) == b"", "the reader sees an end"


def test_a_stall_is_cut_off_when_the_window_is_over_and_not_before(trial: Trial):
    with trial.pace.reading():
        trial.clock.now += 60.0
        trial.pace.cut_if_too_slow()
        assert not trial.pace.was_cut
        trial.clock.now += 0.1
        trial.pace.cut_if_too_slow()
    assert trial.pace.was_cut


def test_a_pause_is_forgiven_where_the_average_is_kept(trial: Trial):
    trial.read(1)
    assert not trial.read(50)
    assert not any(trial.read(1) for _ in range(3))
    assert not trial.read(59)


def test_speed_of_the_past_is_no_credit(trial: Trial):
    for _ in range(1000):
        trial.read(0)
    assert trial.read(61)


def test_the_time_that_a_slow_disk_takes_is_not_the_client_s(trial: Trial):
    for _ in range(10):
        assert not trial.read(5)
        trial.clock.now += 1000.0
        trial.pace.cut_if_too_slow()
    assert not trial.pace.was_cut


def test_a_window_holds_two_pieces_however_low_the_pace(trial: Trial):
    pace = UploadPace(PaceRule(bytes_per_second=1, window_seconds=60.0), PIECE, trial.near, trial.clock)
    with pace.reading():
        trial.clock.now += 2000.0
        pace.cut_if_too_slow()
        assert not pace.was_cut
        trial.clock.now += 0.1
        pace.cut_if_too_slow()
        assert pace.was_cut


def test_an_upload_that_has_ended_is_let_be(trial: Trial):
    """Its connection serves another request by then."""
    with trial.keeper.watch(trial.near, piece_bytes=PIECE) as pace:
        assert pace is not None
        reading = pace.reading()
        reading.__enter__()
    trial.clock.now += 1000.0
    trial.keeper.look()
    assert not pace.was_cut


def test_no_pace_is_asked_for_where_the_setting_says_so():
    near, far = socket.socketpair()
    with near, far, PaceKeeper(PaceRule(0, 60.0)).watch(near, piece_bytes=PIECE) as pace:
        assert pace is None
    with PaceKeeper(PaceRule(100, 60.0)).watch(None, piece_bytes=PIECE) as pace:
        assert pace is None
