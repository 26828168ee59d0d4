"""DeepSpeed's ZeRO-1 and ZeRO-2 folders, both directions, without DeepSpeed.

Each rank has a file with its partitions of the flat groups (flat.py): the moments with their padding, the fp32 master
weights without. One more file holds the model and the layout.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from azneobert.checkpoint.flat import FlatGroup, cut, dealt, dealt_back
from azneobert.checkpoint.foreign import (
    MOMENTS,
    Foreign,
    clean_name,
    hyper_parameters,
    optimizer_group,
    scheduler_state,
    single_step,
)
from azneobert.checkpoint.pickles import drop_pages, load_pickle, save_pickle
from azneobert.checkpoint.tensors import LazyTensors, shapes_of
from azneobert.checkpoint.universal import TrainState
from azneobert.errors import CheckpointError
from azneobert.files import read_bounded

MODEL_STATES = "mp_rank_00_model_states.pt"
_TAG = "pytorch_model"  # what Accelerate's load_state looks for
_LONGEST_NAME = 255  # bytes, as Linux has it
_DS_VERSION = "0.19.8"  # whose layout this module writes


@dataclass(frozen=True)
class EngineLayout:
    """What the files of a ZeRO-2 engine depend on: its ranks, `bf16.enabled` and `round_robin_gradients`."""

    world: int
    bf16: bool = False
    round_robin: bool = False


@dataclass(frozen=True)
class _Shards:
    """The partitions of every rank by kind and group, mapped into memory."""

    partitions: dict[str, list[list[torch.Tensor]]]  # kind -> group -> rank
    groups: list[FlatGroup]
    model: dict[str, torch.Tensor]  # as saved beside them, by clean name

    def tensors(self, kind: str) -> LazyTensors:
        where = {
            name: number
            for number, group in enumerate(self.groups)
            if kind in self.partitions and self.partitions[kind][number]
            for name in group.shapes
        }
        shapes = {name: self.groups[number].shapes[name] for name, number in where.items()}
        return LazyTensors(shapes, lambda name: self._assemble(kind, where[name], name))

    def _assemble(self, kind: str, number: int, name: str) -> torch.Tensor:
        group = self.groups[number]
        whole = torch.empty(torch.Size(group.shapes[name]).numel())
        for rank, offset, start, size in group.pieces(name):
            piece = self.partitions[kind][number][rank][offset : offset + size]
            whole[start : start + size] = piece
            drop_pages(piece)
        whole = whole.view(group.shapes[name])
        if kind == "weights":
            self._compare(name, whole)
        return whole

    def _compare(self, name: str, master: torch.Tensor) -> None:
        """Check that the model's own weights are the rounded masters; if not, the files are of two steps."""
        saved = self.model[name]
        same = master.to(saved.dtype) == saved
        drop_pages(saved)
        if not bool((same | master.isnan()).all()):
            raise CheckpointError(
                f"{MODEL_STATES}: its {name} is not what the shards hold: files of two steps; use those of one"
            )


def find_tag(folder: Path) -> Path | None:
    """The folder with the files, which `latest` names, or None if there is no ZeRO checkpoint."""
    if os.path.lexists(folder / MODEL_STATES):
        return folder
    latest = folder / "latest"
    if os.path.lexists(latest):
        tag = folder / _named(latest)
        if tag.is_symlink():
            raise CheckpointError(f"{tag}: is a link; expected a folder in {folder}")
        if os.path.lexists(tag / MODEL_STATES) or list(tag.glob("*_optim_states.pt")):
            return tag
    return None


def _named(latest: Path) -> str:
    """The name that the file `latest` holds, of a folder beside it."""
    try:
        name = read_bounded(latest, _LONGEST_NAME).decode().strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{latest}: {error}; expected the name of a folder beside it") from None
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise CheckpointError(f"{latest}: holds {name[:40]!r}; expected the name of a folder beside it")
    return name


