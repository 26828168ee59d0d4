"""The `azneobert` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Column, Table

from azneobert.cli.bench import app as bench_app
from azneobert.cli.cache import app as cache_app
from azneobert.cli.checkpoint import app as checkpoint_app
from azneobert.cli.console import console
from azneobert.cli.doctor import check_up
from azneobert.cli.evaluate import evaluate
from azneobert.cli.finetune import finetune, predict
from azneobert.cli.jobs import jobs
from azneobert.cli.next import where_next
from azneobert.cli.recipe import RecipeName
from azneobert.cli.recipe import app as recipe_app
from azneobert.cli.registry import TrackingUri, restore_if_fresh, store_of
from azneobert.cli.registry import app as registry_app
from azneobert.cli.remote import app as remote_app
from azneobert.cli.runs import app as runs_app
from azneobert.cli.ui import ui
from azneobert.environment import quiet_barriers
from azneobert.errors import AzNeoBertError
from azneobert.layout import Layout
from azneobert.printable import log_in_lines, os_error_line
from azneobert.recipe import PARAMS, PHASES
from azneobert.recipe_files import open_recipe

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
data = typer.Typer(no_args_is_help=True, help="Token stores and row plans.")
app.add_typer(cache_app, name="cache")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(data, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(registry_app, name="registry")
app.add_typer(recipe_app, name="recipe")
app.add_typer(remote_app, name="remote")
app.add_typer(runs_app, name="runs")
app.command(name="finetune")(finetune)
app.command(name="predict")(predict)
app.command(name="evaluate")(evaluate)
app.command(name="next")(where_next)
app.command(name="jobs")(jobs)
app.command(name="doctor")(check_up)
app.command(name="ui")(ui)


def main() -> None:
    """Run the command; what a user can mend is one line on standard error and exit code 1."""
    quiet_barriers()
    log_in_lines()
    try:
        app()
    except AzNeoBertError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {os_error_line(error)}")


@app.command(name="fill-mask")
def fill_mask(
    text: Annotated[str, typer.Argument(help="A sentence with one or more [MASK].")],
    model: Annotated[
        str | None,
        typer.Option(help="models:/NAME@ALIAS, a folder, or a hub name; default: phase 2 of the recipe's model."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many candidates for each mask.")] = 5,
    tracking_uri: TrackingUri = None,
) -> None:
    """What a model puts in the place of [MASK]."""
    from azneobert.encoders import is_registered, open_encoder
    from azneobert.filling import fill_masks

    tracking = recipe = None
    if model is None or is_registered(model):
        tracking, recipe = store_of(None, tracking_uri)
    if recipe is not None:
        restore_if_fresh(recipe)
        model = model or f"models:/{recipe.registry.name}@phase2"
    elif model is None:
        raise AzNeoBertError(f"{PARAMS}: no such file; use --model, or run this in the project's folder")
    with open_encoder(model, tracking) as encoder:
        candidates = fill_masks(encoder.folder, text, top)
    for number, row in enumerate(candidates, start=1):
        table = Table("token", "probability", title=f"[MASK] {number} of {len(candidates)}, {model}")
        for token, probability in row:
            table.add_row(token, f"{probability:.2%}")
        console.print(table)


@data.command(name="verify")
def verify_data(name: RecipeName = None) -> None:
    """Read every byte of the recipe's token stores and row plans, and say which are whole."""
    from azneobert.data.rows import verify_plan
    from azneobert.data.store import TokenStore

    _, loaded = open_recipe(name)
    root = Layout(loaded.name).root
    stores: dict[str, dict[str, TokenStore]] = {"train": {}, "validation": {}}
    table = Table(
        "what", Column("documents", justify="right"), Column("tokens", justify="right"), "sha256", title=str(root)
    )
    for side, opened in stores.items():
        for collection in loaded.data.sources:
            store = TokenStore.open(root / "tokens" / collection / side)
            store.verify()
            opened[collection] = store
            meta = store.meta
            table.add_row(f"{collection}/{side}", f"{meta.documents:,}", f"{meta.tokens:,}", meta.tokens_sha256[:16])
    for phase in PHASES:
        plans = [(root / "rows" / phase / "train", stores["train"])]
        for collection, store in stores["validation"].items():
            if len(store):
                plans.append((root / "rows" / phase / "validation" / collection, {collection: store}))
        for path, of in plans:
            plan = verify_plan(path, of).meta
            table.add_row(str(path.relative_to(root)), f"{plan.rows:,} rows", f"{plan.tokens:,}", plan.sha256[:16])
    console.print(table)
    console.print(f"{root}: every token store and row plan is whole")
