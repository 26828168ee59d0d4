"""`azneobert bench`: each claim of speed or memory is a row that anyone can run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.cli.registry import restore_if_fresh
from azneobert.errors import AzNeoBertError
from azneobert.layout import Layout
from azneobert.recipe import EngineName, PhaseName
from azneobert.recipe_files import open_recipe

if TYPE_CHECKING:
    from azneobert.bench.report import Row

app = typer.Typer(no_args_is_help=True, help="Benchmarks: each claim of speed or memory is a row that anyone can run.")

_VARIANTS = ("eager", "compile", "rope", "head", "fa3", "fa4", "fused", "deterministic", "fp8", "zero2")
_FAST = ("divided", "wrong", "fa4", "fused", "deterministic")
_ENGINES: tuple[EngineName, ...] = ("plain", "zero2")
_ROWS = ("free", "packed", "4096", "worlds", "steady", "guards")

_Known = TypeVar("_Known", bound=str)

Quick = Annotated[bool, typer.Option(help="A fixed table at toy sizes: shows that it runs, says nothing of speed.")]
Scratch = Annotated[Path | None, typer.Option(help="A folder on the disk to measure; default: the system's.")]
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
    scratch: Scratch = None,
) -> None:
    """What saving, reading back, converting and resuming cost, for the published model: 15 GB of disk."""
    from azneobert.bench.checkpoint import bench_checkpoint

    _run("Checkpoints: speed and memory", bench_checkpoint(not quick, scratch), output, without_bars=quick)


@app.command()
def registry(
    corpus: Annotated[Path, typer.Option(help="Files that the tokenizer is trained on.")] = Path("data/sample"),
    quick: Quick = False,
    output: Output = None,
    scratch: Scratch = None,
) -> None:
    """How fast a version of the published model is pulled and verified: 12 GB of disk."""
    from azneobert.bench.registry import bench_registry

    _run("Registry: speed of pulling", bench_registry(not quick, corpus, scratch), output, without_bars=quick)


@app.command()
def resume(
    worlds: Annotated[str, typer.Option(help="Numbers of ranks; on GPUs, as many as there are.")] = "1,2,3,4",
    quick: Annotated[bool, typer.Option(help="One rank, each engine and from one to the other: a minute.")] = False,
    output: Output = None,
) -> None:
    """Interrupted runs against uninterrupted ones, over engines, numbers of ranks and settings."""
    from azneobert.bench.resume import bench_resume, cases, quick_cases

    if not all(world.strip().isdecimal() and int(world) for world in worlds.split(",")):
        raise AzNeoBertError(f"--worlds {worlds}: expected numbers of ranks with commas between them, as 1,2,4")
    numbers = tuple(int(world) for world in worlds.split(","))
    chosen = quick_cases() if quick else list(cases(numbers))
    _run("Resume: an interrupted run against the uninterrupted one", bench_resume(chosen), output)


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
def trainer(
    engines: Annotated[str, typer.Option(help="Engines, in this order.")] = ",".join(_ENGINES),
    gpus: Annotated[list[int] | None, typer.Option(help="On how many, once for each; default: one, and all.")] = None,
    steps: Annotated[int, typer.Option(min=20, help="Steps of each run.")] = 300,
    micro_steps: Annotated[int, typer.Option(min=1, help="Micro-batches of 48 rows a step, on each GPU.")] = 6,
    saves: Annotated[int, typer.Option(min=1, help="Checkpoints, and evaluations, in that time.")] = 3,
    vocab_size: Annotated[int, typer.Option(min=512, help="Of the tokenizer that is trained on the text.")] = 64_000,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Files or folders of text, once for each; default: the embedded sample.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the prepared text is kept.")] = Path("outputs/bench-trainer"),
    quick: Quick = False,
    output: Output = None,
) -> None:
    """`pretrain` with all that it does beside steps against its bare step, by the clock on the wall."""
    from azneobert.bench.trainer import Plan, bench_trainer, cases_of, toy_plan

    names = _chosen("--engines", engines, _ENGINES)
    _needs_a_gpu("bench trainer", quick)
    asked = Plan(cases_of(names, gpus or []), steps, micro_steps, saves, vocab_size, tuple(corpus or ()), folder)
    planned = toy_plan(folder / "quick") if quick else asked
    _run("The trainer: its rate over that of its step", bench_trainer(planned), output, without_bars=quick)


@app.command()
def scaling(
    engines: Annotated[str, typer.Option(help="Engines, in this order.")] = ",".join(_ENGINES),
    gpus: Annotated[int | None, typer.Option(min=2, help="On how many; default: all.")] = None,
    ahead: Annotated[int, typer.Option(min=2, help="Predict a step on so many.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Steps timed for each row.")] = 10,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """What a step loses on several GPUs: predicted from the links between them, measured, and predicted for more."""
    from azneobert.bench.scaling import bench_scaling, full_plan, toy_plan

    names = _chosen("--engines", engines, _ENGINES)
    _needs_a_gpu("bench scaling", quick)
    planned = toy_plan() if quick else full_plan(names, gpus, ahead, steps)
    _run("Several GPUs: a step predicted and measured", bench_scaling(planned), output, without_bars=quick)


@app.command()
def figures(
    results: Annotated[Path, typer.Option(help="The page whose tables are drawn.")] = Path("docs/results/train.md"),
    output: Annotated[Path, typer.Option(help="The folder of the pictures.")] = Path("docs/figures"),
) -> None:
    """Draw the speed that a page of results has, without a GPU; and what rows, samples and checkpoints are."""
    from azneobert.bench.checkpoint_figure import draw_checkpoint
    from azneobert.bench.explanations import draw_explanations
    from azneobert.bench.speed_figures import draw_speed

    for file in (*draw_speed(results, output), *draw_explanations(output), draw_checkpoint(output)):
        console.print(str(file))


@app.command()
def loss(
    variants: Annotated[str, typer.Option(help="Ways of computing to hold against the reference.")] = ",".join(_FAST),
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each, from seeds 1, 2, ...; decide before.")] = 5,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Files or folders of text, once for each; default: the embedded sample.")
    ] = None,
    recipe: Annotated[Path, typer.Option(help="Whose rate, warm-up and cleaning.")] = Path("recipes/h200.yaml"),
    rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate; default: the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of each training; default: 1,500.")] = None,
    held_out: Annotated[float, typer.Option(min=0, max=1, help="Share of documents that are held out.")] = 0.1,
    results: Annotated[Path | None, typer.Option(help="A file of trainings to add to; default: in the folder.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the prepared text is kept.")] = Path("outputs/neutrality"),
    minutes: Annotated[float, typer.Option(min=0, help="Begin no training after so many.")] = 60,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """Whether what makes a step fast changes what is learnt: held-out losses of many trainings, seed by seed."""
    from azneobert.bench.neutrality import KNOWN, bench_loss, plan

    names = _chosen("--variants", variants, KNOWN)
    _needs_a_gpu("bench loss", quick)
    place = folder / "quick" if quick else folder
    experiment = plan(
        names,
        seeds,
        corpus=corpus or [],
        recipe=recipe,
        rate=rate,
        steps=steps,
        held_out=held_out,
        results=results or place / "trainings.jsonl",
        folder=place,
        minutes=minutes,
        toy=quick,
    )
    _run("Neutrality: does it learn the same", bench_loss(experiment), output, without_bars=quick)


@app.command()
def masked(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS, a finished phase's folder or a checkpoint."),
    ] = None,
    phase: Annotated[PhaseName, typer.Option(help="Whose held-out rows, and whose checkpoints.")] = "phase1",
    examples: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many sentences instead, and what the models, or the phase's checkpoints, put into them."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="The n-gram counts at most so many tokens.")] = 10_000_000,
    name: RecipeName = None,
    output: Output = None,
) -> None:
    """Masked tokens of held-out rows: guessed by a unigram, by an n-gram that sees both sides, and by models."""
    from azneobert.bench.masked import bench_masked
    from azneobert.bench.masked_examples import bench_examples
    from azneobert.encoders import is_registered
    from azneobert.training.inputs import Inputs

    recipe = open_recipe(name)[1]
    if any(map(is_registered, models or ())):
        restore_if_fresh(recipe)
    inputs = Inputs.of(recipe, Layout(recipe.name), phase)
    if examples is None:
        rows = bench_masked(inputs, models or [], tokens)
        _run(f"Masked tokens of held-out rows of {phase}", rows, output)
    else:
        _run(f"One masked word: {phase}", bench_examples(inputs, models or [], examples), output)


@app.command()
def finetune(
    task: Annotated[Path, typer.Option(help="A folder with a task of classification.")] = Path(
        "data/sample/punctuation"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Of four trainings each.")] = 3,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """What fine-tuning through this project costs, over the same training by transformers' Trainer alone."""
    from azneobert.bench.finetune import Turns, bench_finetune

    turns = Turns(rounds=1, epochs=1, examples=40) if quick else Turns(rounds)
    _run("Fine-tuning: its cost over Trainer alone", bench_finetune(turns, task), output, without_bars=quick)


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
def tracking(
    server: Annotated[bool, typer.Option(help="Into a server of MLflow's too.")] = False,
    quick: Quick = False,
    output: Output = None,
) -> None:
    """A million figures on their way to MLflow, and what their delivery costs the steps meanwhile."""
    from azneobert.bench.tracking import Amounts, bench_tracking

    amounts = Amounts(steps=6_000, beside=10, step_seconds=0.02) if quick else Amounts()
    rows = bench_tracking(amounts, server=server)
    _run("Tracking: a million figures on their way to MLflow", rows, output, without_bars=quick)


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
        raise AzNeoBertError(
            f"{command}: measures a GPU, and torch sees none here; use --quick to see on a CPU that it runs"
        )


def _chosen(option: str, given: str, known: tuple[_Known, ...]) -> list[_Known]:
    by_name: dict[str, _Known] = {name: name for name in known}
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AzNeoBertError(f"{option}: found {', '.join(unknown)}; expected some of {', '.join(known)}")
    return [by_name[name] for name in names]


def _run(title: str, measured: Iterable[Row], output: Path | None, without_bars: bool = False) -> None:
    """Print each row as it is measured, then the table."""
    from azneobert.bench.report import as_markdown, as_table

    rows = []
    for row in measured:
        row = replace(row, bar="", met=None) if without_bars else row  # bars apply to the full sizes only
        console.print(f"{row.what}: {row.figure}" + (f" ({row.note})" if row.note else ""))
        rows.append(row)
        if output is not None:  # after each row, so that an interrupted run leaves the rows that it has measured
            output.write_text(as_markdown(title, rows), encoding="utf-8")
    console.print(as_table(title, rows))