def read_zero2(folder: Path) -> Foreign:
    """A ZeRO-1 or ZeRO-2 checkpoint of any world size; its tensors are put together when they are asked for.

    Raises:
        CheckpointError: a file is missing, damaged, of another step or world size, or of an optimizer that is not Adam.
    """
    tag = find_tag(folder)
    if tag is None:
        raise CheckpointError(
            f"{folder}: no DeepSpeed checkpoint there, {MODEL_STATES} is missing; use the folder that DeepSpeed wrote"
        )
    model = load_pickle(tag / MODEL_STATES)
    world = _checked_world(tag, model)
    files = [_shard_file(tag, rank) for rank in range(world)]
    optimizers = [_optimizer_state(file) for file in files]
    groups = _groups(tag, model, optimizers[0], world)
    step = single_step(step for file, each in zip(files, optimizers, strict=True) for step in _steps(file, each))
    if step is None:
        raise CheckpointError(f"{tag}: shards of two steps: {_steps_by_shard(files, optimizers)}; copy one step whole")
    partitions = _partitions(files, optimizers, groups)
    saved = {clean_name(name): tensor for name, tensor in model["module"].items()}
    missing = [name for group in groups for name in group.shapes if name not in saved]
    if missing:
        raise CheckpointError(
            f"{tag / MODEL_STATES}: {missing[0]} is trained, and not in the model: files of two runs; use those of one"
        )
    shards = _Shards(partitions, groups, saved)
    trained = shards.tensors("weights")
    tied = _tied(model, trained)
    buffers = {name: saved[name] for name in map(clean_name, model.get("buffer_names") or ())}
    frozen = {n: t for n, t in saved.items() if n not in trained and n not in tied and n not in buffers}
    kept = _scheduler(tag, model)
    scheduler = scheduler_state(kept)
    state = TrainState(
        weights=LazyTensors(
            trained.shapes | shapes_of(frozen), lambda name: frozen[name].float() if name in frozen else trained[name]
        ),
        exp_avg=shards.tensors("exp_avg"),
        exp_avg_sq=shards.tensors("exp_avg_sq"),
        optimizer_step=step,
        groups=_named_groups(model, optimizers[0], groups),
        tied=tied,
        buffers=buffers,
        scheduler=scheduler,
    )
    facts = {
        "format": "deepspeed",
        "version": model["ds_version"] if isinstance(model.get("ds_version"), str) else "unknown",
        "world_size": world,
        "global_steps": int(model["global_steps"]),
        "bf16": files[0].name.startswith("bf16_"),
        "round_robin": _round_robin(model, optimizers[0]),
        "scheduler_kept": scheduler is not None or kept is None,
    }
    return Foreign(state, int(model["global_steps"]), facts)


def write_zero2(folder: Path, foreign: Foreign, engine: EngineLayout, *, prefix: str = "") -> None:
    """Write what `engine.load_checkpoint` and Accelerate's `load_state` read, into an empty folder.

    Each name gets `prefix`.

    Raises:
        CheckpointError: there are no optimizer groups, by which ZeRO lays out everything.
    """
    state = foreign.state
    if not state.groups:
        raise CheckpointError(
            "--to zero2: the source lacks the optimizer state that a ZeRO folder is made of; use --to plain"
        )
    world = engine.world
    shapes = shapes_of(state.weights)
    orders = [dealt(group["names"], world) if engine.round_robin else group["names"] for group in state.groups]
    groups = [FlatGroup({name: shapes[name] for name in order}, world) for order in orders]
    tag = folder / _TAG
    tag.mkdir()
    for rank in range(world):
        name = f"{'bf16_' if engine.bf16 else ''}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        content = {
            "optimizer_state_dict": _rank_state(state, groups, rank),
            "ds_config": _ds_config(engine),
            "ds_version": _DS_VERSION,
        }
        save_pickle(content, tag / name)
    save_pickle(_model_states(foreign, groups, prefix, engine), tag / MODEL_STATES)
    if state.scheduler is not None:
        save_pickle(state.scheduler, folder / "scheduler.bin")
    (folder / "latest").write_text(_TAG)


def _scheduler(tag: Path, model: dict[str, Any]) -> Any:
    """The scheduler: DeepSpeed's own is in its model file, one that Accelerate steps is in a file beside the tag."""
    beside, kept = tag.parent / "scheduler.bin", model.get("lr_scheduler")
    return load_pickle(beside) if kept is None and os.path.lexists(beside) else kept


def _round_robin(model: dict[str, Any], optimizer: dict[str, Any]) -> bool:
    config = model.get("ds_config")
    zero = config.get("zero_optimization", {}) if isinstance(config, dict) else {}
    # BF16_Optimizer, which writes no stage, does not heed the setting.
    return bool(zero.get("round_robin_gradients", False)) and "zero_stage" in optimizer


