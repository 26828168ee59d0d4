"""A picture that explains: what a checkpoint's folder holds, and how two ranks of ZeRO-2 share the parameters in it.

Both are drawn from the files of a checkpoint that a model of a few numbers leaves.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from azneobert.bench.explanations import bare
from azneobert.bench.models import bare_manifest, published_model, small_model, some_training
from azneobert.checkpoint.flat import FlatGroup
from azneobert.checkpoint.manifest import MANIFEST, STATE, read_manifest, read_state
from azneobert.checkpoint.tensors import open_safetensors
from azneobert.checkpoint.universal import KINDS, TrainState, open_checkpoint, write_checkpoint
from azneobert.data.tokenizer import SPECIAL_TOKENS
from azneobert.engine.optim import build_optimizer
from azneobert.engine.state import described_groups, tied_parameters
from azneobert.files import read_json
from azneobert.model.encoder import build_model
from azneobert.model.size import count_parameters
from azneobert.pictures import HASH, hash_of, pyplot, save_picture
from azneobert.recipe import Model

PICTURE = "checkpoint.png"
WORLD = 2
_VOCABULARY = (*SPECIAL_TOKENS, "salam", "dünya")
_SHORT = ("encoder.", "blocks.0.", ".weight")  # what the picture leaves out of a parameter's name
_KIND = {"weights": "the parameters", "exp_avg": "AdamW's first moment", "exp_avg_sq": "AdamW's second moment"}
_DPI = 120


@dataclass(frozen=True)
class ShownFile:
    """A file of a checkpoint: its bytes, what it holds, and its bytes of the published model where that is known."""

    name: str
    size: int
    holds: str
    published: int | None


@dataclass(frozen=True)
class Piece:
    """A part of a parameter in a rank's partition: its `size` elements from `start`, at `offset` there."""

    name: str
    rank: int
    offset: int
    start: int
    size: int


@dataclass(frozen=True)
class ShownGroup:
    """An optimizer's group: its weight decay, shapes, elements of a rank's partition, and the pieces in flat order."""

    weight_decay: float
    shapes: dict[str, tuple[int, ...]]
    partition: int
    pieces: list[Piece]


@dataclass(frozen=True)
class ShownCheckpoint:
    """What the picture shows of the checkpoint with this name."""

    name: str
    files: list[ShownFile]
    groups: list[ShownGroup]


def draw_checkpoint(folder: Path) -> Path:
    """Write checkpoint.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_tiny_checkpoint(Path(scratch))
        shown = read_shown(checkpoint)
    save_picture(_draw(shown), folder / PICTURE, **{HASH: hash_of(shown)})
    return folder / PICTURE


def tiny_model() -> Model:
    """A NeoBERT of one layer with tied embeddings, small enough for a picture to show every number."""
    sizes = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 3}
    return small_model(tie_embeddings=True).model_copy(update={**sizes, "vocab_size": len(_VOCABULARY)})


def write_tiny_checkpoint(folder: Path) -> Path:
    """Write the checkpoint of `tiny_model` after one step, into a new folder inside `folder`."""
    tokenizer, checkpoint = folder / "tokenizer.json", folder / "step-00000001"
    words = WordLevel({token: number for number, token in enumerate(_VOCABULARY)}, unk_token="[UNK]")
    Tokenizer(words).save(str(tokenizer))
    checkpoint.mkdir()
    stream = {"seed": 1, "first_sample": 0, "sample_index": 1}
    schedule = {"offset": 0, "warmup_steps": 1, "steps": 10, "peak_learning_rate": 1e-3}
    manifest = replace(bare_manifest(1), samples=1, tokens=4, schedule=schedule, stream=stream)
    write_checkpoint(checkpoint, _after_one_step(), manifest, tokenizer)
    return checkpoint


def _after_one_step() -> TrainState:
    model = build_model(tiny_model(), seed=1)
    optimizer = build_optimizer(model, some_training())
    ids, starts = torch.tensor([2, 5, 4, 3]), torch.tensor([0, 4], dtype=torch.int32)
    model(ids, torch.arange(4), starts, 4, torch.tensor([2]), torch.tensor([6])).backward()
    optimizer.step()
    named = dict(model.named_parameters())
    exp_avg, exp_avg_sq = ({name: optimizer.state[p][kind] for name, p in named.items()} for kind in KINDS[1:])
    weights = {name: parameter.detach() for name, parameter in named.items()}
    return TrainState(weights, exp_avg, exp_avg_sq, 1, described_groups(optimizer), tied_parameters(model))


def read_shown(checkpoint: Path) -> ShownCheckpoint:
    """What the files of a checkpoint say of it."""
    names = [MANIFEST, *(f"{kind}.safetensors" for kind in KINDS), STATE, "tokenizer.json"]
    state = open_checkpoint(checkpoint)
    published = 4 * count_parameters(published_model())
    files = [
        ShownFile(
            name,
            (checkpoint / name).stat().st_size,
            _held(checkpoint, name),
            published if name.endswith(".safetensors") else None,
        )
        for name in names
    ]
    return ShownCheckpoint(checkpoint.name, files, [_group(group, state) for group in state.groups])


def _held(checkpoint: Path, name: str) -> str:
    if name == MANIFEST:
        manifest = read_manifest(checkpoint)
        return f"step {manifest.step}, recipe, history; size and sha256 of the other {len(manifest.files)} files"
    if name == STATE:
        (tied,) = read_state(checkpoint)["tied"].items()
        return f"optimizer, schedule, stream; {tied[0]} is {tied[1]}"
    if name == "tokenizer.json":
        return f"the tokenizer, {len(read_json(checkpoint / name)['model']['vocab'])} tokens"
    shapes = open_safetensors(checkpoint / name).shapes
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    return f"{_KIND[name.removesuffix('.safetensors')]}: {len(shapes)} tensors by name, {numbers} numbers, fp32"


def _group(group: dict[str, Any], state: TrainState) -> ShownGroup:
    names = group["names"]
    flat = FlatGroup({name: tuple(state.weights[name].shape) for name in names}, WORLD)
    pieces = [Piece(name, *piece) for name in names for piece in flat.pieces(name)]
    return ShownGroup(group["weight_decay"], flat.shapes, flat.partition, pieces)


def _draw(shown: ShownCheckpoint) -> Any:
    plt = pyplot()
    figure, axes = plt.subplots(3, 1, figsize=(10, 7.2), dpi=_DPI, height_ratios=[1.25, 1, 1])
    _draw_files(axes[0], shown)
    colours = iter(plt.get_cmap("Set3").colors)
    for below, group in zip(axes[1:], shown.groups, strict=True):
        _draw_group(below, group, colours)
    return figure


def _draw_files(axes: Any, shown: ShownCheckpoint) -> None:
    columns = ((-0.11, "left"), (0.23, "right"), (0.41, "right"), (0.44, "left"))
    rows = [("file", "bytes here", "published model", "what it holds")]
    for file in shown.files:
        large = "" if file.published is None else f"{file.published / 1e9:.2f} GB"
        rows.append((file.name, f"{file.size:,}", large, file.holds))
    for number, row in enumerate(rows):
        for (place, side), text in zip(columns, row, strict=True):
            axes.text(place, number, text, ha=side, va="center", fontsize=9, weight="normal" if number else "bold")
    bare(axes, 1, len(rows), "")
    axes.text(-0.11, -1, f"{shown.name}/ of a model with one layer of hidden size 2", va="center", fontsize=10)


def _draw_group(axes: Any, group: ShownGroup, colours: Any) -> None:
    """Draw the parameters above, and below them the same numbers in the partitions of the ranks."""
    colour = {name: next(colours) for name in group.shapes}
    place = 0
    for name, shape in group.shapes.items():
        size = torch.Size(shape).numel()
        _block(axes, place, 0, size, colour[name], f"{_short(name)}\n{' x '.join(map(str, shape))}")
        place += size
    for piece in group.pieces:
        left = piece.rank * group.partition + piece.offset
        last = piece.start + piece.size - 1
        _block(axes, left, 1, piece.size, colour[piece.name], f"{_short(piece.name)}\n{piece.start} to {last}")
    padding = WORLD * group.partition - place
    axes.barh(1, padding, left=place, height=0.8, color="white", edgecolor="gray", hatch="////")
    for rank in range(WORLD):
        axes.barh(1, group.partition, left=rank * group.partition, height=0.8, fill=False, linewidth=2.5)
        middle = (rank + 0.5) * group.partition
        axes.text(middle, 1.65, f"rank {rank}: {group.partition} numbers", ha="center", va="center", fontsize=9)
    title = f"weight decay {group.weight_decay:g}: {place} numbers end to end, and {padding} of padding (hatched)"
    bare(axes, WORLD * group.partition, 2, title)
    axes.set_ylim(1.9, -0.5)
    axes.set_yticks([0, 1], ["parameters", "partitions"])


def _short(name: str) -> str:
    for part in _SHORT:
        name = name.replace(part, "")
    return name


def _block(axes: Any, left: float, row: int, width: float, colour: Any, text: str) -> None:
    axes.barh(row, width, left=left, height=0.8, color=colour, edgecolor="black", linewidth=0.6)
    axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=8)
