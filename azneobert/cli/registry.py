"""`azneobert registry`: the registered versions of a recipe's model."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.layout import Layout
from azneobert.recipe import Recipe
from azneobert.recipe_files import open_recipe

app = typer.Typer(no_args_is_help=True, help="Registered versions of the model.")


@app.command(name="list")
def list_registered(name: RecipeName = None) -> None:
    """Show the registered versions and their aliases."""
    _, recipe = open_recipe(name)
    restore_if_fresh(recipe)
    console.print(_versions_table(recipe))


@app.command(name="pull")
def pull_version(uri: str, folder: Path, name: RecipeName = None) -> None:
    """Bring a version into a new folder, every file's hash verified."""
    from azneobert.registry.pull import pull

    _, recipe = open_recipe(name)
    restore_if_fresh(recipe)
    pull(uri, folder, recipe.tracking)
    console.print(f"{uri} is in {folder}, every file verified")


@app.command(name="restore")
def restore_versions(name: RecipeName = None) -> None:
    """Bring runs, curves, versions and aliases back to an MLflow that lacks them, from what DVC has brought."""
    from azneobert.registry.restore import restore

    _, recipe = open_recipe(name)
    for line in restore(recipe, Layout(recipe.name)):
        console.print(line)


def restore_if_fresh(recipe: Recipe) -> None:
    """In a clone, which has the outputs and an MLflow that is empty: bring the one to the other, and say so."""
    from azneobert.registry.restore import restore_into_fresh_store

    for line in restore_into_fresh_store(recipe, Layout(recipe.name)):
        console.print(line)


@app.command(name="relocate")
def relocate_store(name: RecipeName = None) -> None:
    """Mend the store of a project that was moved or copied: MLflow notes absolute places."""
    from azneobert.mlflow_place import tracking_uri
    from azneobert.registry.relocate import relocate, without_artifacts

    tracking = open_recipe(name)[1].tracking
    done = relocate(tracking)
    if done is None:
        console.print(f"{tracking_uri(tracking)}: nothing to mend")
        return
    rows = ", ".join(f"{column} {count:,}" for column, count in done.rows.items())
    former = ", ".join(map(str, done.former))
    console.print(f"{tracking_uri(tracking)}: from {former} to {done.root}: {rows}")
    console.print(f"the database as it was: {done.backup}")
    if without_artifacts(done):
        console.print(f"{done.root}/mlruns: not there; copy it from {former}, if it is to be had")


def _versions_table(loaded: Recipe) -> Table:
    from azneobert.mlflow_place import tracking_uri
    from azneobert.registry.versions import list_versions

    table = Table(
        "version", "aliases", "recipe", "step", "commit", title=f"registered in {tracking_uri(loaded.tracking)}"
    )
    for version in list_versions(loaded.tracking, loaded.registry.name):
        tags = {key.removeprefix("azneobert."): value for key, value in version.tags.items()}
        aliases = ", ".join(version.aliases)
        table.add_row(version.uri, aliases, tags.get("recipe"), tags.get("step"), tags.get("git_commit", "")[:10])
    return table
