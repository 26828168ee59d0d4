"""A step's weights: cast once, used by every micro-batch, their gradients added in fp32 and delivered once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import plain_kernels
import pytest
import torch
from toy import lively, random_ids, toy_recipe

from azneobert.data.stream import PackedBatch
from azneobert.engine.micro_batches import MicroBatches, Weights, masked_loss
from azneobert.engine.weights import StepWeights
from azneobert.model.attention import flash_attention
from azneobert.model.backend import Backend
from azneobert.model.encoder import MaskedLM

CPU = torch.device("cpu")
BF16, FP32 = torch.bfloat16, torch.float32
EMBEDDING = "encoder.embedding.weight"
ROW = 24
STARTS = ([0, 1, 9, 24, 48, 48], [0, 24, 30, 48], [0, 5, 24, 25, 48, 48, 48])
COUNT = len(STARTS)
Gradients = dict[str, torch.Tensor]

BACKENDS = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
DTYPES = pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_kernels.stand_in(monkeypatch)


def model_of(dtype: torch.dtype, tied: bool = False, fused: bool = False, seed: int = 0) -> MaskedLM:
    model = lively(toy_recipe({"model": {"tie_embeddings": tied}}).model, seed)
    model.encoder.compute_dtype = dtype
    if fused:
        model.encoder.backend = Backend("fa4", flash_attention("fa4"), fused=True)
    return model


def batches(first: int = 0) -> list[PackedBatch]:
    """Three micro-batches of two rows: windows of every kind, and tokens that occur more than once."""
    found = []
    for number, starts in enumerate(STARTS, start=first):
        tokens = starts[-1]
        positions = [place for one, other in pairwise(starts) for place in range(other - one)]
        masked = torch.arange(number % 3, tokens, 5)
        parts = [
            torch.tensor(starts),
            random_ids(tokens, number, vocab_size=40),
            torch.tensor(positions),
            masked,
            random_ids(len(masked), 100 + number),
        ]
        found.append(PackedBatch(torch.cat(parts).int(), tuple(len(part) for part in parts), ROW))
    return found


def runner(model: MaskedLM) -> MicroBatches:
    return MicroBatches(model, toy_recipe().runtime, CPU, COUNT)


def through_step_weights(
    model: MaskedLM, first: int = 0, step: MicroBatches | None = None
) -> tuple[torch.Tensor, Gradients]:
    """The mean loss and what the parameters get, as the engines do it."""
    total, delivery = (step or runner(model)).run(Weights(model)(None), iter(batches(first)))
    delivery.backward()
    gradients = gradients_of(model)
    model.zero_grad()
    return total, gradients


def gradients_of(model: MaskedLM) -> Gradients:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def by_hand(model: MaskedLM) -> tuple[torch.Tensor, Gradients]:
    """The same in a loop of its own: of each micro-batch, gradients of weights cast anew, summed in fp32 in turn."""
    made, casts = model.weights(), model.cast_names()
    sums: Gradients = {}
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches():
        cast = {
            name: weight.detach().to(model.encoder.compute_dtype if name in casts else FP32).requires_grad_()
            for name, weight in made.items()
        }
        loss = masked_loss(model, batch.to(CPU), cast) / COUNT
        for name, gradient in zip(cast, torch.autograd.grad(loss, list(cast.values())), strict=True):
            assert gradient.dtype == cast[name].dtype
            sums[name] = gradient.float() if name not in sums else sums[name] + gradient.float()
        total += loss.detach()
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(list(made.values()), list(parameters.values()), [sums[name] for name in made])
    return total, dict(zip(parameters, found, strict=True))


def plainly(model: MaskedLM) -> tuple[torch.Tensor, Gradients]:
    """Each micro-batch's loss.backward() on the parameters, which cast their weights where they are used."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches():
        loss = masked_loss(model, batch.to(CPU)) / COUNT
        loss.backward()
        total += loss.detach()
    gradients = gradients_of(model)
    model.zero_grad()
    return total, gradients


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@BACKENDS
@TIED
@DTYPES
def test_loss_and_gradients_are_those_of_a_loop_that_sums_in_fp32_to_the_last_bit(
    dtype: torch.dtype, tied: bool, fused: bool
) -> None:
    model = model_of(dtype, tied, fused)
    total, gradients = through_step_weights(model)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    assert_same((total, gradients), by_hand(model))


@DTYPES
def test_of_plain_weights_loss_and_gradients_are_those_of_backward_on_the_parameters_to_the_last_bit(
    dtype: torch.dtype,
) -> None:
    # The way back through a cast is a cast: fp32 parameters add up each micro-batch's bf16 gradient in fp32 as well.
    model = model_of(dtype)
    assert_same(through_step_weights(model), plainly(model))


