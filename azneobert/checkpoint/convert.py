"""From any of the three formats to any of them: universal, Accelerate's plain folders and DeepSpeed's ZeRO-2 ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from azneobert.checkpoint.foreign import Foreign
from azneobert.checkpoint.plain import is_plain, read_plain, write_plain
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import (
    MANIFEST,
    Manifest,
    TrainState,
    bytes_needed,
    read_checkpoint,
    write_checkpoint,
)
from azneobert.checkpoint.zero2 import find_tag, read_zero2, write_zero2
from azneobert.errors import CheckpointError

Format = Literal["universal", "plain", "zero2"]


@dataclass(frozen=True)
class Opened:
    """A checkpoint of any format: its state, what is known about it, and the manifest if it is universal."""

    format: Format
    folder: Path
    foreign: Foreign
    manifest: Manifest | None

    @property
    def state(self) -> TrainState:
        """The tensors and the optimizer's numbers."""
        return self.foreign.state


def open_any(source: Path, parameter_names: Path | None = None) -> Opened:
    """A checkpoint of whichever format stands in a folder; of a run's folder of checkpoints, the newest whole one.

    `parameter_names` is a file of names, in the order of the model's parameters, for plain folders that do not tell.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder")
    names = parameter_names.read_text(encoding="utf-8").split() if parameter_names else None
    if CheckpointFolder(source, 1).steps():
        newest = CheckpointFolder(source, 1).latest()
        if newest is None:
            raise CheckpointError(f"{source}: holds no whole checkpoint")
        source = newest[0]
    if (source / MANIFEST).exists():
        state, manifest = read_checkpoint(source)
        facts = manifest.lineage.get("imported_from") or {}
        return Opened("universal", source, Foreign(state, manifest.step, facts), manifest)
    if find_tag(source) is not None:
        return Opened("zero2", source, read_zero2(source), None)
    if is_plain(source):
        return Opened("plain", source, read_plain(source, names), None)
    raise CheckpointError(
        f"{source}: holds no checkpoint; a folder with {MANIFEST} (universal), model.safetensors (Accelerate's "
        "save_state) or latest (DeepSpeed) would do"
    )


def convert(
    source: Path,
    target: Path,
    to: Format,
    *,
    world_size: int = 1,
    prefix: str | None = None,
    bf16: bool | None = None,
    parameter_names: Path | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Write the checkpoint in `source` as another format into the new folder `target`, which appears at the end.

    `world_size` is that of the program that will read it; `prefix` is put before each name (default: DDP's `module.`
    for a plain folder of several ranks); `bf16` is for a ZeRO-2 engine with `bf16.enabled` (default: as the source).

    Raises:
        CheckpointError: the source is missing or damaged, the target is there already, or has no room.
    """
    if world_size < 1:
        raise CheckpointError(f"--world-size {world_size}: 1 or more would do")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; name a new folder")
    opened = open_any(source, parameter_names)
    _check_room(target, opened.state)
    with _appearing(target) as partial:
        if to == "universal":
            if opened.manifest is not None and tokenizer is None:
                tokenizer = opened.folder / "tokenizer.json"
            write_checkpoint(partial, opened.state, opened.manifest or _manifest(opened), tokenizer)
        elif to == "plain":
            write_plain(
                partial, opened.foreign, prefix=("module." if world_size > 1 else "") if prefix is None else prefix
            )
        else:
            as_source = bool(opened.foreign.facts.get("bf16", False))
            write_zero2(
                partial, opened.foreign, world_size, prefix=prefix or "", bf16=as_source if bf16 is None else bf16
            )


def _manifest(opened: Opened) -> Manifest:
    """Of what came from elsewhere nothing is known but its step; the rest of the lineage is where it came from."""
    facts: dict[str, Any] = {**opened.foreign.facts, "folder": opened.folder.name}
    return Manifest(
        phase="imported",
        step=opened.foreign.step,
        samples=0,
        tokens=0,
        recipe_name="",
        recipe={},
        identity={},
        lineage={"imported_from": facts},
        schedule={},
        stream={},
    )


def _check_room(target: Path, state: TrainState) -> None:
    place = next(parent for parent in target.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(place).free, bytes_needed(state)
    if free < needed:
        raise CheckpointError(f"{place}: {free / 1e9:.1f} GB are free, the checkpoint takes {needed / 1e9:.1f} GB")


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` if all goes well, and is gone if not."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
