"""A request to stop, by signal or by file, ends a run behind a checkpoint; all ranks stop at one step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import ENDLESS, Toy, equal_states, outcome, run_ranks, start_ranks, train_rank

from azneobert.environment import EXIT_FORCED
from azneobert.training.inputs import Inputs
from azneobert.training.stopping import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def test_nobody_asked_until_the_file_is_there(tmp_path: Path) -> None:
    with StopRequest(tmp_path / "stop") as stop:
        assert stop.agreed() == (False, False)
        (tmp_path / "stop").touch()
        assert stop.agreed() == (True, False)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_asks_and_the_former_handlers_come_back(number: signal.Signals, tmp_path: Path) -> None:
    former = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest(tmp_path / "stop") as stop:
        os.kill(os.getpid(), number)
        assert stop.agreed() == (True, False)
        os.kill(os.getpid(), number)  # an impatient person changes nothing
        assert stop.agreed() == (True, False)
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        assert len(timers) == 1
    assert [signal.getsignal(each) for each in SIGNALS] == former
    timers[0].join(5)
    assert not timers[0].is_alive(), "the forced exit must not outlive the run that it bounds"


def stuck(folder: Path) -> None:
    with StopRequest(folder / "stop", grace_seconds=0.3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_run_that_does_not_get_to_its_checkpoint_is_ended_when_the_grace_is_over(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run_ranks(stuck, tmp_path, folder=tmp_path) == [EXIT_FORCED]
    assert time.monotonic() - began < 30


def stuck_after_the_stop_file(folder: Path) -> None:
    with StopRequest(folder / "stop", grace_seconds=0.3) as stop:
        (folder / "stop").touch()
        stop.agreed()
        time.sleep(60)


def test_the_forced_exit_is_armed_by_the_stop_itself_and_not_by_a_signal_alone(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run_ranks(stuck_after_the_stop_file, tmp_path, folder=tmp_path) == [EXIT_FORCED]
    assert time.monotonic() - began < 30


def test_a_signal_to_one_rank_stops_both_at_the_same_step(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy()
    results = run_ranks(train_rank, toy.inputs(), ("only_rank", 1), ("term_after", 4), processes=2, folder=toy.folder)
    assert results == [False, False]
    assert toy.result()[1].step == 4
    assert max(toy.losses()) == 4


def in_a_group_of_its_own(inputs: Inputs) -> bool:
    os.setsid()
    return train_rank(inputs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_to_the_whole_process_group_still_leaves_a_checkpoint(
    number: signal.Signals, workers: int, make_toy: Callable[..., Toy]
) -> None:
    # Ctrl-C on a terminal and SLURM's scancel reach the workers of the data loader as well.
    toy = make_toy(ENDLESS).with_({"runtime": {"workers": workers}})
    [(child, connection)] = start_ranks(in_a_group_of_its_own, toy.inputs(), folder=toy.folder)
    toy.wait_for_points(child, 5)
    os.killpg(child.pid, number)
    assert outcome(child, connection) is False
    assert toy.result()[1].step == max(toy.losses())


def test_the_step_that_a_run_stops_at_need_not_be_one_of_its_checkpoints(make_toy: Callable[..., Toy]) -> None:
    one, other = make_toy(), make_toy()
    assert not one.train(stop_after=5)
    assert not other.train(stop_after=2)
    assert not other.train(stop_after=3)
    assert [path.name for path in one.checkpoints().steps()] == ["step-00000003", "step-00000005"]
    assert equal_states(one.result()[0], other.result()[0])


def test_a_signal_while_the_timer_is_made_makes_no_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[threading.Timer] = []

    class Interrupted(threading.Timer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)
            if len(made) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(threading, "Timer", Interrupted)
    (tmp_path / "stop").touch()
    with StopRequest(tmp_path / "stop") as stop:
        assert stop.agreed() == (True, False)
        assert len(made) == 1
    assert made[0].finished.is_set()
