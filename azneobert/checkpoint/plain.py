"""Accelerate's `save_state` folders of one process or of DDP, both directions, without Accelerate.

The model's tensors are stored by name, the optimizer's state by number. Of tied weights, model.safetensors holds only
the one that the model names first, and Accelerate does not record the others: then `tied` is empty. pytorch_model.bin
holds every name, and tied tensors share their memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from azneobert.checkpoint.foreign import (
    MOMENTS,
    Foreign,
    clean_name,
    hyper_parameters,
    optimizer_group,
    scheduler_state,
    single_step,
)
from azneobert.checkpoint.parameter_order import check_names, match_names, name_parameters
from azneobert.checkpoint.pickles import drop_pages, load_pickle, save_pickle
from azneobert.checkpoint.tensors import LazyTensors, open_safetensors, read_header, shapes_of, write_safetensors
from azneobert.checkpoint.universal import TrainState
from azneobert.errors import CheckpointError

_SAFE, _PICKLED, _OPTIMIZER, _SCHEDULER = "model.safetensors", "pytorch_model.bin", "optimizer.bin", "scheduler.bin"
_SECOND = re.compile(r"(model|pytorch_model|optimizer)_\d+\.(safetensors|bin)")
_STATISTICS = ("running_mean", "running_var")  # floating-point, and yet never a parameter
_WRAPPED = "module."  # what DDP puts before each name; Accelerate saves the model without its own DDP


@dataclass(frozen=True)
class _Model:
    """The model's tensors by clean name, not yet loaded; tied ones by the name of their owner."""

    file: Path
    tensors: LazyTensors
    candidates: dict[str, tuple[int, ...]]  # the shapes of what may be a parameter
    tied: dict[str, str]
    prefix: str

    def owner(self, name: str) -> str:
        """The tensor that a name stands for; the name may come from the wrapped model."""
        name = clean_name(name)
        name = name if name in self.tensors or name in self.tied else name.removeprefix(_WRAPPED)
        return self.tied.get(name, name)


@dataclass(frozen=True)
class _Optimizer:
    """The optimizer's groups, and for each of their parameters its state, empty where it never got a gradient."""

    file: Path
    groups: list[dict[str, Any]]
    states: list[list[dict[str, Any]]]
    step: int

    @property
    def shapes(self) -> list[list[tuple[int, ...] | None]]:
        """The shape of each group's parameters, None if it has no state."""
        return [[tuple(each["exp_avg"].shape) if each else None for each in group] for group in self.states]


def is_plain(folder: Path) -> bool:
    """Whether a folder holds a model as `save_state` leaves it."""
    return os.path.lexists(folder / _SAFE) or os.path.lexists(folder / _PICKLED)


def read_plain(folder: Path, parameter_names: list[list[str]] | None = None) -> Foreign:
    """A plain checkpoint; its tensors are loaded when they are asked for. Without optimizer.bin, weights at step 0.

    `parameter_names` are for optimizers that keep no names: one list, in the order of `model.named_parameters()`, or
    one for each of the optimizer's groups, in its order.

    Raises:
        CheckpointError: a file is missing, damaged, of several models or of an optimizer that is not Adam; or the
            optimizer's numbers may stand for several names.
    """
    second = sorted(file.name for file in folder.iterdir() if _SECOND.fullmatch(file.name))
    if second:
        raise CheckpointError(f"{folder}: {second[0]} is of a second model or optimizer; use a folder of one")
    processes = len(list(folder.glob("random_states_*.pkl")))
    model = _open_model(folder, several=processes > 1)
    optimizer = _open_optimizer(folder / _OPTIMIZER) if os.path.lexists(folder / _OPTIMIZER) else None
    names, order = _names(model, optimizer, parameter_names) if optimizer else ([], "none")
    scheduler = load_pickle(folder / _SCHEDULER) if os.path.lexists(folder / _SCHEDULER) else None
    kept = scheduler_state(scheduler)
    buffers = sorted(model.tensors.shapes.keys() - model.candidates)
    state = TrainState(
        weights=LazyTensors(model.candidates, lambda name: _copied(model.tensors[name])),
        exp_avg=_moments("exp_avg", optimizer, names),
        exp_avg_sq=_moments("exp_avg_sq", optimizer, names),
        optimizer_step=optimizer.step if optimizer else 0,
        groups=_named_groups(optimizer, names),
        tied=model.tied,
        buffers={name: model.tensors[name].clone() for name in buffers},
        scheduler=kept,
    )
    facts = {"format": "accelerate", "processes": max(processes, 1), "prefix": model.prefix, "order": order}
    facts["scheduler_kept"] = kept is not None or scheduler is None
    return Foreign(state, state.optimizer_step, facts)


