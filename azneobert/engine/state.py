"""A model's and an optimizer's state as a checkpoint holds it."""

from __future__ import annotations

from typing import Any

import torch

from azneobert.checkpoint.tensors import shapes_of
from azneobert.checkpoint.universal import TrainState
from azneobert.errors import CheckpointError

_GROUP_KEYS = ("names", "lr", "betas", "eps", "weight_decay")


def described_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The names and hyper-parameters of an optimizer's groups, as a checkpoint keeps them."""
    return [{key: group[key] for key in _GROUP_KEYS} for group in optimizer.param_groups]


def tied_parameters(model: torch.nn.Module) -> dict[str, str]:
    """Each further name of a parameter that has several, with the first of its names."""
    owners: dict[torch.Tensor, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in owners:
            tied[name] = owners[parameter]
        owners.setdefault(parameter, name)
    return tied


def persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the host of the buffers that belong into a checkpoint, by name."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    saved = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in saved.items()}


def initial_state(model: torch.nn.Module) -> TrainState:
    """The state of a model that has not been trained yet."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return TrainState(weights, {}, {}, 0, [], tied_parameters(model), persistent_buffers(model))


def take_over_model(model: torch.nn.Module, state: TrainState) -> None:
    """Copy weights and buffers of a state into a model.

    Raises:
        CheckpointError: the state is of another model.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    found, expected = shapes_of(state.weights), shapes_of(parameters)
    names = found.keys() ^ expected.keys() | state.buffers.keys() ^ persistent_buffers(model).keys()
    if names or state.tied != tied_parameters(model):
        named = ", ".join(sorted(names)[:3]) or "the tied names"
        raise CheckpointError(f"checkpoint: is of another model, {named} do not match; use another checkpoint")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"checkpoint: is of another model, {name} is {found[name]}, not {shape}; use another checkpoint"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.weights[name])
        for name in state.buffers:
            buffers[name].copy_(state.buffers[name])
