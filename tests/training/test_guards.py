"""A run whose numbers go wrong stops, skips or goes back, and what it has saved is from before that."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from refusals import refused
from toy import Toy, equal_states, run_ranks, train_rank

from azneobert.checkpoint.finite import check_finite
from azneobert.checkpoint.universal import read_checkpoint
from azneobert.engine import micro_batches
from azneobert.errors import CheckpointError, TrainingError
from azneobert.recipe import Recipe
from azneobert.tracking.points import read_points
from azneobert.training.inputs import Inputs, open_streams

MakeToy = Callable[..., Toy]

STEPS = 30
SPIKE = 18  # the step of the poisoned samples
LONG = {
    "phase1": {"steps": STEPS},
    "runtime": {"checkpoint_every": 5, "keep_checkpoints": 9},
    "guards": {"spike_window": 8, "spike_score": 12.0, "repeat_every": 0},
    "evaluation": {"every": 10},
}


def train_poisoned(inputs: Inputs, numbers: range, factor: float, *options: tuple[str, Any]) -> bool:
    """A run in which the loss of these steps' samples, whenever they come, is so many times what it is."""
    stream = open_streams(inputs)[0]
    poison = [stream.batch(8 * (number - 1), 8).input_ids for number in numbers]
    original = micro_batches.masked_loss

    def poisoned(model: torch.nn.Module, batch: Any, weights: Any = None) -> torch.Tensor:
        hit = any(torch.equal(batch.input_ids, each) for each in poison)
        return original(model, batch, weights) * (factor if hit else 1.0)

    micro_batches.masked_loss = poisoned
    return train_rank(inputs, *options)


def poisoned_run(toy: Toy, numbers: range = range(SPIKE, SPIKE + 1), factor: float = 50.0, **options: Any) -> Any:
    return run_ranks(train_poisoned, toy.inputs(), numbers, factor, *options.items(), folder=toy.folder)[0]


def values(toy: Toy, key: str) -> dict[int, float]:
    return toy.losses(key=key)


@pytest.mark.parametrize(("engine", "processes"), [("plain", 1), ("zero2", 2)])
def test_a_rate_that_is_absurd_stops_the_run_before_anything_is_saved_over(
    engine: str, processes: int, make_toy: MakeToy
) -> None:
    toy = make_toy({"runtime": {"engine": engine, "processes": processes, "checkpoint_every": 1}})
    assert not toy.train(processes=processes, stop_after=2)
    good = toy.checkpoints().steps()
    wild = toy.with_({"phase1": {"peak_learning_rate": 1e30, "steps": 60}})
    with refused(TrainingError, "phase1", "step ", "the last good checkpoint is", good[-1].name, "peak_learning_rate"):
        wild.train(processes=processes, accept_changed=("phase",))
    assert toy.checkpoints().steps() == good
    for folder in good:
        check_finite(read_checkpoint(folder)[0], folder)
    assert all(math.isfinite(v) for p in read_points(toy.run().tracking) for v in p["values"].values())
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FAILED"


def test_a_few_updates_that_are_not_finite_are_skipped_and_counted_and_the_schedule_goes_on(make_toy: MakeToy) -> None:
    toy = make_toy(LONG)
    assert poisoned_run(toy, range(12, 15), math.nan)
    state, manifest = toy.result()
    assert (manifest.step, manifest.samples, state.optimizer_step) == (STEPS, 8 * STEPS, STEPS - 3)
    assert values(toy, "guards/skipped_updates") == {12: 1.0, 13: 2.0, 14: 3.0}
    assert values(toy, "train/lr").keys() == set(range(1, STEPS + 1))
    assert values(toy, "train/loss").keys() == set(range(1, STEPS + 1)) - {12, 13, 14}


def test_as_many_as_are_allowed_in_a_row_stop_it(make_toy: MakeToy) -> None:
    toy = make_toy(LONG).with_({"guards": {"stop_after": 4}})
    with refused(TrainingError, "step 15: 4 updates in a row were not finite (loss nan", "step-00000010"):
        poisoned_run(toy, range(12, STEPS + 1), math.nan)
    assert [folder.name for folder in toy.checkpoints().steps()] == ["step-00000005", "step-00000010"]


def test_a_spike_is_flagged_and_changes_nothing(make_toy: MakeToy) -> None:
    toy, calm = make_toy(LONG), make_toy(LONG)
    assert poisoned_run(toy)
    assert poisoned_run(calm.with_({"guards": {"spike_score": 1e6}}))
    assert values(toy, "guards/spike_score").keys() == {SPIKE}
    assert values(calm, "guards/spike_score") == {}
    assert equal_states(toy.result()[0], calm.result()[0])


