"""What the foreign formats share: what is read from them, and how their names and numbers become ours."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from azneobert.checkpoint.universal import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq")
_NOT_HYPER = ("params", "names", "param_names", "step")
_COMPILED = "_orig_mod."  # what torch.compile puts into the names of a module that it wraps


@dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint: its state, the optimizer step, and what its lineage should keep about it."""

    state: TrainState
    step: int
    facts: dict[str, Any] = field(default_factory=dict)


def clean_name(name: str) -> str:
    """A parameter's name without what torch.compile adds to it."""
    return name.replace(_COMPILED, "")


def hyper_parameters(group: dict[str, Any]) -> dict[str, Any]:
    """The values of an optimizer group that JSON can hold, without its parameters."""
    plain = {key: _plain(value) for key, value in group.items() if key not in _NOT_HYPER}
    return {key: value for key, value in plain.items() if _is_json(value)}


def optimizer_group(group: dict[str, Any], parameters: list[int]) -> dict[str, Any]:
    """The group as torch's optimizers keep it, its parameters numbered."""
    kept = {key: value for key, value in group.items() if key != "names"}
    if isinstance(kept.get("betas"), list):
        kept["betas"] = tuple(kept["betas"])
    return {**kept, "params": parameters}


def scheduler_state(state: Any) -> dict[str, Any] | None:
    """A scheduler's state if JSON can hold it exactly, else None."""
    if not isinstance(state, dict):
        return None
    plain = {str(key): _plain(value) for key, value in state.items()}
    return plain if _is_json(plain) else None


def single_step(steps: Iterable[Any]) -> int | None:
    """The step that all agree on; None if they do not, 0 if there is none."""
    found = {int(step) for step in steps}
    return None if len(found) > 1 else found.pop() if found else 0


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
