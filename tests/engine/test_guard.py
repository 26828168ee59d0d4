"""An update that is not finite, or a spike, changes nothing; and the device says what it found out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from engines import new_engine, steps
from toy import Toy, equal_states, run_ranks

from azneobert.checkpoint.universal import TrainState
from azneobert.engine import micro_batches
from azneobert.engine.guard import Judgement, Judgements, UpdateGuard
from azneobert.recipe import Guards
from azneobert.training.inputs import Inputs, open_streams

CPU = torch.device("cpu")
SETTINGS = Guards(spike_window=16, spike_score=6.0)


def judged(guard: UpdateGuard, loss: float, norm: float) -> Judgement:
    guard.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm))
    judgements = Judgements()
    judgements.add(1, guard.judgement)
    return next(judgements.arrived())


def ordinary(count: int, seed: int = 0) -> Iterator[tuple[float, float]]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield 5 + 0.3 * random.standard_normal(), math.exp(0.4 * random.standard_normal())


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1.0), (5.0, math.nan), (5.0, math.inf)],
)
def test_what_is_not_finite_is_withheld_and_counted_in_a_row_and_is_nothing_to_measure_others_by(
    loss: float, norm: float
) -> None:
    guard = UpdateGuard(SETTINGS, CPU, 1)
    for figures in ordinary(20):
        assert not judged(guard, *figures).withheld
    before = guard.state()
    found = [judged(guard, loss, norm) for _ in range(3)]
    assert [(each.withheld, each.in_a_row, each.score) for each in found] == [(True, n, 0.0) for n in (1, 2, 3)]
    assert guard.state() == before | {"in_a_row": 3}
    assert judged(guard, 5.0, 1.0).in_a_row == 0


def test_the_score_is_the_robust_one_of_the_window_before() -> None:
    guard = UpdateGuard(SETTINGS, CPU, 1)
    seen = list(ordinary(50))
    for figures in seen:
        judged(guard, *figures)
    losses, norms = np.array(seen[-16:]).T
    found = judged(guard, 7.5, 9.0)
    for window, value, score in ((losses, 7.5, found.loss_score), (np.log(norms), math.log(9.0), found.norm_score)):
        middle = np.sort(window)[8]
        deviation = 1.4826 * np.sort(np.abs(window - middle))[8]
        assert score == pytest.approx((value - middle) / deviation, rel=1e-6)
    assert found.score == max(found.loss_score, found.norm_score)
    assert found.score > 6
    assert not found.withheld, "flagged is not skipped"


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    guard = UpdateGuard(SETTINGS, CPU, 1)
    for figures in ordinary(15):
        judged(guard, *figures)
    assert judged(guard, 500.0, 500.0).score == 0
    assert judged(guard, 900.0, 900.0).score > 6


def test_ordinary_steps_are_no_spikes_at_the_default_score() -> None:
    guard = UpdateGuard(Guards(), CPU, 1)
    assert max(judged(guard, *figures).score for figures in ordinary(5000)) < Guards().spike_score


def test_a_level_that_stays_becomes_the_ordinary_one() -> None:
    guard = UpdateGuard(Guards(spike_window=16, spike_score=6.0, on_spike="skip"), CPU, 1)
    for figures in ordinary(40):
        judged(guard, *figures)
    withheld = [judged(guard, loss + 5, norm).withheld for loss, norm in ordinary(40, seed=1)]
    assert withheld[0]
    assert not any(withheld[16:])


def test_equal_losses_leave_a_deviation_to_measure_by() -> None:
    guard = UpdateGuard(SETTINGS, CPU, 1)
    for _ in range(20):
        judged(guard, 5.0, 1.0)
    assert judged(guard, 5.001, 1.001).score < 1
    assert judged(guard, 5.5, 1.0).score == pytest.approx(25.0)


def test_a_guard_that_takes_over_a_state_judges_as_the_one_that_left_it() -> None:
    one = UpdateGuard(SETTINGS, CPU, 1)
    for figures in ordinary(30):
        judged(one, *figures)
    judged(one, math.nan, 1.0)
    other, shorter = UpdateGuard(SETTINGS, CPU, 1), UpdateGuard(Guards(spike_window=8), CPU, 1)
    other.restore(one.state())
    shorter.restore(one.state())
    assert shorter.state()["losses"] == one.state()["losses"][-8:]
    for figures in [(math.nan, 1.0), (9.0, 1.0), *ordinary(20, seed=2)]:
        assert str(judged(one, *figures)) == str(judged(other, *figures))


# In an engine


def diverging(inputs: Inputs) -> tuple[TrainState | None, TrainState | None, list[Any]]:
    """One step at an absurd rate, after which no loss is finite, then three more."""
    engine = new_engine(inputs.recipe)
    stream = open_streams(inputs)[0]
    share = 8 // engine.world.size
    figures = []

    def step(number: int, rate: float) -> None:
        start = 8 * number + engine.world.rank * share
        engine.step(iter([stream.packed_batch(start, share)]), rate)
        judgements = Judgements()
        judgements.add(number, engine.guard.judgement)
        found = next(judgements.arrived())
        figures.append((found.withheld, found.in_a_row))

    step(0, 1e30)
    before = engine.gather()
    for number in (1, 2, 3):
        step(number, 1e-3)
    return before, engine.gather(), figures


@pytest.mark.parametrize(("name", "processes"), [("plain", 1), ("plain", 2), ("zero2", 1), ("zero2", 2)])
def test_an_update_that_is_not_finite_leaves_weights_moments_and_adam_s_count_as_they_were(
    name: str, processes: int, make_toy: Callable[..., Toy]
) -> None:
    toy = make_toy({"runtime": {"engine": name, "processes": processes}})
    results = run_ranks(diverging, toy.inputs(), processes=processes, folder=toy.folder)
    before, after, _ = results[0]
    assert before.optimizer_step == after.optimizer_step == 1
    assert equal_states(before, after)
    assert all(tensor.isfinite().all() for tensor in after.weights.values())
    assert [figures for _, _, figures in results] == [[(False, 0), (True, 1), (True, 2), (True, 3)]] * processes


def one_rank_s_loss(inputs: Inputs) -> list[tuple[bool, bool]]:
    """Two steps, in the second of which the last rank alone computes a loss that is no number."""
    engine = new_engine(inputs.recipe)
    last = engine.world.rank == engine.world.size - 1
    original = micro_batches.masked_loss
    figures = []
    for number in (0, 1):
        wrong = math.nan if number and last else 1.0
        engine._micro_batches._loss = lambda *args, factor=wrong: original(*args) * factor  # type: ignore[attr-defined]
        before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
        steps(engine, open_streams(inputs)[0], range(number, number + 1))
        same = all(torch.equal(before[name], p) for name, p in engine.model.named_parameters())
        figures.append((bool(engine.guard.judgement[0]), same))
    return figures


@pytest.mark.parametrize("name", ["plain", "zero2"])
def test_what_one_rank_finds_every_rank_withholds(name: str, make_toy: Callable[..., Toy]) -> None:
    toy = make_toy({"runtime": {"engine": name, "processes": 2}})
    found = run_ranks(one_rank_s_loss, toy.inputs(), processes=2, folder=toy.folder)
    assert found == [[(False, False), (True, True)]] * 2


def repeated(inputs: Inputs, wrong: bool) -> tuple[list[list[float]], list[int], TrainState | None]:
    """Three steps with a repetition in each; a device that is wrong changes the last bit of its second answer."""
    engine = new_engine(inputs.recipe)
    stream = open_streams(inputs)[0]
    if wrong:
        original, calls = micro_batches.masked_loss, iter(range(99))
        engine._micro_batches._loss = lambda *args: original(*args) * (1 + 2**-50 * (next(calls) % 2))  # type: ignore[attr-defined]
    figures, differing = [], []
    for number in range(3):
        loss, norm = engine.step(iter([stream.packed_batch(8 * number, 8)]), 1e-3, repeat=True)
        figures.append([loss.item(), norm.item()])
        differing.append(int(engine.guard.judgement[2]))
    return figures, differing, engine.gather()


@pytest.mark.parametrize("name", ["plain", "zero2"])
def test_a_repetition_finds_the_same_bits_and_changes_nothing(name: str, make_toy: Callable[..., Toy]) -> None:
    toy = make_toy({"runtime": {"engine": name}})
    [(figures, differing, state)] = run_ranks(repeated, toy.inputs(), False, folder=toy.folder)
    [(plain, expected)] = run_ranks(three_plain_steps, toy.inputs(), folder=toy.folder)
    assert differing == [0, 0, 0]
    assert figures == plain
    assert equal_states(state, expected)


def three_plain_steps(inputs: Inputs) -> tuple[list[list[float]], TrainState | None]:
    engine = new_engine(inputs.recipe)
    stream = open_streams(inputs)[0]
    figures = [engine.step(iter([stream.packed_batch(8 * n, 8)]), 1e-3) for n in range(3)]
    return [[x.item() for x in pair] for pair in figures], engine.gather()


def test_a_last_bit_that_is_another_is_found(make_toy: Callable[..., Toy]) -> None:
    [(_, differing, _)] = run_ranks(repeated, (toy := make_toy()).inputs(), True, folder=toy.folder)
    assert all(count > 0 for count in differing)
