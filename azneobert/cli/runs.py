"""`azneobert runs`: deliver what a recipe's runs have recorded to MLflow, compare the runs, and draw them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from azneobert.cli.console import complaints, console
from azneobert.cli.recipe import RecipeName
from azneobert.errors import RegistryError
from azneobert.layout import Layout
from azneobert.recipe import Recipe
from azneobert.recipe_files import open_recipe

app = typer.Typer(
    no_args_is_help=True,
    help="Runs: their points on the way to MLflow, two of them side by side, pictures of a training.",
)


@app.command()
def deliver(
    name: RecipeName = None,
) -> None:
    """Send MLflow the points, descriptions and ends of runs that it does not have yet."""
    from azneobert.mlflow_store import check_store

    _, recipe = open_recipe(name)
    layout = Layout(recipe.name)
    folders = layout.tracking_folders()
    if not folders:
        console.print(f"{layout.root}: no runs there")
        return
    check_store(recipe.tracking)
    arrived = [_delivered(folder, recipe) for folder in folders]
    if not all(arrived):
        sys.exit(1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A run's name or id; the first letters of an id will do.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    output: Annotated[Path | None, typer.Option(help="Draw both curves of the training loss into this PNG.")] = None,
    name: Annotated[str | None, typer.Option("--recipe", help="A recipe; default: the one that runs.")] = None,
) -> None:
    """What differs in the settings of two runs, their figures, and where MLflow shows both curves."""
    from azneobert.tracking.compare import compared_runs, differing_params, draw_curves, paired_figures
    from azneobert.tracking.names import LOSS, LOSS_BY_TOKENS
    from azneobert.tracking.pages import HOST, PORT, curves_page, server_of

    _, recipe = open_recipe(name)
    runs = compared_runs(recipe.tracking, [a, b])
    if output:
        draw_curves(output, runs)
    settings = Table("setting", *(run.label for run in runs))
    for row in differing_params(*runs):
        settings.add_row(*row)
    console.print(settings if settings.row_count else "no setting differs")
    figures = Table("figure, the last", *(Column(run.label, justify="right") for run in runs))
    for figure, *values in paired_figures(*runs):
        figures.add_row(figure, *map(_as_text, values))
    if any(run.by_steps for run in runs):
        figures.add_row("steps", *(f"{run.by_steps[-1][0]:,}" if run.by_steps else "" for run in runs))
    console.print(figures)
    server = server_of(recipe.tracking)
    for against, metric in (("steps", LOSS), ("tokens", LOSS_BY_TOKENS)):
        if all(run.by_steps for run in runs):
            experiments = list(dict.fromkeys(run.experiment for run in runs))
            page = curves_page(server or f"http://{HOST}:{PORT}", [run.id for run in runs], experiments, metric)
            console.print(f"both curves against {against}: {page}")
    if server is None:
        console.print(f"while `azneobert ui` runs; if that has another port, put it in the place of {PORT}")
    if output:
        console.print(f"{output}: both curves, against steps and against tokens")


@app.command()
def draw(
    output: Annotated[
        Path | None, typer.Option(help="The folder of the pictures; default: figures of outputs.")
    ] = None,
    name: RecipeName = None,
) -> None:
    """Draw a training from its own records: loss, seams, tokens/s, where the time went, held-out loss at the ends."""
    from azneobert.history.figures import all_seams, draw_history

    _, recipe = open_recipe(name)
    layout = Layout(recipe.name)
    drawn = draw_history(layout, output or layout.root / "figures")
    for record in drawn.phases:
        last = record.training[-1]
        console.print(f"{record.folder}: {record.phase} up to step {last.step:,}, {last.tokens:,.0f} tokens")
    for seam in all_seams(drawn.phases):
        stopped = f", {seam.stopped:,.0f} s" if seam.stopped else ""
        console.print(f"{seam.phase}, after step {seam.step:,}: {seam.what}{stopped}")
    for file in drawn.files:
        console.print(str(file))
    for line in drawn.missing:
        complaints.print(line)


def _as_text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _delivered(folder: Path, recipe: Recipe) -> bool:
    """Deliver from one folder and say so. A folder that fails does not stop the others."""
    from azneobert.tracking.delivery import deliver_folder

    try:
        points = deliver_folder(folder, recipe.tracking)
    except RegistryError as error:
        complaints.print(f"error: {folder}: {error}")
        return False
    if points is None:
        console.print(f"{folder}: a process that is at work here delivers them itself")
    else:
        console.print(f"{folder}: {f'delivered {points:,} points' if points else 'all there'}")
    return True
