"""The engine as the loop sees it: one optimizer step, and the whole state out and in.

The loop does not know which engine it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from accelerate import Accelerator

from azneobert.checkpoint.universal import TrainState
from azneobert.data.stream import PackedBatch
from azneobert.engine.staging import Staging
from azneobert.model.encoder import MaskedLM

if TYPE_CHECKING:
    from azneobert.engine.guard import UpdateGuard


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and where its tensors live."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


class Engine(Protocol):
    """The part of an engine that the loop uses. Each rank's step takes `accumulation` micro-batches."""

    world: World
    model: MaskedLM
    accumulation: int
    guard: UpdateGuard

    def step(
        self, micro_batches: Iterator[PackedBatch], rate: float, *, repeat: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on a global batch; returns the mean loss over all ranks and the gradient norm before clipping.

        The update is withheld if `guard` says so. `repeat` computes the first micro-batch a second time, to check that
        the result has the same bits.
        """

    def probe(self, batch: PackedBatch) -> tuple[float, float]:
        """The loss and the gradient norm of a micro-batch at the current weights, which stay unchanged.

        The mean over all ranks, which are all given the same batch: if it is not finite on one, it is not on any.
        """

    def stage(self) -> Staging | None:
        """Buffers on the host for the result of `gather`, on rank 0; None on the other ranks."""

    def gather(self, staging: Staging | None = None) -> TrainState | None:
        """The whole state on rank 0, None on the other ranks. It is stored in `staging`, if that is given."""

    def scatter(self, state: TrainState) -> None:
        """Take over a state, on every rank.

        Raises:
            CheckpointError: the state is of another model.
        """


def world_of(accelerator: Accelerator) -> World:
    """The place of this process among the others."""
    return World(accelerator.process_index, accelerator.num_processes, accelerator.device)
