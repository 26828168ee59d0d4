"""A step's weights: made from the parameters once, used by all its micro-batches; their gradients go back once.

The parameters do not change between two updates, so casting them, and folding norms into them for fused kernels, need
not be repeated for each micro-batch. And gradients go to other ranks once a step, however many micro-batches it has.
"""

from __future__ import annotations

from typing import Any, cast

import torch


class StepWeights:
    """Weights in the dtype that the kernels take, whose gradients add up in fp32 over micro-batches.

    made: fp32, by name, with the graph that leads to the parameters; leaves: the same without the graph, some cast.
    """

    def __init__(self, made: dict[str, torch.Tensor], cast_names: set[str], dtype: torch.dtype):
        self._made = made
        self.leaves = {
            name: _leaf(weight.detach().to(dtype if name in cast_names else weight.dtype))
            for name, weight in made.items()
        }

    def fresh_leaves(self) -> dict[str, torch.Tensor]:
        """New leaves that share the memory of the others and have no gradients yet."""
        return {name: _leaf(leaf.detach()) for name, leaf in self.leaves.items()}

    def deliver(self) -> torch.Tensor:
        """A scalar whose backward, from 1, gives the parameters the gradients that the leaves have gathered."""
        return deliver([leaf.grad for leaf in self.leaves.values()], self._made)


def deliver(gradients: list[torch.Tensor | None], made: dict[str, torch.Tensor]) -> torch.Tensor:
    """A scalar whose backward, from 1, gives `made`, in its order, these gradients."""
    return cast(torch.Tensor, _Deliver.apply(gradients, *made.values()))


def _leaf(weight: torch.Tensor) -> torch.Tensor:
    leaf = weight.requires_grad_()
    leaf.grad_dtype = torch.float32
    return leaf


class _Deliver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: list[torch.Tensor | None], *made: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return made[0].new_zeros((), requires_grad=True)

    @staticmethod
    def backward(ctx: Any, one: torch.Tensor) -> tuple[Any, ...]:
        return None, *ctx.gradients
