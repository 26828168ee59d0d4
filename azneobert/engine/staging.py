"""Buffers on the host for a whole training state. Each save fills them again, when the one before is on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from azneobert.checkpoint.universal import KINDS, TrainState


@dataclass(frozen=True)
class Staging:
    """Views by kind and name of three flat fp32 buffers, one a kind, which are filled and written in one go."""

    views: dict[str, dict[str, torch.Tensor]]

    @classmethod
    def allocate(cls, shapes: dict[str, torch.Size], device: torch.device) -> Staging:
        """Buffers for tensors of these shapes, page-locked if `device` is a GPU, with every page present."""
        total = sum(shape.numel() for shape in shapes.values())
        views: dict[str, dict[str, torch.Tensor]] = {}
        for kind in KINDS:
            flat = torch.zeros(total, pin_memory=device.type == "cuda")
            parts = flat.split([shape.numel() for shape in shapes.values()])
            views[kind] = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return cls(views)

    def state(
        self,
        optimizer_step: int,
        groups: list[dict[str, Any]],
        tied: dict[str, str],
        buffers: dict[str, torch.Tensor],
        guard: dict[str, Any],
    ) -> TrainState:
        """The state whose tensors are these views; before the first step there are no moments."""
        moments = optimizer_step > 0
        return TrainState(
            weights=self.views["weights"],
            exp_avg=self.views["exp_avg"] if moments else {},
            exp_avg_sq=self.views["exp_avg_sq"] if moments else {},
            optimizer_step=optimizer_step,
            groups=groups,
            tied=tied,
            buffers=buffers,
            guard=guard,
        )
