"""What became of a run is read from its folder: its word, and the checkpoint that bears it out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from toy import STEPS, Toy

from azneobert.launching.outcome import Outcome, read_outcome


@pytest.fixture(scope="module")
def stopped(make_toy: Callable[..., Toy]) -> Toy:
    toy = make_toy()
    assert not toy.train(stop_after=4)
    return toy


@pytest.fixture
def toy(stopped: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return stopped.copy_to(tmp_path_factory.mktemp("outcome") / "run")


def test_a_stop_is_a_checkpoint_of_the_step_at_which_it_stopped(toy: Toy) -> None:
    assert read_outcome(toy.run()) == Outcome("stopped", 4)


def test_a_run_that_came_to_its_end_is_complete_also_when_it_is_started_once_more(toy: Toy) -> None:
    for _ in range(2):
        assert toy.train()
        assert read_outcome(toy.run()) == Outcome("complete", STEPS)
        toy.run().outcome_file.unlink()


def test_a_stop_file_alone_is_no_stop(toy: Toy) -> None:
    toy.run().outcome_file.unlink()
    toy.run().stop_file.touch()
    assert read_outcome(toy.run()) == Outcome("failed")


@pytest.mark.parametrize(
    "said", ['{"state": "stopped", "step": 5}', '{"state": "fine", "step": 4}', '{"step": 4}', "[]", "", "{"]
)
def test_a_word_that_no_checkpoint_bears_out_counts_for_nothing(said: str, toy: Toy) -> None:
    toy.run().outcome_file.write_text(said)
    assert read_outcome(toy.run()) == Outcome("failed")


def test_a_checkpoint_of_another_step_in_that_place_does_not_bear_it_out(toy: Toy) -> None:
    checkpoints = toy.run().checkpoints
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000006")
    toy.run().outcome_file.write_text(json.dumps({"state": "stopped", "step": 6}))
    assert read_outcome(toy.run()) == Outcome("failed")
