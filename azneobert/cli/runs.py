"""`azneobert runs`: what the runs of a recipe have recorded, and MLflow has not."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from azneobert.cli.console import complaints, console
from azneobert.cli.recipe import RecipeName
from azneobert.errors import RegistryError
from azneobert.layout import Layout
from azneobert.recipe import Recipe
from azneobert.recipe_files import open_recipe

app = typer.Typer(no_args_is_help=True, help="Runs, their points on the way to MLflow.")


@app.callback()  # without it the one command would be the group itself
def runs() -> None:
    """Runs, their points on the way to MLflow."""


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


def _delivered(folder: Path, recipe: Recipe) -> bool:
    """Deliver from one folder and say so; one that fails does not keep back the others."""
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
