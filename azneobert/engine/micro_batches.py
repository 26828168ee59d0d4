"""The micro-batches of a step: their losses, and their gradients on the way to the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

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
    """A model as what makes a step's weights of its parameters: what DDP and DeepSpeed wrap, once a step."""

    def __init__(self, model: MaskedLM):
        super().__init__()
        self.model = model

    def forward(self, nothing: None) -> dict[str, torch.Tensor]:
        """See `MaskedLM.weights`. It needs no input, but DDP on a GPU fails where it is called with none."""
        return self.model.weights()


class MicroBatches:
    """The micro-batches of a step through a model, compiled where the recipe asks for it."""

    def __init__(self, model: MaskedLM, runtime: Runtime, device: torch.device, accumulation: int):
        self._model = model
        self._device = device
        self._accumulation = accumulation
        self._compiled = runtime.compile
        self._loss = torch.compile(masked_loss) if runtime.compile else masked_loss
        self._cast_names = model.cast_names()

    def run(self, made: dict[str, torch.Tensor], batches: Iterator[PackedBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of a step's micro-batches.

        made: the step's weights. Returns the mean loss, in fp64, and a scalar whose backward delivers the gradients.
        """
        weights = StepWeights(made, self._cast_names, self._model.encoder.compute_dtype)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for batch in islice(batches, self._accumulation):
            moved = move(batch, self._device, self._compiled)
            loss = self._loss(self._model, moved, weights.leaves) / self._accumulation
            loss.backward()
            total += loss.detach()
        return total, weights.deliver()


def move(batch: PackedBatch, device: torch.device, compiled: bool) -> Batch:
    """A batch on its device; of a compiled model, the number of its windows may change from batch to batch."""
    moved = batch.to(device)
    if compiled:
        torch._dynamo.maybe_mark_dynamic(moved.cu_seqlens, 0)
    return moved


def _inputs(batch: Batch) -> tuple[torch.Tensor | int, ...]:
    return batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices
