"""`azneobert bench`: each claim of speed or memory is a row that anyone can run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from azneobert.cli.console import console
from azneobert.errors import AzNeoBertError

if TYPE_CHECKING:
    from azneobert.bench.report import Row

app = typer.Typer(no_args_is_help=True, help="Benchmarks: each claim of speed or memory is a row that anyone can run.")

_VARIANTS = ("eager", "compile", "rope", "head", "fa3", "fa4", "fused", "deterministic", "zero2")
_ROWS = ("free", "packed", "4096", "worlds", "steady", "guards")

Quick = Annotated[bool, typer.Option(help="A fixed table at toy sizes: shows that it runs, says nothing of speed.")]
Output = Annotated[Path | None, typer.Option(help="Write the table to this Markdown file too.")]


@app.command()
def data(
    corpus: Annotated[Path, typer.Option(help="Files whose sentences the texts are made of.")] = Path("data/sample"),
    quick: Quick = False,
    output: Output = None,
) -> None:
    """Speed and memory of ingest, tokens, row plan and stream, at the full count of documents."""
    from azneobert.bench.data import Sizes, bench_data

    sizes = Sizes(text=10**6, documents=22_000, far_sample=10**6) if quick else Sizes()
    _run("Data: speed and memory", bench_data(corpus, sizes), output, without_bars=quick)


@app.command()
def checkpoint(
    quick: Quick = False,
    output: Output = None,
    scratch: Annotated[
        Path | None, typer.Option(help="A folder on the disk to measure; default: the system's.")
    ] = None,
) -> None:
    """What saving, reading back, converting and resuming cost, for the published model: 15 GB of disk."""
    from azneobert.bench.checkpoint import bench_checkpoint

    _run("Checkpoints: speed and memory", bench_checkpoint(not quick, scratch), output, without_bars=quick)


@app.command()
def resume(
    worlds: Annotated[str, typer.Option(help="Numbers of ranks; on GPUs, as many as there are.")] = "1,2,3,4",
    output: Output = None,
) -> None:
    """Interrupted runs against uninterrupted ones, over engines, numbers of ranks and settings."""
    from azneobert.bench.resume import bench_resume, cases

    if not all(world.strip().isdecimal() and int(world) for world in worlds.split(",")):
        raise AzNeoBertError(f"--worlds {worlds}: numbers of ranks with commas between them would do, such as 1,2,4")
    numbers = tuple(int(world) for world in worlds.split(","))
    _run("Resume: an interrupted run against the uninterrupted one", bench_resume(list(cases(numbers))), output)


@app.command()
def train(
    variants: Annotated[str, typer.Option(help="Steps of the ablation, in this order.")] = ",".join(_VARIANTS),
    rows: Annotated[str, typer.Option(help="What else to measure with our kernels.")] = ",".join(_ROWS),
    steps: Annotated[int, typer.Option(min=2, help="Steps timed for each row.")] = 10,
    profile: Annotated[Path | None, typer.Option(help="Leave a trace of one step of each variant in a folder.")] = None,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """Tokens a second, utilisation and memory of a training step, from the seed project's way to ours."""
    from azneobert.bench.train import bench_train, jobs, toy_jobs

    names, others = _chosen("--variants", variants, _VARIANTS), _chosen("--rows", rows, _ROWS)
    _needs_a_gpu("bench train", quick)
    planned = list(toy_jobs() if quick else jobs(names, others, steps))
    if profile is not None:
        planned = [replace(job, profile=str(profile)) for job in planned]
    _run("Training: speed and memory of a step", bench_train(planned), output, without_bars=quick)


@app.command()
def loss(
    variants: Annotated[str, typer.Option(help="Variants of `bench train` to compare.")] = "fa4,fused,deterministic",
    steps: Annotated[int, typer.Option(min=2, help="Steps to train each.")] = 200,
    curves: Annotated[Path | None, typer.Option(help="Write the losses of every step to this CSV file.")] = None,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """Whether what makes a step fast changes what is learnt: the same steps with it, and in fp32."""
    from azneobert.bench.loss_compare import bench_loss

    names = _chosen("--variants", variants, _VARIANTS)
    _needs_a_gpu("bench loss", quick)
    _run("Loss: fast against plain", bench_loss(names, steps, quick, curves), output, without_bars=quick)


@app.command()
def busy(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each setting.")] = 5,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """Training a small model on this machine's cores, alone and beside other work, under settings of OpenMP."""
    from azneobert.bench.busy import Turns, bench_busy

    turns = Turns(rounds=1, seconds=0.5) if quick else Turns(rounds)
    _run("A busy machine: training on cores that others use", bench_busy(turns), output, without_bars=quick)


@app.command()
def faults(
    minutes: Annotated[float, typer.Option(min=0, help="How long; one fault happens in any case.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Draws the faults: the same ones in the same order.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Leave the folders of trials that went wrong in a folder.")] = None,
    output: Output = None,
) -> None:
    """Real faults at random moments: kills, stops, flipped bits, a full disk, MLflow away; what comes of it."""
    from azneobert.bench.faults import bench_faults

    _run(
        "Faults: a run to which they happen, against one to which nothing does",
        bench_faults(minutes, seed, keep),
        output,
    )


def _needs_a_gpu(command: str, quick: bool) -> None:
    import torch

    if not quick and not torch.cuda.is_available():
        raise AzNeoBertError(f"{command} measures a GPU, and torch sees none here; --quick shows on a CPU that it runs")


def _chosen(option: str, given: str, known: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AzNeoBertError(f"{option}: {', '.join(unknown)} is none of {', '.join(known)}")
    return names


def _run(title: str, measured: Iterable[Row], output: Path | None, without_bars: bool = False) -> None:
    """Print each row as it is measured, then the table."""
    from azneobert.bench.report import as_markdown, as_table

    rows = []
    for row in measured:
        row = replace(row, bar="", met=None) if without_bars else row  # a bar is for the full sizes
        console.print(f"{row.what}: {row.figure}" + (f" ({row.note})" if row.note else ""))
        rows.append(row)
        if output is not None:  # after each row, so that a run that is cut short leaves what it has measured
            output.write_text(as_markdown(title, rows), encoding="utf-8")
    console.print(as_table(title, rows))
