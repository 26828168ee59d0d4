"""From any of four formats to any of them: universal, Accelerate's plain, DeepSpeed's ZeRO-2, the official NeoBERT."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from azneobert.checkpoint.foreign import Foreign
from azneobert.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest, read_manifest
from azneobert.checkpoint.neobert import HEAD_BIAS, is_neobert, read_neobert, write_neobert
from azneobert.checkpoint.plain import is_plain, read_plain, write_plain
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import TrainState, bytes_needed, open_checkpoint, read_checkpoint, write_checkpoint
from azneobert.checkpoint.zero2 import EngineLayout, find_tag, read_zero2, write_zero2
from azneobert.errors import CheckpointError
from azneobert.files import read_bounded, sha256_file

_LARGEST_NAMES = 8 << 20  # bytes of a file with the names of parameters

Format = Literal["universal", "plain", "zero2", "neobert"]
_TOKENIZER = "tokenizer.json"


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


def open_any(source: Path, parameter_names: Path | None = None, *, verified: bool = True) -> Opened:
    """The checkpoint in a folder, of any format; in a run's folder of checkpoints, the newest whole one.

    `parameter_names` is a file for plain folders without names: one name a line, in the order of the model's
    parameters, or by the optimizer's groups with a blank line between them. A universal checkpoint's hashes are checked
    only if `verified`, since that reads all of it.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder; use one that holds a checkpoint")
    names = _read_names(parameter_names) if parameter_names else None
    if CheckpointFolder(source, 1).steps():
        newest = CheckpointFolder(source, 1).latest()
        if newest is None:
            raise CheckpointError(f"{source}: holds no whole checkpoint; use another folder")
        source = newest[0]
    if os.path.lexists(source / MANIFEST):
        manifest = read_manifest(source)
        read = _read_verified if verified else open_checkpoint
        state = read(source, moments=manifest.moments)
        imported_from = manifest.lineage.get("imported_from")
        facts = imported_from if isinstance(imported_from, dict) else {}
        return Opened("universal", source, Foreign(state, manifest.step, facts), manifest)
    with _laid_out(source):
        if is_neobert(source):
            return Opened("neobert", source, read_neobert(source), None)
        if find_tag(source) is not None:
            return Opened("zero2", source, read_zero2(source), None)
        if is_plain(source):
            return Opened("plain", source, read_plain(source, names), None)
    raise CheckpointError(
        f"{source}: holds no checkpoint; expected a folder with {MANIFEST} (universal), model.safetensors "
        "(Accelerate's save_state; with a config.json, the official NeoBERT) or latest (DeepSpeed)"
    )


@contextmanager
def _laid_out(source: Path) -> Iterator[None]:
    """Turn any error that files with unexpected content cause in the code that reads them into one line."""
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"[:200]
        raise CheckpointError(
            f"{source}: is not laid out as Accelerate, DeepSpeed or NeoBERT do it ({reason}); copy it again"
        ) from None


def _read_verified(folder: Path, *, moments: bool) -> TrainState:
    return read_checkpoint(folder, moments=moments)[0]


def convert(
    source: Path,
    target: Path,
    to: Format,
    *,
    world_size: int = 1,
    prefix: str = "",
    bf16: bool | None = None,
    round_robin: bool | None = None,
    tied: dict[str, str] | None = None,
    parameter_names: Path | None = None,
    tokenizer: Path | None = None,
    drop_head_bias: bool = False,
) -> None:
    """Write the checkpoint in `source` as another format into the new folder `target`, which appears at the end.

    `world_size` is that of the ZeRO-2 engine that will read it; `bf16` and `round_robin` whether its configuration has
    `bf16.enabled` and `round_robin_gradients`, by default as the source had. `prefix` is put before each name. `tied`
    names aliases and their owners if the source does not, such as a plain folder in safetensors. The published
    NeoBERT has a bias in its head, which no model here has: `drop_head_bias` leaves it out.

    Raises:
        CheckpointError: the source is missing or damaged, the target is there already, or has no room; or the source
            cannot be written in the target's format.
    """
    if world_size < 1:
        raise CheckpointError(f"--world-size {world_size}: expected 1 or more")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; name a new folder")
    opened = open_any(source, parameter_names)
    if tied:
        opened = _with_tied(opened, tied)
    if HEAD_BIAS in opened.state.buffers:
        opened = _without_head_bias(opened, drop_head_bias)
    _check_room(target, opened.state, to)
    tokenizer = tokenizer or _own_tokenizer(opened)
    with _appearing(target) as partial, _laid_out(source):
        if to == "universal":
            write_checkpoint(partial, opened.state, _manifest(opened, tokenizer), tokenizer)
        elif to == "neobert":
            write_neobert(partial, opened.state, _model(opened), tokenizer)
        elif to == "plain":
            write_plain(partial, opened.foreign, prefix=prefix)
        else:
            engine = EngineLayout(
                world_size, _chosen(bf16, opened, "bf16"), _chosen(round_robin, opened, "round_robin")
            )
            write_zero2(partial, opened.foreign, engine, prefix=prefix)


