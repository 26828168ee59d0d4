"""`azneobert evaluate`: which of several encoders is better, on a suite of labelled tasks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.cli.registry import TrackingUri, restore_if_fresh, store_of
from azneobert.errors import DataError
from azneobert.printable import printable

if TYPE_CHECKING:
    from azneobert.finetuning.comparison import Comparison
    from azneobert.finetuning.comparison_files import Cell
    from azneobert.finetuning.suites import Suite


def evaluate(
    suite: Annotated[str, typer.Argument(help="azerbaijani, legal, sample, or a YAML file that names tasks.")],
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="models:/NAME@ALIAS, folders, or names of the hub.")
    ],
    tasks: Annotated[str | None, typer.Option(help="Some of the suite's tasks, as a,b; default: all.")] = None,
    seeds: Annotated[str | None, typer.Option(help="As 1,2,3: a training each; default: the suite's.")] = None,
    random: Annotated[
        bool, typer.Option("--random", help="The first model's network from random weights too, as a floor.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="A folder; default: evaluations/SUITE.")] = None,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Fine-tune encoders on the tasks of a suite, and say which is better; what an earlier run has done is kept."""
    from azneobert.evaluate_suite import Evaluation, evaluate_suite
    from azneobert.finetuning.comparison_files import FILES
    from azneobert.finetuning.suites import load_suite

    chosen = _with_seeds(_with_tasks(load_suite(suite), tasks), seeds)
    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    folder = output or Path("evaluations") / chosen.name
    comparison = evaluate_suite(Evaluation(chosen, models, tracking, folder, random), console.print)
    _show(comparison)
    console.print(f"{folder}: {', '.join(FILES)}")


def _with_tasks(suite: Suite, asked: str | None) -> Suite:
    if asked is None:
        return suite
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in suite.tasks:
            raise DataError(f"--tasks: {name!r} is no task of {suite.name}; expected some of {', '.join(suite.tasks)}")
    return dataclasses.replace(suite, tasks={name: suite.tasks[name] for name in suite.tasks if name in names})


def _with_seeds(suite: Suite, asked: str | None) -> Suite:
    if asked is None:
        return suite
    numbers = [number.strip() for number in asked.split(",")]
    if not all(re.fullmatch(r"\d{1,9}", number) for number in numbers) or len(set(numbers)) < len(numbers):
        raise DataError(
            f"--seeds: found {asked!r}; expected different whole numbers with commas between them, as 1,2,3"
        )
    return dataclasses.replace(suite, tuning=suite.tuning.model_copy(update={"seeds": tuple(map(int, numbers))}))


def _show(comparison: Comparison) -> None:
    from azneobert.finetuning.comparison_files import cells, legend

    (first, *others), rows = cells(comparison)
    table = Table(
        Column(_shown(first), overflow="fold"),
        *(Column(_shown(cell), justify="right") for cell in others),
        title=comparison.suite,
    )
    for row in rows:
        table.add_row(*map(_shown, row))
    console.print(table)
    for line in legend(comparison):
        console.print(line)


def _shown(cell: Cell) -> Text:
    text = Text(printable(cell.text), style="bold" if cell.best else "")
    return text.append(f"\n{printable(cell.remark)}", style="not bold") if cell.remark else text
