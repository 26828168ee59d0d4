"""What decays, and the learning rate of every step."""

from __future__ import annotations

import math

import pytest
import torch
from toy import toy_recipe

from azneobert.engine.optim import build_optimizer, learning_rate, parameter_groups
from azneobert.model.encoder import build_model

PEAK = 1e-4


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, PEAK / 2000),
        (999, PEAK / 2),
        (1999, PEAK),  # the last step of the warm-up
        (2000, PEAK),  # the first of the cosine
        (64_500, PEAK / 2),
        (126_999, PEAK * 0.5 * (1 + math.cos(math.pi * 124_999 / 125_000))),  # the last step of the run
        (127_000, 0.0),
        (200_000, 0.0),
    ],
)
def test_the_rate_warms_up_to_the_peak_and_falls_along_a_cosine_to_zero(step: int, expected: float) -> None:
    assert learning_rate(step, 2000, 127_000, PEAK) == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_the_rate_rises_through_the_warm_up_and_falls_ever_after() -> None:
    rates = [learning_rate(step, 10, 100, 1.0) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert min(rates[:100]) > 0, "a step at rate 0 would be wasted"


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate(0, 0, 10, PEAK) == PEAK


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_decay_and_norms_do_not_and_each_parameter_stands_once(tied: bool) -> None:
    model = build_model(toy_recipe({"model": {"tie_embeddings": tied}}).model, 0)
    decaying, plain = parameter_groups(model, 0.01)
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert {p.ndim for p in decaying["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert all("norm" in name for name in plain["names"])
    assert "encoder.embedding.weight" in decaying["names"]
    assert sorted(decaying["names"] + plain["names"]) == sorted(name for name, _ in model.named_parameters())
    named = dict(model.named_parameters())
    assert all(named[n] is p for g in (decaying, plain) for n, p in zip(g["names"], g["params"], strict=True))


def test_a_step_without_gradients_shrinks_the_matrices_alone() -> None:
    recipe = toy_recipe()
    model = build_model(recipe.model, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, recipe.training)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * recipe.training.weight_decay if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, atol=0, rtol=1e-6)


def test_the_optimizer_has_the_recipes_betas_and_epsilon() -> None:
    training = toy_recipe({"training": {"adam_betas": (0.8, 0.7), "adam_eps": 1e-6}}).training
    optimizer = build_optimizer(build_model(toy_recipe().model, 0), training)
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.8, 0.7), 1e-6)}