@pytest.mark.parametrize(("tied", "fused"), [(True, False), (False, True), (True, True)])
def test_in_fp32_the_others_differ_from_backward_on_the_parameters_by_the_order_of_sums(
    tied: bool, fused: bool
) -> None:
    model = model_of(FP32, tied, fused)
    total, gradients = through_step_weights(model)
    expected_total, expected = plainly(model)
    assert_same(total, expected_total)
    torch.testing.assert_close(gradients, expected, atol=1e-7, rtol=1e-5)


def test_gradients_of_many_micro_batches_are_not_rounded_to_bf16_between_them() -> None:
    leaf_of = {"w": torch.ones(3, 1, requires_grad=True)}
    weights = StepWeights(leaf_of, {"w"}, BF16)
    for gradient in (256.0, *[1.0] * 100):  # in bf16, 256 + 1 is 256
        (weights.leaves["w"] * gradient).sum().backward()
    assert weights.leaves["w"].grad is not None
    assert_same(weights.leaves["w"].grad, torch.full((3, 1), 356.0))


@BACKENDS
@TIED
def test_leaves_are_cast_as_the_model_says_and_the_embedding_is_not(tied: bool, fused: bool) -> None:
    model = model_of(BF16, tied, fused)
    made = model.weights()
    leaves = StepWeights(made, model.cast_names(), BF16).leaves
    assert leaves.keys() == made.keys()
    assert leaves[EMBEDDING].dtype == FP32
    assert {name for name, leaf in leaves.items() if leaf.dtype == BF16} == model.cast_names()
    assert {leaf.dtype for leaf in leaves.values()} == {BF16, FP32}
    for name, leaf in leaves.items():
        assert leaf.is_leaf
        assert leaf.requires_grad
        assert_same(leaf.detach(), made[name].detach().to(leaf.dtype))


@BACKENDS
@TIED
def test_gradients_are_fp32_and_the_parameters_have_none_before_delivery(tied: bool, fused: bool) -> None:
    model = model_of(BF16, tied, fused)
    weights = StepWeights(model.weights(), model.cast_names(), BF16)
    for batch in batches():
        masked_loss(model, batch.to(CPU), weights.leaves).backward()
    assert {leaf.grad.dtype for leaf in weights.leaves.values() if leaf.grad is not None} == {FP32}
    delivery = weights.deliver()
    assert delivery.shape == ()
    assert all(parameter.grad is None for parameter in model.parameters())
    delivery.backward()
    assert {gradient.dtype for gradient in gradients_of(model).values()} == {FP32}


@BACKENDS
@DTYPES
def test_two_steps_do_not_mix_their_gradients(dtype: torch.dtype, fused: bool) -> None:
    model = model_of(dtype, fused=fused)
    step = runner(model)
    first, second = through_step_weights(model, 0, step), through_step_weights(model, 7, step)
    assert not torch.equal(first[1][EMBEDDING], second[1][EMBEDDING])
    assert_same(through_step_weights(model_of(dtype, fused=fused), first=7), second)
    assert_same(through_step_weights(model, 0, step), first)


@BACKENDS
def test_a_step_trains_on_the_parameters_as_they_are_then(fused: bool) -> None:
    model, moved = model_of(BF16, fused=fused), model_of(BF16, fused=fused, seed=5)
    batches_of = runner(model)  # made once, before the parameters move
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), moved.parameters(), strict=True):
            parameter.copy_(other)
    total, delivery = batches_of.run(Weights(model)(None), iter(batches()))
    delivery.backward()
    assert_same((total, gradients_of(model)), through_step_weights(moved))


def test_a_tied_embedding_gets_the_gradients_of_both_its_uses() -> None:
    model, apart = model_of(FP32, tied=True), model_of(FP32)
    tied_weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            parameter.copy_(tied_weights.get(name, tied_weights[EMBEDDING]))
    _, tied = through_step_weights(model)
    _, untied = through_step_weights(apart)
    both = untied[EMBEDDING] + untied["head.weight"]
    torch.testing.assert_close(tied[EMBEDDING], both, atol=1e-7, rtol=1e-5)
    assert "head.weight" not in tied


@BACKENDS
def test_the_model_computes_with_the_weights_that_it_is_given(fused: bool) -> None:
    model, other = model_of(BF16, fused=fused), model_of(BF16, fused=fused, seed=5)
    batch = batches()[0].to(CPU)
    given = StepWeights(other.weights(), other.cast_names(), BF16).leaves
    with torch.no_grad():
        assert_same(masked_loss(model, batch, given), masked_loss(other, batch))
        assert not torch.equal(masked_loss(model, batch), masked_loss(other, batch))


def test_only_as_many_micro_batches_are_taken_as_a_step_has() -> None:
    model = model_of(FP32)
    source = iter([*batches(), *batches(20)])
    runner(model).run(Weights(model)(None), source)
    assert len(list(source)) == COUNT