def write_plain(folder: Path, foreign: Foreign, *, prefix: str = "") -> None:
    """Write what Accelerate's `load_state` reads, into an empty folder; each of the model's names gets `prefix`.

    The optimizer's groups get `param_names`, as torch itself keeps them if it was given names.
    """
    state = foreign.state
    _write_model(folder / _SAFE, state, prefix)
    if state.groups:
        save_pickle(_optimizer_state(state), folder / _OPTIMIZER)
    if state.scheduler is not None:
        save_pickle(state.scheduler, folder / _SCHEDULER)


def _open_model(folder: Path, *, several: bool) -> _Model:
    safe, pickled = folder / _SAFE, folder / _PICKLED
    if os.path.lexists(safe) and os.path.lexists(pickled):
        raise CheckpointError(f"{pickled}: stands beside {_SAFE}; remove the one that is old")
    return _open_safe(safe, several) if os.path.lexists(safe) else _open_pickled(pickled, several)


def _open_safe(file: Path, several: bool) -> _Model:
    try:
        header = read_header(file)
        opened = open_safetensors(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); copy it again") from None
    prefix = _prefix(opened, several)
    raw = {clean_name(name).removeprefix(prefix): name for name in opened}
    floating = frozenset(
        name for name, old in raw.items() if _may_train(name, header[old]["dtype"].startswith(("F", "BF")))
    )
    clean = {old: name for name, old in raw.items()}
    notes = header.get("__metadata__", {})  # with the aliases that safetensors' own `save_model`, or we, recorded
    aliases = {clean_name(alias).removeprefix(prefix): clean[old] for alias, old in notes.items() if old in clean}
    raw |= {alias: raw[owner] for alias, owner in aliases.items() if owner not in floating}
    shapes = {name: opened.shapes[old] for name, old in raw.items()}
    candidates = {name: shapes[name] for name in shapes if name in floating}
    tied = {alias: owner for alias, owner in aliases.items() if owner in floating}
    return _Model(file, LazyTensors(shapes, lambda name: opened[raw[name]]), candidates, tied, prefix)


def _open_pickled(file: Path, several: bool) -> _Model:
    content = load_pickle(file)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{file}: holds no state dict of tensors; expected one")
    prefix = _prefix(content, several)
    own: dict[str, torch.Tensor] = {}
    owners: dict[Any, str] = {}
    tied = {}
    for old, tensor in content.items():
        name = clean_name(old).removeprefix(prefix)
        shared = tensor.numel() and _may_train(name, tensor.is_floating_point())
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if shared else name
        if same in owners:
            tied[name] = owners[same]
        else:
            owners[same], own[name] = name, tensor
    candidates = {name: tuple(each.shape) for name, each in own.items() if _may_train(name, each.is_floating_point())}
    return _Model(file, LazyTensors(shapes_of(own), own.__getitem__), candidates, tied, prefix)


def _may_train(name: str, floating: bool) -> bool:
    return floating and not name.endswith(_STATISTICS)


def _prefix(names: Iterable[str], several: bool) -> str:
    return _WRAPPED if several and all(clean_name(name).startswith(_WRAPPED) for name in names) else ""


