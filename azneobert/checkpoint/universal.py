"""The universal checkpoint: one folder that any engine of any world size writes and reads, and NumPy alone can open.

``weights.safetensors``, ``exp_avg.safetensors`` and ``exp_avg_sq.safetensors`` hold fp32 tensors by clean parameter
name; ``buffers.safetensors``, where the model has any, its persistent buffers in their own dtypes; ``state.json`` the
optimizer, schedule and stream; ``tokenizer.json`` the tokenizer; ``manifest.json``, written last, the hashes of all
of them and the lineage. Nothing in it is pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from azneobert.checkpoint.manifest import (
    MANIFEST,
    MOMENTS,
    STATE,
    Manifest,
    read_manifest,
    read_state,
    verify_checkpoint,
    verify_sizes,
    write_manifest,
)
from azneobert.checkpoint.tensors import open_safetensors, shapes_of, write_safetensors
from azneobert.errors import CheckpointError
from azneobert.files import copy_regular, sha256_file, sync, write_json

KINDS = ("weights", "exp_avg", "exp_avg_sq")
_BUFFERS = "buffers.safetensors"


@dataclass
class TrainState:
    """What an engine hands over: fp32 tensors on the host by clean parameter name, and the optimizer's numbers.

    `tied` maps an alias to the name that owns its tensor; aliases stand in none of the mappings. `groups` are the
    optimizer's, in its order: parameter names, learning rate, betas, eps, weight decay and what else it keeps.
    `scheduler` is the state of a foreign program's scheduler, as it came; ours is a function of the step. `guard` is
    the state of the update guard: the figures of the last steps.
    """

    weights: Mapping[str, torch.Tensor]
    exp_avg: Mapping[str, torch.Tensor]
    exp_avg_sq: Mapping[str, torch.Tensor]
    optimizer_step: int
    groups: list[dict[str, Any]]
    tied: dict[str, str] = field(default_factory=dict)
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    guard: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, state: TrainState, manifest: Manifest, tokenizer: Path | None) -> None:
    """Write a checkpoint into an empty folder, every byte of it durable when this returns."""
    kinds = KINDS if manifest.moments else KINDS[:1]
    with ThreadPoolExecutor(len(KINDS)) as pool:  # hashing and writing leave the interpreter free
        writing = {
            f"{kind}.safetensors": pool.submit(write_safetensors, folder / f"{kind}.safetensors", getattr(state, kind))
            for kind in kinds
        }
    files = {name: written.result() for name, written in writing.items()}
    if state.buffers:
        dtypes = {name: buffer.dtype for name, buffer in state.buffers.items()}
        files[_BUFFERS] = write_safetensors(folder / _BUFFERS, state.buffers, dtypes)
    if tokenizer is not None:
        try:  # a person may name a link
            copy_regular(tokenizer.resolve(), folder / "tokenizer.json")
        except ValueError as error:
            raise CheckpointError(f"{tokenizer}: {error}; expected a tokenizer.json") from None
    write_json(
        folder / STATE,
        {
            "optimizer": {"step": state.optimizer_step, "groups": state.groups},
            "tied": state.tied,
            "scheduler": state.scheduler,
            "guard": state.guard,
            "schedule": manifest.schedule,
            "stream": manifest.stream,
        },
    )
    for file in sorted(folder.iterdir()):
        file.chmod(0o644)  # whatever the umask
        if file.name not in files:
            sync(file)
            files[file.name] = {"sha256": sha256_file(file), "size": file.stat().st_size}
    write_manifest(folder, manifest, files)
    (folder / MANIFEST).chmod(0o644)
    sync(folder / MANIFEST)
    sync(folder)


def bytes_needed(state: TrainState) -> int:
    """About how much a checkpoint of this state takes on disk."""
    tensors = sum(torch.Size(shape).numel() for kind in KINDS for shape in shapes_of(getattr(state, kind)).values())
    return 4 * tensors + (1 << 20)


def read_checkpoint(folder: Path, *, moments: bool = True) -> tuple[TrainState, Manifest]:
    """The state and manifest of a checkpoint, verified; without `moments`, weights only and optimizer step 0.

    Raises:
        CheckpointError: it is missing, damaged or of a newer format, or has no moments where they are asked for.
    """
    manifest = verify_checkpoint(folder, moments=moments)
    return open_checkpoint(folder, moments=moments), manifest


def copy_without_moments(source: Path, target: Path) -> Manifest:
    """Copy a checkpoint into an empty folder without the optimizer's moments, two thirds of its size.

    The copy is a whole checkpoint; its manifest, which is returned, says that it has no moments.
    """
    manifest = read_manifest(source)
    files = {name: stated for name, stated in manifest.files.items() if name not in MOMENTS}
    for name in files:
        copy_regular(source / name, target / name)
    write_manifest(target, replace(manifest, moments=False), files)
    return read_manifest(target)


def open_checkpoint(folder: Path, *, moments: bool = True) -> TrainState:
    """The state of a checkpoint, its tensors mapped into memory when asked for; `verify_checkpoint` reads their bytes.

    Raises:
        CheckpointError: a file cannot be read, or there are no moments where they are asked for.
    """
    kinds: Iterable[str] = KINDS if moments else KINDS[:1]
    manifest = read_manifest(folder)
    if moments and not manifest.moments:
        raise CheckpointError(f"{folder}: holds no moments of the optimizer; use a checkpoint that does")
    # A file that the manifest does not list is no part of the checkpoint, even if it lies in the folder.
    opened = {*(f"{kind}.safetensors" for kind in kinds), *({_BUFFERS} & manifest.files.keys())}
    verify_sizes(folder, {name: manifest.files[name] for name in sorted(opened)})
    try:
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            kind: open_safetensors(folder / f"{kind}.safetensors") for kind in kinds
        }
        buffers = open_safetensors(folder / _BUFFERS) if _BUFFERS in opened else {}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); use another checkpoint") from None
    state = read_state(folder)
    _check_names(folder, tensors, state)
    return TrainState(
        weights=tensors["weights"],
        exp_avg=tensors.get("exp_avg", {}),
        exp_avg_sq=tensors.get("exp_avg_sq", {}),
        optimizer_step=state["optimizer"]["step"] if moments else 0,
        groups=state["optimizer"]["groups"],
        tied=state["tied"],
        buffers=buffers,
        scheduler=state.get("scheduler"),
        guard=state.get("guard", {}),
    )


def _check_names(folder: Path, tensors: dict[str, Mapping[str, torch.Tensor]], state: dict[str, Any]) -> None:
    """Check that the files of a checkpoint hold the same tensors.

    Raises:
        CheckpointError: naming one that they do not agree on.
    """
    weights = shapes_of(tensors["weights"])
    for kind, of_kind in tensors.items():
        for name, shape in shapes_of(of_kind).items():
            if weights.get(name) != shape:
                raise CheckpointError(
                    f"{folder}: {kind} hold {name} of shape {list(shape)}, the weights do not; use another checkpoint"
                )
    named = {name for group in state["optimizer"]["groups"] for name in group["names"]} | set(state["tied"].values())
    if unknown := sorted(named - weights.keys()):
        raise CheckpointError(
            f"{folder / STATE}: names {unknown[0]}, which the weights do not hold; use another checkpoint"
        )


def all_weights(state: TrainState) -> dict[str, torch.Tensor]:
    """The weights with tied aliases put back."""
    weights = dict(state.weights)
    return weights | {alias: weights[owner] for alias, owner in state.tied.items()}