def test_a_spike_that_is_skipped_is_no_update_and_a_resumed_run_skips_it_too(make_toy: MakeToy) -> None:
    toy, killed = (make_toy(LONG).with_({"guards": {"on_spike": "skip"}}) for _ in range(2))
    assert poisoned_run(toy)
    state, manifest = toy.result()
    assert (manifest.samples, state.optimizer_step) == (8 * STEPS, STEPS - 1)
    assert values(toy, "guards/skipped_updates") == {SPIKE: 1.0}
    assert poisoned_run(killed, kill_after=16) == -signal.SIGKILL
    assert poisoned_run(killed)
    assert equal_states(killed.result()[0], state)


def test_a_rewound_run_leaves_out_the_window_as_a_segment_of_its_own(make_toy: MakeToy) -> None:
    toy, killed = (make_toy(LONG).with_({"guards": {"on_spike": "rewind"}}) for _ in range(2))
    assert poisoned_run(toy)
    state, manifest = toy.result()
    window = 8 * (SPIKE - 15)
    assert (manifest.step, manifest.samples, state.optimizer_step) == (STEPS, 8 * STEPS + window, STEPS)
    assert manifest.tokens == 8 * 32 * STEPS, "what was trained on, and not what was left out"
    assert [(s.from_step, s.skipped and s.skipped.samples) for s in manifest.segments] == [(0, None), (15, window)]
    assert manifest.segments[1].skipped is not None
    assert "spike at step 18" in manifest.segments[1].skipped.why
    points = [point for point in read_points(toy.run().tracking) if "train/loss" in point["values"]]
    assert [point["step"] for point in points] == list(range(1, STEPS + 1))
    assert [point["segment"] for point in points] == [0] * 15 + [1] * 15
    assert max(point["values"]["train/loss"] for point in points) < 10
    # Killed behind the next checkpoint, which has the new place in the data.
    assert poisoned_run(killed, kill_after=17 + 7) == -signal.SIGKILL
    assert poisoned_run(killed)
    assert equal_states(killed.result()[0], state)
    assert [s.skipped is not None for s in killed.result()[1].segments] == [False, True]


def test_a_run_that_meets_one_spike_after_another_is_rewound_so_often_and_no_oftener(make_toy: MakeToy) -> None:
    settings = {"on_spike": "rewind", "rewinds": 2, "spike_score": 1.01, "spike_window": 8}
    toy = make_toy(LONG).with_({"guards": settings})
    with refused(TrainingError, "a spike", "after 2 that the run was rewound for", "guards.rewinds"):
        toy.train()
    assert toy.checkpoints().latest() is not None


def test_a_rewind_before_the_first_checkpoint_begins_anew_behind_the_window(make_toy: MakeToy) -> None:
    toy = make_toy(LONG).with_({"guards": {"on_spike": "rewind"}, "runtime": {"checkpoint_every": 30}})
    assert poisoned_run(toy)
    _, manifest = toy.result()
    assert manifest.samples == 8 * (STEPS + SPIKE)
    assert [s.from_step for s in manifest.segments] == [0, 0]


def computes_wrong(inputs: Inputs) -> bool:
    """Rank 1's answers differ in the last bit each second time."""
    import os

    if os.environ["RANK"] == "1":
        original, calls = micro_batches.masked_loss, iter(range(9999))
        micro_batches.masked_loss = lambda *args: original(*args) * (1 + 2**-50 * (next(calls) % 2))
    return train_rank(inputs)


def test_a_device_that_computes_wrong_stops_the_run_and_is_named(make_toy: MakeToy) -> None:
    toy = make_toy({"runtime": {"processes": 2, "workers": 0}, "guards": {"repeat_every": 5}})
    with refused(TrainingError, "rank 1 on ", "step 5", "computed twice", "step-00000003"):
        run_ranks(computes_wrong, toy.inputs(), processes=2, folder=toy.folder)
    assert [folder.name for folder in toy.checkpoints().steps()] == ["step-00000003"]


def test_repeating_needs_a_deterministic_run(make_toy: MakeToy) -> None:
    fields = make_toy().recipe.model_dump()
    fields["runtime"]["deterministic"] = False
    with pytest.raises(ValueError, match="repeat_every"):
        Recipe.model_validate(fields)
    fields["guards"]["repeat_every"] = 0
    Recipe.model_validate(fields)


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(make_toy: MakeToy) -> None:
    toy = make_toy()
    assert not toy.train(stop_after=4)
    folder = toy.checkpoints().steps()[-1]
    state, _ = read_checkpoint(folder)
    broken = {name: tensor.clone() for name, tensor in state.weights.items()}
    broken["encoder.embedding.weight"][3, 3] = math.inf
    with refused(CheckpointError, "weights encoder.embedding.weight: values that are not finite: 1"):
        check_finite(replace(state, weights=broken), folder)
