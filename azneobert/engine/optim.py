"""AdamW with two groups of parameters, whose update can be withheld; the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from azneobert.recipe import Training


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay, norms without. Each names its parameters; a tied one is in it once."""
    named = list(model.named_parameters())
    matrices = [(name, p) for name, p in named if p.ndim >= 2]
    vectors = [(name, p) for name, p in named if p.ndim < 2]
    return [
        {"params": [p for _, p in group], "names": [name for name, _ in group], "weight_decay": decay}
        for group, decay in ((matrices, weight_decay), (vectors, 0.0))
    ]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that changes nothing in a step that is withheld: neither parameters nor moments nor its count of steps.

    `withheld` is called at each step; its result, a scalar of bool, stays on the device if the update is fused.
    """

    withheld: Callable[[], torch.Tensor] | None = None

    def step(self, closure: Any = None) -> Any:
        """See `torch.optim.AdamW.step`."""
        if self.withheld is None:
            return super().step(closure)
        withheld = self.withheld()
        if self.defaults["fused"]:
            self.found_inf = withheld.float()  # how torch's gradient scaler tells the kernel
        elif withheld:
            return None
        return super().step(closure)


def build_optimizer(model: nn.Module, training: Training) -> GuardedAdamW:
    """AdamW over `parameter_groups`; the loop sets the learning rate before each step."""
    groups = parameter_groups(model, training.weight_decay)
    fused = all(p.is_cuda for p in model.parameters())
    return GuardedAdamW(groups, lr=0.0, betas=training.adam_betas, eps=training.adam_eps, fused=fused)


def learning_rate(step: int, warmup_steps: int, steps: int, peak: float) -> float:
    """The rate of the step with this number, counted from 0: linear warm-up, then a cosine that ends at 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