def _own_tokenizer(opened: Opened) -> Path | None:
    """The tokenizer of a checkpoint. In the folder of a plain or ZeRO-2 one, a file of that name may be any file."""
    file = opened.folder / _TOKENIZER
    if opened.manifest is not None:
        return file if file.name in opened.manifest.files else None
    return file if opened.format == "neobert" and file.exists() else None


def _model(opened: Opened) -> dict[str, Any]:
    """The block `model` of a checkpoint's recipe: no tensor tells how many heads there are."""
    known = opened.manifest.identity if opened.manifest else opened.foreign.facts
    model = known.get("model")
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"{opened.folder}: does not say how many heads its model has; use a run's own checkpoint")
    return model


def _without_head_bias(opened: Opened, drop: bool) -> Opened:
    buffers = dict(opened.state.buffers)
    largest = float(buffers.pop(HEAD_BIAS).abs().max())
    if not drop:
        raise CheckpointError(
            f"{opened.folder}: its head has a bias (up to {largest:.3g}), which no model here has; "
            "use --drop-head-bias to leave it out, as another model then"
        )
    foreign = opened.foreign
    facts = {**foreign.facts, "dropped_head_bias": largest}
    return replace(opened, foreign=replace(foreign, state=replace(foreign.state, buffers=buffers), facts=facts))


def _manifest(opened: Opened, tokenizer: Path | None) -> Manifest:
    """A universal checkpoint's own manifest; for one from elsewhere, only the step and the source are known.

    That of the official NeoBERT says what model it is: a phase may start from its weights, but not from moments.
    """
    if opened.manifest is not None:
        return replace(opened.manifest, format_version=FORMAT_VERSION)
    facts: dict[str, Any] = {**opened.foreign.facts, "folder": opened.folder.name}
    known: dict[str, Any] = {}
    if opened.format == "neobert":
        facts["sha256"] = sha256_file(opened.folder / facts["file"])
        known = {"model": facts.pop("model"), "tokenizer": sha256_file(tokenizer) if tokenizer else None}
    return Manifest(
        phase="imported",
        step=opened.foreign.step,
        samples=0,
        tokens=0,
        recipe_name="",
        recipe={},
        identity=known,
        lineage={"imported_from": facts},
        schedule={"offset": 0} if known else {},
        stream={},
        moments=not known,
    )


def _read_names(file: Path) -> list[list[str]]:
    try:
        blocks = re.split(r"\n\s*\n", read_bounded(file.resolve(), _LARGEST_NAMES).decode().strip())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); expected a text file with one name a line") from None
    return [block.split() for block in blocks]


def _chosen(asked: bool | None, opened: Opened, fact: str) -> bool:
    return bool(opened.foreign.facts.get(fact, False)) if asked is None else asked


def _with_tied(opened: Opened, tied: dict[str, str]) -> Opened:
    for alias, owner in tied.items():
        if owner not in opened.state.weights or alias in opened.state.weights:
            raise CheckpointError(
                f"--tied {alias}={owner}: expected a name that {opened.folder} lacks, and one that it has"
            )
    state = replace(opened.state, tied={**opened.state.tied, **tied})
    return replace(opened, foreign=replace(opened.foreign, state=state))


def _check_room(target: Path, state: TrainState, to: Format) -> None:
    place = next(parent for parent in target.absolute().parents if parent.exists())
    # ZeRO keeps the weights twice: in the model, and as the optimizer's masters.
    needed = bytes_needed(state) * (4 if to == "zero2" else 3) // 3
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{place}: {free / 1e9:.1f} GB are free, the checkpoint takes {needed / 1e9:.1f} GB; free some"
        )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` if all goes well, and is gone if not."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror or error}); use a folder that can"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
