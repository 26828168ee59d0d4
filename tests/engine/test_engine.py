"""An engine's step is the textbook's, and its state comes out and goes in unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import RATES, new_engine, steps
from refusals import refused
from torch.nn import functional as F  # noqa: N812
from toy import Toy, equal_states, lively, run_ranks

from azneobert.checkpoint.universal import TrainState
from azneobert.engine.micro_batches import logits_of, masked_loss, move
from azneobert.engine.optim import build_optimizer
from azneobert.errors import CheckpointError, TrainingError
from azneobert.model.encoder import build_model
from azneobert.training.inputs import Inputs, open_streams


@pytest.fixture(scope="module")
def toy(make_toy: Callable[..., Toy]) -> Toy:
    return make_toy()


def three_steps(inputs: Inputs) -> tuple[list[list[float]], TrainState | None]:
    engine = new_engine(inputs.recipe)
    figures = steps(engine, open_streams(inputs)[0], range(3))
    return figures, engine.gather()


def textbook_steps(inputs: Inputs) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    model = build_model(inputs.recipe.model, 0)
    optimizer = build_optimizer(model, inputs.recipe.training)
    figures = []
    for number, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = masked_loss(model, open_streams(inputs)[0].batch(8 * number, 8))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), inputs.recipe.training.clip_norm)
        optimizer.step()
        figures.append([loss.item(), norm.item()])
    return figures, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_the_masked_tokens_logits(tied: bool, toy: Toy) -> None:
    inputs = toy.with_({"model": {"tie_embeddings": tied}}).inputs()
    model, batch = lively(inputs.recipe.model), open_streams(inputs)[0].batch(0, 8)
    with torch.no_grad():
        loss, logits = masked_loss(model, batch), logits_of(model, batch)
        hidden = model.encoder(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
        torch.testing.assert_close(logits, model.head(hidden[batch.masked_indices]), atol=1e-5, rtol=1e-5)
    assert logits.shape == (len(batch.targets), inputs.recipe.model.vocab_size)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.double(), batch.targets), atol=0, rtol=1e-6)
    # Each token's loss is fp32, their mean is not.
    assert loss.dtype == torch.float64
    assert torch.equal(loss, F.cross_entropy(logits, batch.targets, reduction="none").double().mean())
    assert loss.float().double() != loss


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_that_was_moved_says_what_it_said(compiled: bool, toy: Toy) -> None:
    stream = open_streams(toy.inputs())[0]
    moved, expected = move(stream.packed_batch(3, 8), torch.device("cpu"), compiled), stream.batch(3, 8)
    assert moved.max_seqlen == expected.max_seqlen
    for name, tensor in vars(expected).items():
        assert name == "max_seqlen" or torch.equal(getattr(moved, name), tensor), name


def test_three_steps_are_those_of_a_plain_torch_loop_bit_for_bit(toy: Toy) -> None:
    [(figures, state)] = run_ranks(three_steps, toy.inputs(), folder=toy.folder)
    [(expected, weights)] = run_ranks(textbook_steps, toy.inputs(), folder=toy.folder)
    assert figures == expected
    assert state is not None
    assert state.optimizer_step == 3
    assert all(torch.equal(state.weights[name], weights[name]) for name in weights)
    assert [group["lr"] for group in state.groups] == [RATES[-1]] * 2


def test_the_norm_is_measured_before_clipping_and_the_update_after(toy: Toy) -> None:
    free = toy.with_({"training": {"clip_norm": 1e9}})
    tight = toy.with_({"training": {"clip_norm": 1e-3}})
    [(loose_figures, loose)] = run_ranks(three_steps, free.inputs(), folder=toy.folder)
    [(tight_figures, clipped)] = run_ranks(three_steps, tight.inputs(), folder=toy.folder)
    assert loose_figures[0] == tight_figures[0]
    assert loose_figures[0][1] > 1e-2
    assert loose is not None
    assert clipped is not None
    total = sum(float(m.square().sum()) for m in clipped.exp_avg.values()) ** 0.5
    assert total <= 1e-3


def round_trip(inputs: Inputs) -> tuple[TrainState | None, ...]:
    stream = open_streams(inputs)[0]
    engine = new_engine(inputs.recipe)
    steps(engine, stream, range(2))
    taken = engine.gather()
    other = new_engine(inputs.recipe, seed=9)
    steps(other, stream, range(1))  # moments and weights that must not survive
    assert taken is not None
    other.scatter(taken)
    back = other.gather()
    # Both go on; a state that shared memory with its engine would now have moved.
    steps(engine, stream, range(2, 3))
    steps(other, stream, range(2, 3))
    return taken, back, engine.gather(), other.gather()


@pytest.mark.parametrize("tied", [False, True])
def test_a_state_that_goes_into_another_engine_comes_out_the_same_and_trains_the_same(tied: bool, toy: Toy) -> None:
    inputs = toy.with_({"model": {"tie_embeddings": tied}}).inputs()
    [(taken, back, one, other)] = run_ranks(round_trip, inputs, folder=toy.folder)
    assert equal_states(taken, back)
    assert taken.optimizer_step == 2
    assert equal_states(one, other)
    assert not equal_states(one, taken)
    assert taken.tied == ({"head.weight": "encoder.embedding.weight"} if tied else {})
    assert taken.exp_avg.keys() == taken.exp_avg_sq.keys() == taken.weights.keys()


def without_moments(inputs: Inputs) -> tuple[TrainState | None, TrainState | None]:
    engine = new_engine(inputs.recipe)
    before = engine.gather()
    steps(engine, open_streams(inputs)[0], range(1))
    assert before is not None
    engine.scatter(before)
    return before, engine.gather()


def test_a_state_without_moments_starts_the_optimizer_anew(toy: Toy) -> None:
    [(before, after)] = run_ranks(without_moments, toy.inputs(), folder=toy.folder)
    assert before.optimizer_step == 0
    assert before.exp_avg == {}
    assert equal_states(before, after)


def test_after_a_step_both_ranks_hold_the_same_and_the_main_one_hands_it_out(toy: Toy) -> None:
    results = run_ranks(weights_of_each, toy.inputs(), processes=2, folder=toy.folder)
    (main_figures, main_weights, main_state), (other_figures, other_weights, other_state) = results
    assert main_figures == other_figures
    assert all(torch.equal(main_weights[name], other_weights[name]) for name in main_weights)
    assert main_state is not None
    assert other_state is None


def weights_of_each(inputs: Inputs) -> tuple[object, dict[str, torch.Tensor], TrainState | None]:
    engine = new_engine(inputs.recipe, accumulation=2)
    figures = steps(engine, open_streams(inputs)[0], range(3))
    return figures, {name: p.detach() for name, p in engine.model.named_parameters()}, engine.gather()


def test_two_ranks_train_as_well_where_ddp_moves_what_it_is_called_with_to_a_device(toy: Toy) -> None:
    usual = run_ranks(weights_of_each, toy.inputs(), processes=2, folder=toy.folder)
    moved = run_ranks(steps_with_a_device_id, toy.inputs(), processes=2, folder=toy.folder)
    assert [figures for figures, *_ in usual] == moved


def steps_with_a_device_id(inputs: Inputs) -> list[list[float]]:
    """DDP goes this way on GPUs only, where each rank has a device id; a CPU passes for one."""
    engine = new_engine(inputs.recipe, accumulation=2)
    engine._weights.device_ids = [0]
    return steps(engine, open_streams(inputs)[0], range(3))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"model": {"num_hidden_layers": 1}}, "do not match"),
        ({"model": {"tie_embeddings": True}}, "head.weight do not match"),
        ({"model": {"hidden_size": 16}}, "encoder.embedding.weight is (300, 32), not (300, 16)"),
    ],
)
def test_a_state_of_another_model_is_refused_in_one_line(overrides: dict, named: str, toy: Toy) -> None:
    with refused(CheckpointError, "checkpoint: is of another model", named):
        run_ranks(scatter_into, toy.inputs(), toy.with_(overrides).inputs(), folder=toy.folder)


def scatter_into(source: Inputs, target: Inputs) -> None:
    state = new_engine(source.recipe).gather()
    assert state is not None
    new_engine(target.recipe).scatter(state)


def test_fa2_forced_on_a_cpu_stops_a_run_before_it_starts(toy: Toy) -> None:
    run = toy.copy_to(toy.folder.with_name(f"{toy.folder.name}-fa2")).with_({"runtime": {"attention": "fa2"}})
    with refused(TrainingError, "runtime.attention: fa2 needs CUDA", "found cpu"):
        run.train()
    assert not list(Path(run.folder).rglob("points.jsonl"))
