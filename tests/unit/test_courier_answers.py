"""What a server's answer means for a video of which a part may be there: pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3._collections import HTTPHeaderDict

from app.courier.answers import Received, Verdict, judge, retry_after_seconds
from app.courier.deliverer import MOST_ATTEMPTS, delivery_pause_seconds
from app.errors import SourceRefused
from app.jobs.fetches import SourceVersion

NOTHING = Received(0, SourceVersion())
HALF = Received(50, SourceVersion(100, '"v1"', "Sun, 22 Nov 2026 10:00:00 GMT"))


def headers(**named: str) -> HTTPHeaderDict:
    return HTTPHeaderDict({name.replace("_", "-"): value for name, value in named.items()})


def test_the_first_request_asks_for_the_whole_and_the_next_for_the_rest() -> None:
    assert NOTHING.headers() == {"Accept-Encoding": "identity"}
    assert HALF.headers() == {"Accept-Encoding": "identity", "Range": "bytes=50-", "If-Range": '"v1"'}


def test_without_a_strong_validator_the_date_must_do_and_without_any_the_whole_comes_again() -> None:
    assert Received(50, SourceVersion(100, 'W/"v1"', "date")).headers()["If-Range"] == "date"
    assert "Range" not in Received(50, SourceVersion(100, 'W/"v1"')).headers()
    assert "Range" not in Received(50, SourceVersion(100)).headers()


def test_an_answer_from_the_start_tells_length_and_validators() -> None:
    answer = judge(200, headers(Content_Length="100", ETag='"v1"', Last_Modified="then"), NOTHING)
    assert answer == (Verdict.FROM_START, SourceVersion(100, '"v1"', "then"))
    assert judge(200, headers(Transfer_Encoding="chunked"), NOTHING) == (Verdict.FROM_START, SourceVersion())


def test_the_part_that_was_asked_for_goes_on() -> None:
    answer = judge(206, headers(Content_Range="bytes 50-99/100", ETag='"v1"'), HALF)
    assert answer == (Verdict.GOES_ON, HALF.version)
    assert judge(206, headers(Content_Range="bytes 50-99/100"), HALF) == answer


@pytest.mark.parametrize(
    "named",
    [
        {"Content_Range": "bytes 50-99/100", "ETag": '"v2"'},
        {"Content_Range": "bytes 50-119/120", "ETag": '"v1"'},
        {"Content_Range": "bytes 40-99/100"},
        {"Content_Range": "bytes 50-98/100"},
    ],
)
def test_a_part_of_another_video_is_never_appended(named: dict[str, str]) -> None:
    assert judge(206, headers(**named), HALF)[0] is Verdict.CHANGED


@pytest.mark.parametrize("status", [412, 416])
def test_a_condition_or_range_that_no_longer_holds_means_a_change(status: int) -> None:
    assert judge(status, headers(), HALF)[0] is Verdict.CHANGED
    with pytest.raises(SourceRefused):
        judge(status, headers(), NOTHING)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    assert judge(status, headers(), HALF)[0] is Verdict.LATER


@pytest.mark.parametrize("status", [204, 301, 302, 307, 400, 401, 403, 404, 410, 501])
def test_any_other_status_is_final_and_told(status: int) -> None:
    with pytest.raises(SourceRefused) as caught:
        judge(status, headers(Location="https://127.0.0.1/"), HALF)
    assert caught.value.extensions["source_status"] == status
    assert "127" not in caught.value.detail


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (200, {"Content_Length": "10", "Content_Encoding": "gzip"}),
        (206, {"Content_Range": "bytes 0-99/*"}),
        (206, {}),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(status: int, named: dict[str, str]) -> None:
    with pytest.raises(SourceRefused):
        judge(status, headers(**named), HALF)


@pytest.mark.parametrize("length", [None, "-1", "1, 1", "0x10", "9" * 19])
def test_an_answer_without_a_length_is_no_whole_video(length: str | None) -> None:
    named = {} if length is None else {"Content_Length": length}
    assert judge(200, headers(**named), NOTHING)[0] is Verdict.ENDLESS


def test_a_part_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(SourceRefused):
        judge(206, headers(Content_Range="bytes 0-99/100"), NOTHING)


def test_pauses_grow_over_about_a_day_and_differ() -> None:
    pauses = [delivery_pause_seconds(attempt, jitter=lambda _low, _high: 1.0) for attempt in range(1, 12)]
    assert pauses[:4] == [5.0, 20.0, 80.0, 320.0]
    assert 24 <= sum(pauses[: MOST_ATTEMPTS - 1]) / 3600 <= 36
    assert {round(delivery_pause_seconds(3), 6) for _ in range(20)} != {80.0}
    assert all(64 <= delivery_pause_seconds(3) <= 96 for _ in range(50))


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_seconds("120") == 120
    assert retry_after_seconds("Thu, 01 Jan 1970 00:02:00 GMT", clock=lambda: 60.0) == 60
    assert retry_after_seconds("Thu, 01 Jan 1970 00:00:00 GMT", clock=lambda: 60.0) == 0
    assert retry_after_seconds("999999999999") == 86_400
    assert retry_after_seconds(None) == 0


@given(st.text(max_size=40))
def test_no_retry_after_breaks_anything(text: str) -> None:
    assert 0 <= retry_after_seconds(text) <= 86_400
