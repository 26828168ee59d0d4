import re

import pytest

from azneobert import pace
from azneobert.pace import Pace, time_stamp


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace.time, "monotonic", clock.monotonic)
    return clock


def seconds(text: str) -> int:
    hours, minutes, rest = map(int, text.split(":"))
    return hours * 3600 + minutes * 60 + rest


def run(clock, durations, first=0) -> Pace:
    measured = Pace()
    measured.reach(first)
    for step, duration in enumerate(durations, first + 1):
        clock.now += duration
        measured.reach(step)
    return measured


def test_a_steady_rate_gives_the_time_left(clock):
    assert run(clock, [2.0] * 40).left(40, 1840) == "1:00:00"


def test_nothing_is_said_before_anything_is_done(clock):
    measured = Pace()
    assert measured.left(0, 10) == "?"
    measured.reach(0)
    assert measured.left(0, 10) == "?"


def test_the_first_report_already_says_something(clock):
    assert run(clock, [0.5]).left(1, 11) == "0:00:05"


def test_the_recent_rate_counts_and_not_the_mean_since_the_start(clock):
    assert seconds(run(clock, [10.0] * 100 + [1.0] * 31).left(131, 231)) == 100


@pytest.mark.parametrize("place", [0, 5, 19])
def test_one_long_pause_does_not_count(clock, place):
    durations = [1.0] * 20
    durations[place] = 600.0
    assert seconds(run(clock, durations).left(20, 120)) == 100


def test_pauses_that_come_again_and_again_count(clock):
    durations = ([1.0] * 9 + [61.0]) * 4
    assert 350 < seconds(run(clock, durations).left(40, 140)) < 700


def test_what_an_earlier_run_has_done_is_no_speed(clock):
    assert seconds(run(clock, [1.0] * 5, first=90_000).left(90_005, 90_105)) == 100


def test_steps_of_less_than_a_second_are_taken_together(clock):
    assert seconds(run(clock, [0.01] * 2000).left(2000, 12_000)) == pytest.approx(100, abs=2)


def test_reports_of_no_progress_do_not_divide_by_zero(clock):
    measured = run(clock, [1.0, 1.0])
    for _ in range(5):
        clock.now += 2
        measured.reach(2)
    assert measured.left(2, 4) == "0:00:02"


def test_a_time_stamp_is_a_date_and_a_time():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", time_stamp())
