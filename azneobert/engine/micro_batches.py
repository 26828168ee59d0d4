"""The micro-batches of a step: their losses, and their gradients on the way to the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.distributed as dist

from azneobert.data.stream import Batch, PackedBatch
from azneobert.engine.weights import StepWeights
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import Runtime


def masked_loss(model: torch.nn.Module, batch: Batch, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The mean cross-entropy over the masked tokens of a batch: a scalar, in fp64. `weights` as in `MaskedLM`."""
    loss: torch.Tensor = model(*_inputs(batch), batch.targets, weights)
    return loss


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The logits (M, V) of a batch's masked tokens."""
    logits: torch.Tensor = model(*_inputs(batch))
    return logits


class Weights(torch.nn.Module):
    """Makes a step's weights from a model's parameters: the module that DDP and DeepSpeed wrap, run once a step."""

    def __init__(self, model: MaskedLM):
        super().__init__()
        self.model = model

    def forward(self, nothing: None) -> dict[str, torch.Tensor]:
        """See `MaskedLM.weights`. It needs no input, but DDP on a GPU fails if it is called without one."""
        return self.model.weights()


class MicroBatches:
    """Runs the micro-batches of a step through a model, compiled if the recipe asks for it."""

    def __init__(self, model: MaskedLM, runtime: Runtime, device: torch.device, accumulation: int):
        self._model = model
        self._device = device
        self._accumulation = accumulation
        self._compiled = runtime.compile
        self._loss = torch.compile(masked_loss) if runtime.compile else masked_loss
        self._cast_names = model.cast_names()
        self.differing: torch.Tensor | None = None

    def run(
        self, made: dict[str, torch.Tensor], batches: Iterator[PackedBatch], *, repeat: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of a step's micro-batches.

        made: the step's weights. Returns the mean loss, in fp64, and a scalar whose backward delivers the gradients.
        With `repeat` the first micro-batch is computed twice; `differing` is then the number of values, in loss and
        gradients, that are not equal to the last bit: zero on a device that computes correctly.
        """
        weights = StepWeights(made, self._cast_names, self._model.encoder.compute_dtype)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        self.differing = None
        for number, batch in enumerate(islice(batches, self._accumulation)):
            moved = move(batch, self._device, self._compiled)
            loss = self._loss(self._model, moved, weights.leaves) / self._accumulation
            loss.backward()
            total += loss.detach()
            if repeat and number == 0:
                again = weights.fresh_leaves()
                loss_again = self._loss(self._model, moved, again) / self._accumulation
                loss_again.backward()
                self.differing = _differing(loss, loss_again) + sum(
                    _differing(weights.leaves[name].grad, leaf.grad) for name, leaf in again.items()
                )
        return total, weights.deliver()

    def probe(self, batch: PackedBatch, world_size: int) -> tuple[float, float]:
        """See `Engine.probe`."""
        with torch.no_grad():
            made = self._model.weights()
        leaves = StepWeights(made, self._cast_names, self._model.encoder.compute_dtype).leaves
        loss = self._loss(self._model, move(batch, self._device, self._compiled), leaves)
        loss.backward()
        squares = [leaf.grad.double().square().sum() for leaf in leaves.values() if leaf.grad is not None]
        figures = torch.stack([loss.detach().double(), torch.stack(squares).sum().sqrt()])
        if world_size > 1:
            dist.all_reduce(figures)
        mean_loss, mean_norm = (figures / world_size).tolist()
        return mean_loss, mean_norm


def _differing(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor:
    """The number of values in which the bits of two tensors differ: compared as bits, a NaN can equal another."""
    assert one is not None
    assert other is not None
    bits = torch.int64 if one.dtype == torch.float64 else torch.int32
    return (one.detach().view(bits) != other.detach().view(bits)).sum()


def move(batch: PackedBatch, device: torch.device, compiled: bool) -> Batch:
    """A batch on its device; a compiled model is told that the number of windows may change from batch to batch."""
    moved = batch.to(device)
    if compiled:
        torch._dynamo.maybe_mark_dynamic(moved.cu_seqlens, 0)
    return moved


def _inputs(batch: Batch) -> tuple[torch.Tensor | int, ...]:
    return batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices
