"""`azneobert checkpoint`: look at checkpoints of any format, compare, convert and thin them out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from azneobert.cli.console import console
from azneobert.errors import CheckpointError

if TYPE_CHECKING:
    from azneobert.checkpoint.convert import Opened
    from azneobert.checkpoint.manifest import Segment

app = typer.Typer(
    no_args_is_help=True,
    help="Checkpoints: universal ones, Accelerate's save_state folders, DeepSpeed's ZeRO-1 and ZeRO-2 folders and the "
    "official NeoBERT's. Where a folder of several steps is given, the newest whole one is meant.",
)

ParameterNames = Annotated[
    Path | None,
    typer.Option(
        help="For a plain folder that does not tell which parameter is which: a file with one name a line, in the "
        "order of model.named_parameters(), or the optimizer's groups with a blank line between them."
    ),
]


@app.command()
def inspect(folder: Path, parameter_names: ParameterNames = None) -> None:
    """Show what a checkpoint of any format holds."""
    from azneobert.checkpoint.convert import open_any

    opened = open_any(folder, parameter_names, verified=False)
    console.print(_facts_table(opened))
    console.print(_groups_table(opened))


@app.command()
def verify(folder: Path) -> None:
    """Check every byte of a checkpoint against the hashes or sums that it carries."""
    from azneobert.checkpoint.compare import read_through
    from azneobert.checkpoint.convert import open_any
    from azneobert.checkpoint.finite import check_finite

    opened = open_any(folder)
    check_finite(opened.state, opened.folder)
    tensors = read_through(opened.state)
    what = opened.manifest.phase if opened.manifest else f"{opened.format} checkpoint"
    console.print(f"{opened.folder}: whole; {what}, step {opened.foreign.step}, {tensors} tensors")


@app.command()
def diff(a: Path, b: Path, parameter_names: ParameterNames = None) -> None:
    """Say which tensors of two checkpoints differ, and by how much; exit code 1 if any does."""
    from azneobert.checkpoint.compare import compare_states
    from azneobert.checkpoint.convert import open_any

    one, other = open_any(a, parameter_names), open_any(b, parameter_names)
    tensor, share = Column("tensor", overflow="fold"), Column("elements that differ", justify="right")
    table = Table("what", tensor, share, "largest difference")
    for found in compare_states(one.state, other.state):
        differing = f"{found.differing:,} of {found.elements:,}"
        table.add_row(found.kind, found.name, differing, found.amiss or f"{found.largest:.3g}")
    steps = [opened.state.optimizer_step for opened in (one, other)]
    if steps[0] != steps[1]:
        table.add_row("optimizer", "step", "", f"{steps[0]} in A, {steps[1]} in B")
    if not table.row_count:
        console.print("A and B hold the same tensors, bit for bit")
        return
    console.print(table)
    raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint of any format.")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[Literal["universal", "plain", "zero2", "neobert"], typer.Option(help="The format to write.")],
    world_size: Annotated[int, typer.Option(help="Ranks of the ZeRO-2 engine that will read it.")] = 1,
    prefix: Annotated[str, typer.Option(help="Put before each name, such as _orig_mod. for a compiled module.")] = "",
    bf16: Annotated[
        bool | None,
        typer.Option("--bf16/--fp32", help="For a ZeRO-2 engine with bf16.enabled or not; default: as the source."),
    ] = None,
    round_robin: Annotated[
        bool | None,
        typer.Option(
            "--round-robin/--no-round-robin", help="For one with round_robin_gradients or not; default: as the source."
        ),
    ] = None,
    tied: Annotated[
        list[str] | None,
        typer.Option(help="ALIAS=OWNER: a tied weight that the source does not record, as head.weight=embed.weight."),
    ] = None,
    parameter_names: ParameterNames = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to put into a universal one or a NeoBERT's.")
    ] = None,
    drop_head_bias: Annotated[
        bool, typer.Option("--drop-head-bias", help="Leave out the bias of the head that the published NeoBERT has.")
    ] = False,
) -> None:
    """Write a checkpoint as another format.

    Universal, plain (load_state), zero2 (load_checkpoint, load_state) or neobert (weights alone, as
    chandar-lab/NeoBERT has them).
    """
    from azneobert.checkpoint.convert import convert as convert_checkpoint

    pairs = [pair.partition("=") for pair in tied or ()]
    if not all(alias and owner for alias, _, owner in pairs):
        raise CheckpointError("--tied: expected ALIAS=OWNER, as head.weight=embed.weight")
    convert_checkpoint(
        source,
        target,
        to,
        world_size=world_size,
        prefix=prefix,
        bf16=bf16,
        round_robin=round_robin,
        tied={alias: owner for alias, _, owner in pairs},
        parameter_names=parameter_names,
        tokenizer=tokenizer,
        drop_head_bias=drop_head_bias,
    )
    console.print(f"{target}: {to}" + (f" for {world_size} ranks" if to in ("plain", "zero2") else ""))


@app.command()
def prune(
    folder: Annotated[Path, typer.Argument(help="A folder of step-... checkpoints.")],
    keep: Annotated[int, typer.Option(min=1, help="How many whole ones stay.")],
    keep_every: Annotated[int, typer.Option(min=0, help="Those of the multiples of this step stay too; 0: none.")] = 0,
) -> None:
    """Remove all but the newest whole checkpoints; the last good one always stays."""
    from azneobert.checkpoint.rotation import CheckpointFolder

    checkpoints = CheckpointFolder(folder, keep, keep_every)
    if not checkpoints.steps():
        raise CheckpointError(f"{folder}: holds no checkpoints; expected a folder with step-... in it")
    removed = checkpoints.prune()
    for old in removed:
        console.print(f"removed {old.name}")
    console.print(f"{folder}: {', '.join(step.name for step in checkpoints.steps())} left")


def _facts_table(opened: Opened) -> Table:
    from azneobert.checkpoint.tensors import shapes_of

    state, manifest = opened.state, opened.manifest
    table = Table("what", Column("value", overflow="fold"), title=str(opened.folder))
    shapes = shapes_of(state.weights).values()
    facts: dict[str, Any] = {
        "format": opened.format,
        "step": opened.foreign.step,
        "optimizer step": state.optimizer_step,
        "parameters": f"{sum(math.prod(shape) for shape in shapes):,} in {len(state.weights)} tensors",
        "moments": f"of {len(state.exp_avg)} tensors",
        "buffers": ", ".join(state.buffers) or "none",
        "tied": ", ".join(f"{alias} = {owner}" for alias, owner in state.tied.items()) or "none",
    }
    if manifest is None:
        facts |= {f"source.{key}": json.dumps(value) for key, value in opened.foreign.facts.items()}
    else:
        facts |= {key: getattr(manifest, key) for key in ("phase", "samples", "tokens", "recipe_name")}
        for group in ("lineage", "stream", "schedule"):
            kept = getattr(manifest, group).items()
            facts |= {f"{group}.{key}": json.dumps(value, ensure_ascii=False) for key, value in kept}
        for number, segment in enumerate(manifest.segments):
            facts[f"segment {number}, from step {segment.from_step:,}"] = _segment_line(segment)
        for file, stated in manifest.files.items():
            facts[file] = f"{stated['size']:,} bytes, sha256 {stated['sha256'][:16]}…"
    for key, value in facts.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def _segment_line(segment: Segment) -> str:
    """What trained the steps of a segment, in a line."""
    changed = {True: ", changed", False: "", None: ", changed or not is unknown"}[segment.git_dirty]
    world = "an unknown world" if segment.world_size is None else f"{segment.world_size} processes"
    versions = ", ".join(f"{package} {version}" for package, version in segment.versions.items())
    return (
        f"commit {segment.git_commit}{changed}; code {segment.code_sha256[:12]}; engine {segment.engine}, {world}; "
        f"image {segment.image or 'none'}; {versions or 'unknown versions'}{_skipped(segment)}"
    )


def _skipped(segment: Segment) -> str:
    skipped = segment.skipped
    return f"; left out {skipped.samples:,} samples from {skipped.first_sample:,} on: {skipped.why}" if skipped else ""


def _groups_table(opened: Opened) -> Table:
    first, last = Column("first", overflow="fold"), Column("last", overflow="fold")
    table = Table("group", Column("tensors", justify="right"), first, last, "hyper-parameters")
    for number, group in enumerate(opened.state.groups):
        shown = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay") if key in group}
        table.add_row(
            str(number),
            str(len(group["names"])),
            *((group["names"][0], group["names"][-1]) if group["names"] else ("none", "none")),
            ", ".join(
                f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
            ),
        )
    return table