def _open_optimizer(file: Path) -> _Optimizer:
    content = load_pickle(file)
    if not isinstance(content, dict) or not {"state", "param_groups"} <= content.keys():
        raise CheckpointError(f"{file}: holds no state of a torch optimizer; expected its state dict")
    groups = content["param_groups"]
    states = [[content["state"].get(number, {}) for number in group["params"]] for group in groups]
    present = [state for group in states for state in group if state]
    if any(set(state) != {"step", *MOMENTS} for state in present) or not all("betas" in group for group in groups):
        keys = ", ".join(sorted({str(key) for state in present for key in state})) or "nothing"
        raise CheckpointError(f"{file}: the optimizer keeps {keys}; expected {' and '.join(MOMENTS)}")
    step = single_step(state["step"] for state in present)
    if step is None:
        steps = ", ".join(map(str, sorted({int(state["step"]) for state in present})[:4]))
        raise CheckpointError(f"{file}: parameters at different steps ({steps}); expected one step for all")
    return _Optimizer(file, groups, states, step)


def _names(model: _Model, optimizer: _Optimizer, given: list[list[str]] | None) -> tuple[list[list[str]], str]:
    """The names of each group's parameters, and how they were found."""
    recorded = [group.get("param_names") or group.get("names") or [] for group in optimizer.groups]
    shapes, candidates = optimizer.shapes, model.candidates
    in_order = model.file.name == _PICKLED
    try:
        if any(recorded):
            names = [[model.owner(name) for name in of_group] for of_group in recorded]
            check_names(shapes, candidates, names)
            return names, "recorded"
        if given is not None:
            owned = [[model.owner(name) for name in of_group] for of_group in given]
            if len(owned) == 1:
                return match_names(shapes, candidates, owned[0]), "given"
            if len(owned) != len(shapes):
                raise CheckpointError(
                    f"--parameter-names: {len(owned)} groups of names, the optimizer has {len(shapes)}; "
                    "expected as many, with a blank line between them"
                )
            check_names(shapes, candidates, owned)
            return owned, "given"
        return name_parameters(shapes, candidates, in_order=in_order), "of the model" if in_order else "inferred"
    except CheckpointError as error:
        raise CheckpointError(f"{optimizer.file}: {error}") from None


def _moments(kind: str, optimizer: _Optimizer | None, names: list[list[str]]) -> LazyTensors:
    pairs = [
        (name, state)
        for group, of_group in zip(optimizer.states if optimizer else [], names, strict=True)
        for state, name in zip(group, of_group, strict=True)
    ]
    tensors = {name: state[kind] for name, state in pairs if state}
    return LazyTensors(shapes_of(tensors), lambda name: _copied(tensors[name]))


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in fp32; the memory of the mapped original is given back."""
    copy = tensor.detach().to(torch.float32, copy=True).contiguous()
    drop_pages(tensor)
    return copy


def _named_groups(optimizer: _Optimizer | None, names: list[list[str]]) -> list[dict[str, Any]]:
    groups = optimizer.groups if optimizer else []
    return [{"names": of_group} | hyper_parameters(group) for group, of_group in zip(groups, names, strict=True)]


def _write_model(file: Path, state: TrainState, prefix: str) -> None:
    names = {prefix + name: name for name in (*state.weights, *state.buffers)}
    shapes = shapes_of(state.weights) | shapes_of(state.buffers)
    tensors = LazyTensors(
        {prefixed: shapes[name] for prefixed, name in names.items()},
        lambda prefixed: (state.weights if names[prefixed] in state.weights else state.buffers)[names[prefixed]],
    )
    dtypes = {prefix + name: buffer.dtype for name, buffer in state.buffers.items()}
    aliases = {prefix + alias: prefix + owner for alias, owner in state.tied.items()}
    write_safetensors(file, tensors, dtypes, aliases)


def _optimizer_state(state: TrainState) -> dict[str, Any]:
    states: dict[int, dict[str, torch.Tensor]] = {}
    groups = []
    first = 0
    for group in state.groups:
        names = list(group["names"])
        for number, name in enumerate(names, first):
            if name in state.exp_avg:
                moments = {kind: getattr(state, kind)[name].to(torch.float32, copy=True) for kind in MOMENTS}
                # A tensor of its own each: AdamW counts in place.
                states[number] = {"step": torch.tensor(float(state.optimizer_step)), **moments}
        groups.append(optimizer_group(group, list(range(first, first + len(names)))) | {"param_names": names})
        first += len(names)
    return {"state": states, "param_groups": groups}
