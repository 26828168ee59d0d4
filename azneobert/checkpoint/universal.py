"""The universal checkpoint: one folder that any engine of any world size writes and reads, and NumPy alone can open.

``weights.safetensors``, ``exp_avg.safetensors`` and ``exp_avg_sq.safetensors`` hold fp32 tensors by clean parameter
name; ``buffers.safetensors``, where the model has any, its persistent buffers in their own dtypes; ``state.json`` the
optimizer, schedule and stream; ``tokenizer.json`` the tokenizer; ``manifest.json``, written last, the hashes of all
of them and the lineage. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from azneobert.checkpoint.tensors import open_safetensors, shapes_of, write_safetensors
from azneobert.data.store import sha256_file
from azneobert.errors import CheckpointError

FORMAT = "azneobert-universal"
FORMAT_VERSION = 2
_READABLE = (1, 2)  # the first knew no buffers
MANIFEST = "manifest.json"
KINDS = ("weights", "exp_avg", "exp_avg_sq")
_TENSOR_FILES = tuple(f"{kind}.safetensors" for kind in KINDS)
_BUFFERS = "buffers.safetensors"


@dataclass
class TrainState:
    """What an engine hands over: fp32 tensors on the host by clean parameter name, and the optimizer's numbers.

    `tied` maps an alias to the name that owns its tensor; aliases stand in none of the mappings. `groups` are the
    optimizer's, in its order: parameter names, learning rate, betas, eps, weight decay and what else it keeps.
    `scheduler` is the state of a foreign program's scheduler, as it came; ours is a function of the step.
    """

    weights: Mapping[str, torch.Tensor]
    exp_avg: Mapping[str, torch.Tensor]
    exp_avg_sq: Mapping[str, torch.Tensor]
    optimizer_step: int
    groups: list[dict[str, Any]]
    tied: dict[str, str] = field(default_factory=dict)
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. `identity` is compared on resume, key by key; `lineage` records the rest."""

    phase: str
    step: int
    samples: int
    tokens: int
    recipe_name: str
    recipe: dict[str, Any]
    identity: dict[str, Any]
    lineage: dict[str, Any]
    schedule: dict[str, Any]
    stream: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


def write_checkpoint(folder: Path, state: TrainState, manifest: Manifest, tokenizer: Path | None) -> None:
    """Write a checkpoint into an empty folder, every byte of it durable when this returns."""
    with ThreadPoolExecutor(len(KINDS)) as pool:  # hashing and writing leave the interpreter free
        writing = {
            f"{kind}.safetensors": pool.submit(write_safetensors, folder / f"{kind}.safetensors", getattr(state, kind))
            for kind in KINDS
        }
    files = {name: written.result() for name, written in writing.items()}
    if state.buffers:
        dtypes = {name: buffer.dtype for name, buffer in state.buffers.items()}
        files[_BUFFERS] = write_safetensors(folder / _BUFFERS, state.buffers, dtypes)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    _write_json(
        folder / "state.json",
        {
            "optimizer": {"step": state.optimizer_step, "groups": state.groups},
            "tied": state.tied,
            "scheduler": state.scheduler,
            "schedule": manifest.schedule,
            "stream": manifest.stream,
        },
    )
    for file in sorted(folder.iterdir()):
        file.chmod(0o644)  # whatever the umask
        if file.name not in files:
            _sync(file)
            files[file.name] = {"sha256": sha256_file(file), "size": file.stat().st_size}
    _write_json(folder / MANIFEST, {**vars(manifest), "files": dict(sorted(files.items()))})
    (folder / MANIFEST).chmod(0o644)
    _sync(folder / MANIFEST)
    _sync(folder)


def bytes_needed(state: TrainState) -> int:
    """About how much a checkpoint of this state takes on disk."""
    tensors = sum(torch.Size(shape).numel() for kind in KINDS for shape in shapes_of(getattr(state, kind)).values())
    return 4 * tensors + (1 << 20)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone; nothing else is opened.

    Raises:
        CheckpointError: it is missing, damaged, or of a newer format.
    """
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format_version"]
        if content["format"] != FORMAT or version not in _READABLE:
            raise CheckpointError(
                f"{file}: {content['format']} {version}; this program reads {FORMAT} "
                f"{' and '.join(str(readable) for readable in _READABLE)}"
            )
        return Manifest(**content)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no whole checkpoint there: {MANIFEST} is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged manifest ({error}); use another checkpoint") from None


def verify_checkpoint(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file has the size and the hash that it states.

    Raises:
        CheckpointError: naming the file, and what was expected and found.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest.files)
    return manifest


def verify_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check files against the sizes and sha256 that a manifest states.

    Raises:
        CheckpointError: naming the first file that differs.
    """
    for name, stated in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; use another checkpoint")
        if file.stat().st_size != stated["size"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes found, {stated['size']} expected: truncated")
    with ThreadPoolExecutor(len(KINDS)) as pool:
        hashes = list(pool.map(lambda name: sha256_file(folder / name), files))
    for (name, stated), found in zip(files.items(), hashes, strict=True):
        if found != stated["sha256"]:
            raise CheckpointError(
                f"{folder / name}: sha256 {found[:12]} found, {stated['sha256'][:12]} expected: changed"
            )


def read_checkpoint(folder: Path, *, moments: bool = True) -> tuple[TrainState, Manifest]:
    """The state and manifest of a checkpoint, verified; without `moments`, weights only and optimizer step 0.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of a newer format.
    """
    manifest = read_manifest(folder)
    unread = () if moments else _TENSOR_FILES[1:]
    verify_files(folder, {name: stated for name, stated in manifest.files.items() if name not in unread})
    return open_checkpoint(folder, moments=moments), manifest


def open_checkpoint(folder: Path, *, moments: bool = True) -> TrainState:
    """The state of a checkpoint that was verified, its tensors mapped into memory when they are asked for.

    Raises:
        CheckpointError: a file cannot be read.
    """
    kinds: Iterable[str] = KINDS if moments else KINDS[:1]
    try:
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            kind: open_safetensors(folder / f"{kind}.safetensors") for kind in kinds
        }
        buffers = open_safetensors(folder / _BUFFERS) if (folder / _BUFFERS).exists() else {}
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); use another checkpoint") from None
    return TrainState(
        weights=tensors["weights"],
        exp_avg=tensors.get("exp_avg", {}),
        exp_avg_sq=tensors.get("exp_avg_sq", {}),
        optimizer_step=state["optimizer"]["step"] if moments else 0,
        groups=state["optimizer"]["groups"],
        tied=state["tied"],
        buffers=buffers,
        scheduler=state.get("scheduler"),
    )


def all_weights(state: TrainState) -> dict[str, torch.Tensor]:
    """The weights with tied aliases put back."""
    weights = dict(state.weights)
    return weights | {alias: weights[owner] for alias, owner in state.tied.items()}


def differences(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """What differs between two identities, as "key: recorded there, present here"; nested keys are dotted."""
    there, here = _flatten(recorded), _flatten(present)
    return [
        f"{key}: {_short(there.get(key, 'nothing'))} there, {_short(here.get(key, 'nothing'))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
