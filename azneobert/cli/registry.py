"""`azneobert registry`: the registered versions of a recipe's model."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.recipe import Recipe
from azneobert.recipe_files import open_recipe

app = typer.Typer(no_args_is_help=True, help="Registered versions of the model.")


@app.command(name="list")
def list_registered(name: RecipeName = None) -> None:
    """Show the registered versions and their aliases."""
    console.print(_versions_table(open_recipe(name)[1]))


@app.command(name="pull")
def pull_version(uri: str, folder: Path, name: RecipeName = None) -> None:
    """Bring a version into a new folder, every file's hash verified."""
    from azneobert.registry.pull import pull

    pull(uri, folder, open_recipe(name)[1].tracking)
    console.print(f"{uri} is in {folder}, every file verified")


def _versions_table(loaded: Recipe) -> Table:
    from azneobert.mlflow_store import tracking_uri
    from azneobert.registry.versions import list_versions

    table = Table(
        "version", "aliases", "recipe", "step", "commit", title=f"registered in {tracking_uri(loaded.tracking)}"
    )
    for version in list_versions(loaded.tracking, loaded.registry.name):
        tags = {key.removeprefix("azneobert."): value for key, value in version.tags.items()}
        aliases = ", ".join(version.aliases)
        table.add_row(version.uri, aliases, tags.get("recipe"), tags.get("step"), tags.get("git_commit", "")[:10])
    return table
