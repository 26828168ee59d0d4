"""How far the gradients of each way of computing are from those in float64, at given weights."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from azneobert.bench.learning import Learner, precision
from azneobert.bench.variants import Variant, runtime_of
from azneobert.data.stream import PackedBatch
from azneobert.engine.make import order_sums
from azneobert.engine.micro_batches import MicroBatches, masked_loss
from azneobert.model.encoder import build_model
from azneobert.recipe import Model

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Errors:
    """The worst and the median relative error of the parameters' gradients, by the norm of the difference.

    A gradient that is zero in float64 is left out.
    """

    worst: float
    where: str
    median: float

    @classmethod
    def of(cls, found: Tensors, exact: Tensors) -> Errors:
        """The errors of gradients against the exact gradients of the same names."""
        errors = {
            name: float((found[name].double() - gradient).norm() / gradient.norm())
            for name, gradient in exact.items()
            if gradient.norm() > 0
        }
        where = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))  # NaN counts as the worst
        return cls(errors[where], where, statistics.median(errors.values()))


def exact_gradients(model: Model, weights: Tensors, batch: PackedBatch) -> Tensors:
    """The gradients of a batch's loss by the reference in float64; its norms and rotations are fp32, as everywhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = build_model(model, 1, torch.float64).double().to(device)
    exact.load_state_dict(weights)
    order_sums(False)
    with precision("highest"):
        torch.autograd.backward(masked_loss(exact, batch.to(device)))
    return {name: parameter.grad for name, parameter in exact.named_parameters() if parameter.grad is not None}


def gradients(learner: Learner, variant: Variant, weights: Tensors, batch: PackedBatch) -> Tensors:
    """The gradients of a batch's loss as a training step of a variant computes them."""
    learner.put(weights)
    model = learner.engine.model
    model.zero_grad()
    steps = MicroBatches(model, runtime_of(variant), learner.engine.world.device, 1)
    _, delivery = steps.run(model.weights(), iter([batch]))
    torch.autograd.backward(delivery)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found
