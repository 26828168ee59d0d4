"""`azneobert next`: where to look after a run, what its figures mean, and the one thing to try."""

from __future__ import annotations

import math
from typing import Any

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.layout import Layout, read_report
from azneobert.recipe import Recipe
from azneobert.recipe_files import open_recipe
from azneobert.registry.registered import read_registered

# A condition and its consequence, in a language that puts a comma between them: the sample model gets both marks right.
TO_TRY = "Sabah hava isti olsa[MASK] dənizə gedəcəyik[MASK]"
LAST_PHASE = "phase2"

Figures = dict[str, Any]


def where_next(name: RecipeName = None) -> None:
    """Say where to look after `dvc repro`, what the figures mean, and what to try."""
    _, loaded = open_recipe(name)
    layout = Layout(loaded.name)
    root = layout.root
    console.print()
    console.print(f"recipe {loaded.name} is done", style="bold")
    console.print()
    console.print(f"registered: {_registered(layout)}")
    console.print()
    for what, command in (
        ("loss curves", f"{root}/plots/phase1.png and phase2.png"),
        ("all plots, offline", "dvc plots show"),
        ("numbers", "dvc metrics show"),
        ("what was counted", f"{root}/reports/"),
        ("compare runs", "mlflow ui"),
        ("all versions", "azneobert registry list"),
        ("get the model", f"azneobert registry pull models:/{loaded.registry.name}@{LAST_PHASE} DIR"),
    ):
        console.print(f"  {what:<20} {command}")
    phase, tasks = read_figures(layout, loaded)
    console.print()
    console.print("what the figures mean", style="bold")
    console.print()
    for sentence in explain(loaded.model.vocab_size, phase, tasks):
        console.print(f"  {sentence}")
    # Another recipe than the one that runs may have registered its model under another name.
    model = f" --model models:/{loaded.registry.name}@{LAST_PHASE}" if name else ""
    console.print()
    console.print("Try it: what stands at each [MASK]?")
    console.print()
    console.print(f'azneobert fill-mask "{TO_TRY}"{model}')


def read_figures(layout: Layout, loaded: Recipe) -> tuple[Figures, dict[str, Figures]]:
    """The figures of the last phase, and those of each labelled task by its name; a recipe may have no task."""
    phase = read_report(layout.report(f"evaluate/{LAST_PHASE}"))
    files = {name: layout.report(f"finetune/{name}") for name in loaded.finetuning.files}
    return phase, {name: read_report(f) for name, f in files.items() if f.is_file()}


def explain(vocab_size: int, phase: Figures, tasks: dict[str, Figures]) -> list[str]:
    """What a phase's held-out figures and each task's scores say, a sentence or more a line; true for any figures."""
    guessing = math.log(vocab_size)
    loss = phase["eval/loss"]
    lines = [
        f"{LAST_PHASE}, texts that training did not see: a hidden token costs {loss:.2f} nats, "
        f"{'' if loss < guessing else 'no '}less than the {guessing:.2f} of guessing among {vocab_size:,} tokens; "
        f"{phase['eval/accuracy']:.1%} of them are found."
    ]
    return lines + [_verdict(name, figures) for name, figures in tasks.items()]


def standard_error(figures: Figures) -> float:
    """Of the difference between the mean accuracies from pretrained and from random weights.

    Seeds differ, and so would other test examples. Both weights meet the same examples, which makes the difference
    steadier than this says: it errs on the side of noise.
    """
    variance = 0.0
    for weights in ("pretrained", "random"):
        accuracy = figures[weights]["accuracy"]
        variance += figures[weights]["accuracy_deviation"] ** 2 / figures["seeds"]
        variance += accuracy * (1 - accuracy) / figures["examples"]["test"]
    return math.sqrt(variance)


def _verdict(name: str, figures: Figures) -> str:
    pretrained, random = (figures[weights]["accuracy"] for weights in ("pretrained", "random"))
    gap, noise = pretrained - random, 2 * standard_error(figures)
    if abs(gap) <= noise:
        meaning = "within that: this task does not tell whether pretraining helps"
    elif gap > 0:
        meaning = "beyond that: pretraining helps here"
    else:
        meaning = "beyond that: pretraining does harm here"
    examples, seeds = figures["examples"], figures["seeds"]
    return (
        f"{name}, {examples['train']:,} examples to learn from, {examples['test']:,} to test: {pretrained:.1%} right "
        f"from pretrained weights, {random:.1%} from random ones, {figures['chance']:.1%} by chance. "
        f"The difference is {100 * gap:+.1f} points, two standard errors ({seeds} {'seeds' if seeds > 1 else 'seed'}) "
        f"are {100 * noise:.1f}; it is {meaning}."
    )


def _registered(layout: Layout) -> str:
    return ", ".join(each.uri for each in read_registered(layout.registered).values())
