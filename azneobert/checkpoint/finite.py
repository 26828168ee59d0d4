"""Whether a state holds only finite numbers: otherwise it is no checkpoint, even if its files are whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from azneobert.checkpoint.tensors import LazyTensors, shapes_of
from azneobert.checkpoint.universal import KINDS, TrainState
from azneobert.errors import CheckpointError


def finite_only(state: TrainState, where: object) -> TrainState:
    """The same state, which checks each tensor when it is asked for; `where` names the state in the error.

    Asking for a tensor raises CheckpointError if it holds infinity or NaN.
    """

    def checked(kind: str) -> LazyTensors:
        tensors: Mapping[str, torch.Tensor] = getattr(state, kind)

        def load(name: str) -> torch.Tensor:
            tensor = tensors[name]
            # A value that is not finite never gets lost in the sum; the sum of finite ones may overflow.
            if not tensor.sum().isfinite() and not tensor.isfinite().all():
                count = int((~tensor.isfinite()).sum())
                raise CheckpointError(
                    f"{where}: {kind} {name}: values that are not finite: {count:,}; use another checkpoint"
                )
            return tensor

        return LazyTensors(shapes_of(tensors), load)

    kinds: dict[str, Any] = {kind: checked(kind) for kind in KINDS}
    return replace(state, **kinds)


def check_finite(state: TrainState, where: object) -> None:
    """Check every tensor of a state; `where` names the state in the error.

    Raises:
        CheckpointError: naming the first tensor that holds infinity or NaN.
    """
    checked = finite_only(state, where)
    for kind in KINDS:
        for name in getattr(checked, kind):
            getattr(checked, kind)[name]
