"""`azneobert registry`: how a trained encoder is registered, compared, handed out and checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.errors import RegistryError
from azneobert.layout import CHECKPOINT, Layout, finished_checkpoint, read_report
from azneobert.recipe import PARAMS, PHASES, Recipe, Tracking
from azneobert.recipe_files import open_recipe

if TYPE_CHECKING:
    from azneobert.registry.pull import Expect
    from azneobert.registry.stored import Advance
    from azneobert.registry.versions import Version

app = typer.Typer(
    no_args_is_help=True,
    help="Registered versions of the model. Outside a project's folder, --tracking-uri or MLFLOW_TRACKING_URI says "
    "which store is meant.",
)

TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="An MLflow store; default: MLFLOW_TRACKING_URI, or the recipe's.")
]
Uri = Annotated[str, typer.Argument(help="Such as models:/azneobert@phase2 or models:/azneobert/1.")]


@app.command(name="list")
def list_registered(
    model: Annotated[str | None, typer.Argument(help="Default: the recipe's, or all that the store has.")] = None,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show the registered versions and their aliases."""
    from azneobert.mlflow_place import tracking_uri as uri_of
    from azneobert.registry.versions import list_models, list_versions

    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    if model:
        models = [model]
    elif recipe:
        models = [recipe.registry.name, *(f"{recipe.registry.name}-{task}" for task in recipe.finetuning.tasks)]
    else:
        models = list_models(tracking)
    console.print(f"registered in {uri_of(tracking)}:")
    for each in models:
        if found := list_versions(tracking, each):
            console.print(_versions_table(found))


@app.command()
def show(uri: Uri, name: RecipeName = None, tracking_uri: TrackingUri = None) -> None:
    """Show what is known of a version."""
    from azneobert.registry.versions import find_version

    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    version = find_version(uri, tracking)
    table = Table("what", Column("value", overflow="fold"), title=version.uri)
    table.add_row("aliases", ", ".join(version.aliases) or "none")
    for key, value in sorted(version.tags.items()):
        table.add_row(key.removeprefix("azneobert."), value)
    table.add_row("MLflow run", version.run_id)
    table.add_row("MLflow model", version.model_id or "none: a version of the first format")
    console.print(table)


@app.command(name="pull")
def pull_version(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="The universal checkpoint, to train on from, and not the encoder.")
    ] = False,
    moments: Annotated[
        bool, typer.Option("--moments/--no-moments", help="With --checkpoint: with the optimizer's moments or not.")
    ] = True,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Bring a version into a new folder, every file's hash verified. An interrupted pull goes on where it was."""
    from azneobert.registry.pull import pull, pull_checkpoint

    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    with bar_of(uri) as expect:
        if checkpoint:
            pull_checkpoint(uri, folder, tracking, expect, moments=moments)
        else:
            pull(uri, folder, tracking, expect)
    what = "the checkpoint of " if checkpoint else ""
    console.print(f"{what}{uri} is in {folder}, every file verified")


