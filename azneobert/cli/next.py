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

# A condition and its consequence; Azerbaijani puts a comma between them. The sample model gets both marks right.
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
        ("compare runs", "azneobert ui"),
        ("two of them", "azneobert runs compare A B"),
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
    # A recipe other than the one that runs may have another model name in the registry.
    model = f" --model models:/{loaded.registry.name}@{LAST_PHASE}" if name else ""
    console.print()
    console.print("Try it: what stands at each [MASK]?")
    console.print()
    console.print(f'azneobert fill-mask "{TO_TRY}"{model}')


def read_figures(layout: Layout, loaded: Recipe) -> tuple[Figures, dict[str, Figures]]:
    """The figures of the last phase, and those of each labelled task by its name; a recipe may have no task."""
    phase = read_report(layout.report(f"evaluate/{LAST_PHASE}"))
    files = {name: layout.report(f"finetune/{name}") for name in loaded.finetuning.tasks}
    return phase, {name: read_report(f) for name, f in files.items() if f.is_file()}


def explain(vocab_size: int, phase: Figures, tasks: dict[str, Figures]) -> list[str]:
    """What a phase's held-out figures and each task's scores mean: a sentence or more a line, true for any figures."""
    guessing = math.log(vocab_size)
    loss = phase["eval/loss"]
    lines = [
        f"{LAST_PHASE}, texts that training did not see: a hidden token costs {loss:.2f} nats, "
        f"{'' if loss < guessing else 'no '}less than the {guessing:.2f} of guessing among {vocab_size:,} tokens; "
        f"{phase['eval/accuracy']:.1%} of them are found."
    ]
    return lines + [_verdict(name, figures) for name, figures in tasks.items()]


def _verdict(name: str, figures: Figures) -> str:
    score, gain = figures["score"], figures["gain"]
    pretrained, random = (figures[weights][score]["mean"] for weights in ("pretrained", "random"))
    if gain["noise"]:
        meaning = "which holds 0: this task does not tell whether pretraining helps"
    elif gain["difference"] > 0:
        meaning = "all of it above 0: pretraining helps here"
    else:
        meaning = "all of it below 0: pretraining does harm here"
    examples, seeds = figures["examples"], len(figures["seeds"])
    return (
        f"{name}, {examples['train']:,} examples to learn from, {examples['test']:,} to test: {score} {pretrained:.3f} "
        f"from pretrained weights, {random:.3f} from random ones, {figures['chance'].get(score, 0.0):.3f} by chance. "
        f"The difference is {gain['difference']:+.3f}, its 95% interval over {seeds} seed{'s' * (seeds > 1)} "
        f"and the test's examples {gain['low']:+.3f} to {gain['high']:+.3f}, {meaning}."
    )


def _registered(layout: Layout) -> str:
    return ", ".join(each.uri for each in read_registered(layout.registered).values())
