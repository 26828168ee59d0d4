"""Restore into MLflow, from what DVC brings to a clone: the runs, their curves, the versions and their aliases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from azneobert.checkpoint.manifest import read_manifest
from azneobert.errors import RegistryError
from azneobert.layout import CHECKPOINT, Layout, finished_checkpoint, read_report
from azneobert.mlflow_store import is_fresh_store
from azneobert.recipe import Recipe
from azneobert.registry.corpus import count_collections
from azneobert.registry.finetuned import Tuned, push_finetuned
from azneobert.registry.push import is_whole, push
from azneobert.registry.registered import Registered, read_registered
from azneobert.registry.versions import find_digest, free_aliases
from azneobert.tracking.published import restore_run
from azneobert.tracking.record import read_record
from azneobert.training.report import attach_report


def restore(recipe: Recipe, layout: Layout) -> Iterator[str]:
    """Restore what MLflow lacks. Yields a line for each run and each version, including those already there.

    Raises:
        RegistryError: there is nothing to restore from, or MLflow does not answer.
        CheckpointError: a checkpoint is missing or damaged.
    """
    published = layout.published()
    if not published:
        raise RegistryError(
            f"{layout.root}: no finished run there; bring them with `azneobert remote pull`, or use `dvc repro`"
        )
    run_ids = {}
    for folder in published:
        run_ids[folder.name], line = _restore_run(recipe, layout, folder)
        yield line
    if not layout.registered.is_file():
        yield f"no version: {layout.registered} is not there yet; `dvc repro register` makes it"
        return
    for phase, registered in read_registered(layout.registered).items():
        yield _restore_version(recipe, layout, phase, registered, run_ids.get(phase))
    for task in recipe.finetuning.tasks:
        if task in run_ids and layout.report(f"finetune/{task}").is_file():
            yield _restore_finetuned(recipe, layout, task, run_ids[task])


def restore_into_fresh_store(recipe: Recipe, layout: Layout) -> Iterator[str]:
    """`restore`, where the store is this project's own and has never recorded anything: in a clone, after a pull.

    Raises:
        RegistryError: MLflow does not answer.
        CheckpointError: a checkpoint is missing or damaged.
    """
    if layout.registered.is_file() and is_fresh_store(recipe.tracking):
        yield from restore(recipe, layout)


def _restore_run(recipe: Recipe, layout: Layout, folder: Path) -> tuple[str, str]:
    record = read_record(folder)
    name = record.info.name if record else folder.name
    run_id, made = restore_run(folder, recipe.tracking)
    if made and (folder / CHECKPOINT).is_dir():
        settings = read_manifest(folder / CHECKPOINT).recipe
        attach_report(recipe.tracking, run_id, settings, layout.plots / f"{folder.name}.png")
    return run_id, f"run {name}: {'restored' if made else 'there already'}, {run_id}"


def _restore_version(recipe: Recipe, layout: Layout, phase: str, registered: Registered, run_id: str | None) -> str:
    aliases = free_aliases(recipe.tracking, registered.model, [registered.alias])
    version = find_digest(recipe.tracking, registered.model, registered.manifest_sha256)
    said = "there already"
    if version is None or aliases or not is_whole(version, recipe.tracking):
        checkpoint, _ = finished_checkpoint(layout.finished(phase))
        figures = read_report(layout.report(f"evaluate/{phase}"))
        picture = layout.plots / f"{phase}.png"
        expected = registered.manifest_sha256
        golden = layout.golden(phase)
        counts = count_collections(layout, recipe.data.order)
        version = push(
            checkpoint, recipe, figures, [picture], aliases, run_id, expected=expected, golden=golden, counts=counts
        )
        said = "restored"
    alias = (
        f"@{registered.alias}" if registered.alias in version.aliases else f"not @{registered.alias}, which is taken"
    )
    return f"version {version.uri} ({alias}): {said}, sha256 {registered.manifest_sha256[:12]}"


def _restore_finetuned(recipe: Recipe, layout: Layout, task: str, run_id: str) -> str:
    report = read_report(layout.report(f"finetune/{task}"))
    encoder = find_digest(recipe.tracking, recipe.registry.name, report["encoder_sha256"])
    folder = layout.finetuned(task)
    pictures = sorted(folder.glob("*.png"))
    tuned = Tuned(folder / "model", pictures, report, encoder.uri if encoder else report["encoder"])
    version = push_finetuned(tuned, f"{recipe.registry.name}-{task}", run_id, recipe.tracking)
    return f"version {version.uri}: {task}, in its place"