@app.command(name="verify")
def verify_registered(
    version: Annotated[str, typer.Argument(help="A version's URI, or a folder that was pulled.")],
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Check a version's hashes, and that its golden sentences have the same ids and logits here as when it was made.

    A fine-tuned model has no golden sentences.
    """
    from azneobert.registry.contents import verify_version
    from azneobert.registry.finetuned import is_finetuned
    from azneobert.registry.golden import TOLERANCE, check_ids, largest_difference
    from azneobert.registry.pull import pull

    with tempfile.TemporaryDirectory() as scratch:
        if Path(version).is_dir():
            folder = Path(version)
            verify_version(version, folder)
        else:
            tracking, recipe = store_of(name, tracking_uri)
            restore_if_fresh(recipe)
            with bar_of(version) as expect:
                folder = pull(version, Path(scratch) / "model", tracking, expect)
        if is_finetuned(folder):
            console.print(f"{version}: every hash is right; a fine-tuned model has no golden sentences to compare")
            return
        sentences = check_ids(version, folder)
        difference = largest_difference(version, folder)
    if difference > TOLERANCE:
        raise RegistryError(
            f"{version}: a golden logit differs by {difference:.3g}, at most {TOLERANCE} expected; use the versions of "
            "its requirements.txt"
        )
    console.print(
        f"{version}: every hash is right, {sentences} golden sentences have the same ids, their logits differ by "
        f"{difference:.1e} at most"
    )


@app.command(name="push")
def push_checkpoint(
    checkpoint: Annotated[str, typer.Argument(help="A finished phase, phase1 or phase2, or a universal checkpoint.")],
    alias: Annotated[
        list[str] | None, typer.Option(help="An alias to point at it; may be given several times.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Its held-out results; default, of a phase: reports/evaluate/PHASE.json.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Although the phase is not complete, or the alias is another recipe's.")
    ] = False,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Register a checkpoint as a version. The same content again is the same version."""
    from azneobert.checkpoint.manifest import read_manifest
    from azneobert.registry.assemble import check_complete
    from azneobert.registry.corpus import count_collections
    from azneobert.registry.push import push

    _, recipe = store_of(name, tracking_uri)
    if recipe is None:
        raise RegistryError(f"{PARAMS}: no such file, and a version has its recipe; run this in the project's folder")
    layout, pictures, counts = Layout(recipe.name), [], None
    if checkpoint in PHASES:
        folder = layout.finished(checkpoint) / CHECKPOINT
        finished_checkpoint(folder.parent)
        figures = figures or layout.report(f"evaluate/{checkpoint}")
        pictures = [picture for picture in [layout.plots / f"{checkpoint}.png"] if picture.is_file()]
        counts = count_collections(layout, recipe.data.order)
    else:
        folder = Path(checkpoint)
    if not force:
        check_complete(folder, read_manifest(folder))
    results = read_report(figures) if figures else {}
    version = push(folder, recipe, results, pictures, alias or [], force=force, counts=counts)
    console.print(f"{folder} is {version.uri}{_also(version)}")


@app.command(name="compare")
def compare_versions(a: Uri, b: Uri, name: RecipeName = None, tracking_uri: TrackingUri = None) -> None:
    """Show two versions side by side, and which is better where they can be compared."""
    from azneobert.registry.champion import differing, held_out_loss
    from azneobert.registry.versions import find_version

    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    one, other = find_version(a, tracking), find_version(b, tracking)
    table = Table("what", Column(one.uri, overflow="fold"), Column(other.uri, overflow="fold"))
    table.add_row("aliases", ", ".join(one.aliases), ", ".join(other.aliases))
    for key in sorted(one.tags.keys() | other.tags.keys()):
        table.add_row(key.removeprefix("azneobert."), one.tags.get(key, ""), other.tags.get(key, ""))
    console.print(table)
    losses = held_out_loss(one), held_out_loss(other)
    if reason := differing(one, other):
        console.print(f"not comparable: {reason}")
    elif losses[0] is not None and losses[1] is not None:
        better = one if losses[0] < losses[1] else other
        gap = abs(losses[0] - losses[1])
        console.print(f"{better.uri} is better by {gap:.4f} nats of held-out loss" if gap else "equal held-out loss")


@app.command(name="promote")
def promote_version(
    uri: Uri,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    force: Annotated[bool, typer.Option("--force", help="Although it is not better, or cannot be compared.")] = False,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Point an alias at a version, if its held-out loss is lower than that of the one which has it."""
    from azneobert.registry.champion import promote

    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    done = promote(uri, tracking, alias, force=force)
    console.print(f"models:/{done.version.name}@{alias} is {done.version.uri}: {done.why}")


@app.command(name="delete")
def delete_version(
    uri: Uri,
    force: Annotated[bool, typer.Option("--force", help="Although an alias points at it.")] = False,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Delete a version and its encoder. Its checkpoint stays among the artifacts of its run."""
    from azneobert.registry.delete import delete

    version = delete(uri, store_of(name, tracking_uri)[0], force=force)
    console.print(f"{version.uri} is deleted")


@app.command(name="restore")
def restore_versions(name: RecipeName = None) -> None:
    """Bring runs, curves, versions and aliases back to an MLflow that lacks them, from what DVC has brought."""
    from azneobert.registry.restore import restore

    _, recipe = open_recipe(name)
    for line in restore(recipe, Layout(recipe.name)):
        console.print(line)


def restore_if_fresh(recipe: Recipe | None) -> None:
    """In a clone, which has the outputs and an empty MLflow: restore the outputs' runs and versions, and say so."""
    from azneobert.registry.restore import restore_into_fresh_store

    for line in restore_into_fresh_store(recipe, Layout(recipe.name)) if recipe else ():
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


@app.command(name="publish")
def publish_version(
    source: Annotated[str, typer.Argument(help="A registry URI, or a folder that `azneobert registry pull` made.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    dtype: Annotated[
        Literal["bf16", "fp32"], typer.Option(help="The weights, rounded or as they were trained.")
    ] = "bf16",
    license_id: Annotated[
        str | None, typer.Option("--license", help="The model's licence as the hub names it, such as apache-2.0.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option("--upload", help="OWNER/NAME on the hub; nothing is uploaded without it.")
    ] = None,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Make the folder of a model hub of a version: weights, tokenizer, card, checksums. Upload it only if asked to."""
    from azneobert.encoders import is_registered
    from azneobert.registry.publish import check_upload, publish, publish_uri, upload

    if repository is not None:
        check_upload(repository)
    if is_registered(source):
        tracking, recipe = store_of(name, tracking_uri)
        restore_if_fresh(recipe)
        publish_uri(source, folder, tracking, dtype, license_id)
    else:
        publish(Path(source), folder, dtype, license_id)
    console.print(f"{source} is in {folder}, in {dtype}; `sha256sum -c SHA256SUMS` there checks every file")
    if repository is not None:
        console.print(f"uploaded: {upload(folder, repository)}")


def store_of(name: str | None, uri: str | None) -> tuple[Tracking, Recipe | None]:
    """The store to use, and the recipe if there is one: outside a project the store is enough."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri  # overrides the recipe's
    if name is not None or PARAMS.exists():
        recipe = open_recipe(name)[1]
        return recipe.tracking, recipe
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise RegistryError(
            f"{PARAMS}: no such file; run this in the project's folder, or use --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return Tracking(mlflow_uri="sqlite:///mlflow.db", experiment="azneobert", wandb="off"), None


@contextmanager
def bar_of(what: str) -> Iterator[Expect]:
    """A bar of bytes on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)

    def expect(size: int) -> Advance:
        task = shown.add_task(what, total=size)
        return lambda done: shown.advance(task, done)

    with shown:
        yield expect


def _also(version: Version) -> str:
    return f", also {', '.join(f'@{alias}' for alias in version.aliases)}" if version.aliases else ""


def _versions_table(versions: list[Version]) -> Table:
    """A table of a model's versions, without empty columns."""
    rows = []
    for version in versions:
        tags = {key.removeprefix("azneobert."): value for key, value in version.tags.items()}
        rows.append(
            {
                "version": version.uri,
                "aliases": ", ".join(version.aliases),
                "recipe": tags.get("recipe", ""),
                "step": tags.get("step", ""),
                "held-out": f"{float(tags['loss']):.4f}" if "loss" in tags else "",
                "test score": tags.get("score", ""),
                "commit": tags.get("git_commit", "")[:8],
            }
        )
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table(*(Column(name, overflow="fold", no_wrap=name == "version") for name in shown))
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table