def _checked_world(tag: Path, model: Any) -> int:
    if not isinstance(model, dict) or not {"module", "dp_world_size", "param_shapes", "global_steps"} <= model.keys():
        raise CheckpointError(f"{tag / MODEL_STATES}: holds no DeepSpeed model states; copy it again")
    if model["param_shapes"] is None:
        raise CheckpointError(f"{tag / MODEL_STATES}: written without ZeRO; expected stage 1 or 2")
    if model.get("mp_world_size", 1) != 1:
        raise CheckpointError(f"{tag / MODEL_STATES}: of {model['mp_world_size']} model-parallel ranks; expected one")
    return int(model["dp_world_size"])


def _shard_file(tag: Path, rank: int) -> Path:
    names = [f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for prefix in ("", "bf16_")]
    found = [tag / name for name in names if os.path.lexists(tag / name)]
    if not found:
        raise CheckpointError(f"{tag / names[0]}: is missing; copy it beside the others")
    if len(found) > 1:
        raise CheckpointError(
            f"{found[1]}: stands beside {found[0].name}, of another engine; remove the one that is old"
        )
    return found[0]


def _optimizer_state(file: Path) -> dict[str, Any]:
    content = load_pickle(file)
    state = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "single_partition_of_fp32_groups" not in state:
        raise CheckpointError(
            f"{file}: holds no ZeRO optimizer state of stage 1 or 2; expected one of them, not stage 3"
        )
    return state


def _groups(tag: Path, model: dict[str, Any], optimizer: dict[str, Any], world: int) -> list[FlatGroup]:
    shapes = model["param_shapes"]
    shapes = [shapes] if isinstance(shapes, dict) else shapes
    gaps = optimizer.get("param_alignment_paddings") or [()] * len(shapes)
    if len(shapes) != len(optimizer["single_partition_of_fp32_groups"]):
        raise CheckpointError(
            f"{tag}: {MODEL_STATES} has {len(shapes)} parameter groups, the shards "
            f"{len(optimizer['single_partition_of_fp32_groups'])}: files of two runs; use those of one"
        )
    return [
        FlatGroup({clean_name(name): tuple(shape) for name, shape in group.items()}, world, tuple(gap))
        for group, gap in zip(shapes, gaps, strict=True)
    ]


def _group_states(optimizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The base optimizer's state of each group, in either of the two ways in which DeepSpeed writes it."""
    base = optimizer["base_optimizer_state"]
    if isinstance(base, list):  # elastic checkpoints
        return base
    return [base["state"].get(group["params"][0], {}) for group in base["param_groups"]]


def _steps(file: Path, optimizer: dict[str, Any]) -> list[int]:
    base = optimizer["base_optimizer_state"]
    kept = [group["step"] for group in base["param_groups"] if "step" in group] if isinstance(base, dict) else []
    states = [state for state in _group_states(optimizer) if state]
    if any(set(state) - {"step", *MOMENTS} or not set(MOMENTS) <= set(state) for state in states):
        keys = ", ".join(sorted({key for state in states for key in state}))
        raise CheckpointError(f"{file}: the optimizer keeps {keys}; expected {' and '.join(MOMENTS)}")
    return [int(state["step"]) for state in states if "step" in state] or [int(step) for step in kept]


def _steps_by_shard(files: list[Path], optimizers: list[dict[str, Any]]) -> str:
    steps = [f"{file.name} {max(_steps(file, each), default=0)}" for file, each in zip(files, optimizers, strict=True)]
    return ", ".join(steps[:4]) + (", ..." if len(steps) > 4 else "")


def _partitions(
    files: list[Path], optimizers: list[dict[str, Any]], groups: list[FlatGroup]
) -> dict[str, list[list[torch.Tensor]]]:
    """Every rank's partitions, checked to hold as much as the shapes ask for."""
    # A group of a (3,) and b (2, 2) is 7 numbers laid end to end. Cut for two ranks, a partition has 4 of them, with
    # one of padding at the end, which DeepSpeed may have left out: rank 1 may hold 3 numbers or 4.
    #
    #     rank 0   a0 a1 a2 b0        rank 1   b1 b2 b3 (0)
    partitions: dict[str, list[list[torch.Tensor]]] = {kind: [[] for _ in groups] for kind in ("weights", *MOMENTS)}
    for rank, (file, optimizer) in enumerate(zip(files, optimizers, strict=True)):
        states = _group_states(optimizer)
        for number, group in enumerate(groups):
            found = {"weights": optimizer["single_partition_of_fp32_groups"][number]}
            found |= {kind: states[number][kind] for kind in MOMENTS if states[number]}
            for kind, partition in found.items():
                if partition.ndim != 1 or not group.held(rank) <= partition.numel() <= group.partition:
                    raise CheckpointError(
                        f"{file}: {partition.numel()} elements of {kind} in group {number}, {group.held(rank)} "
                        f"expected by {MODEL_STATES}: of another model or world size; use the files of one run"
                    )
                partitions[kind][number].append(partition)
    for kind, of_kind in partitions.items():
        if any(of_group and len(of_group) != len(files) for of_group in of_kind):
            raise CheckpointError(
                f"{files[0].parent}: {kind} are in some shards and not in others: files of two runs; use those of one"
            )
    return partitions


def _tied(model: dict[str, Any], trained: LazyTensors) -> dict[str, str]:
    tied: dict[str, str] = {}
    for alias, owner in (model.get("shared_params") or {}).items():
        one, other = clean_name(alias), clean_name(owner)
        tied |= {other: one} if one in trained else {one: other}
    return tied


def _named_groups(model: dict[str, Any], optimizer: dict[str, Any], groups: list[FlatGroup]) -> list[dict[str, Any]]:
    """Hyper-parameters and names of each group, in the order in which the optimizer was given the parameters."""
    base = optimizer["base_optimizer_state"]
    kept = base["param_groups"] if isinstance(base, dict) else [{} for _ in groups]
    shuffled = _round_robin(model, optimizer)
    return [
        {"names": dealt_back(list(group.shapes), group.world) if shuffled else list(group.shapes)}
        | hyper_parameters(hyper)
        for group, hyper in zip(groups, kept, strict=True)
    ]


def _rank_state(state: TrainState, groups: list[FlatGroup], rank: int) -> dict[str, Any]:
    moments: dict[int, dict[str, Any]] = {}
    for number, group in enumerate(groups):
        if any(name in state.exp_avg for name in group.shapes):
            step = torch.tensor(float(state.optimizer_step))
            kinds = zip(MOMENTS, (state.exp_avg, state.exp_avg_sq), strict=True)
            moments[number] = {"step": step, **{kind: cut(group, tensors, rank) for kind, tensors in kinds}}
    masters = [cut(group, state.weights, rank)[: group.held(rank)].clone() for group in groups]
    return {
        "dynamic_loss_scale": False,
        "overflow": False,
        "base_optimizer_state": {
            "state": moments,
            "param_groups": [optimizer_group(group, [number]) for number, group in enumerate(state.groups)],
        },
        "single_partition_of_fp32_groups": masters,
        "zero_stage": 2,
        "group_paddings": [group.partition - group.held(rank) for group in groups],
        "partition_count": [group.world for group in groups],
        "ds_version": _DS_VERSION,
    }


def _model_states(foreign: Foreign, groups: list[FlatGroup], prefix: str, engine: EngineLayout) -> dict[str, Any]:
    state = foreign.state
    dtype = torch.bfloat16 if engine.bf16 else torch.float32
    module = {prefix + name: tensor.to(dtype, copy=True) for name, tensor in state.weights.items()}
    module |= {prefix + alias: module[prefix + owner] for alias, owner in state.tied.items()}
    module |= {prefix + name: buffer.clone() for name, buffer in state.buffers.items()}
    frozen = [name for name in state.weights if all(name not in group.shapes for group in groups)]
    return {
        "module": module,
        "buffer_names": [prefix + name for name in state.buffers],
        "optimizer": None,
        "param_shapes": [
            OrderedDict((prefix + name, torch.Size(shape)) for name, shape in group.shapes.items()) for group in groups
        ],
        "frozen_param_shapes": OrderedDict((prefix + name, module[prefix + name].shape) for name in frozen),
        "shared_params": {prefix + alias: prefix + owner for alias, owner in state.tied.items()},
        "frozen_param_fragments": OrderedDict((prefix + name, module[prefix + name]) for name in frozen),
        "lr_scheduler": state.scheduler,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": foreign.step,
        "global_samples": foreign.facts.get("samples", 0),
        "dp_world_size": groups[0].world,
        "mp_world_size": 1,
        "ds_config": _ds_config(engine),
        "ds_version": _DS_VERSION,
    }


def _ds_config(engine: EngineLayout) -> dict[str, Any]:
    zero = {"stage": 2, "round_robin_gradients": engine.round_robin}
    return {"zero_optimization": zero, "bf16": {"enabled": engine.bf16}}
