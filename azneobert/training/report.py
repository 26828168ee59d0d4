"""The report of a phase: its numbers, its curves as CSV, and a picture, which goes to MLflow too."""

from __future__ import annotations

import csv
import shutil
import statistics
import tempfile
from math import isfinite
from pathlib import Path
from typing import Any

from azneobert.checkpoint.manifest import verify_checkpoint
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.errors import CheckpointError, TrainingError
from azneobert.layout import CHECKPOINT, RunFolder
from azneobert.mlflow_store import attach_files
from azneobert.recipe import PhaseName, Recipe, Tracking
from azneobert.tracking.points import POINTS, read_points
from azneobert.tracking.published import publish_record
from azneobert.yaml_files import write_yaml

# Without speed and memory, which depend on the machine: they are in the points, and in MLflow.
_CURVES = ("step", "loss", "grad_norm", "lr", "tokens")


def publish(run: RunFolder, target: Path) -> None:
    """Copy what a finished run leaves for the stages after it, its last checkpoint and its record, into `target`.

    Files are copied, not linked: outputs become links into DVC's cache, and what is written or damaged in the run's
    folder must not reach the cache.

    Raises:
        CheckpointError: there is no whole checkpoint, or the copy is not the same.
    """
    newest = CheckpointFolder(run.checkpoints, 1).latest()
    if newest is None:
        raise CheckpointError(f"{run.checkpoints}: no whole checkpoint there; start the phase again")
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f".partial-{CHECKPOINT}"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(newest[0], partial, copy_function=shutil.copyfile)
    verify_checkpoint(partial)
    shutil.rmtree(target / CHECKPOINT, ignore_errors=True)
    partial.rename(target / CHECKPOINT)
    publish_record(run.tracking, target)


def write_report(recipe: Recipe, phase: PhaseName, finished: Path, plots: Path) -> dict[str, Any]:
    """Write `<phase>.csv`, `<phase>_held_out.csv` and `<phase>.png` into `plots`; return the phase's metrics.

    finished: the folder with the points that the phase has left.

    Raises:
        TrainingError: there are no points.
    """
    points = read_points(finished)
    # A step whose loss was not finite still has a point, of what it cost.
    table = [row for row in _table(points, "train/") if "loss" in row]
    training = [{k: row[k] for k in _CURVES if k in row} for row in table]
    held_out = _table(points, "eval/", with_parts=False)
    if not training or not held_out:
        raise TrainingError(
            f"{finished / POINTS}: holds no points of the run; bring the run's folder along whole, "
            f"or move it away to train anew"
        )
    if not isfinite(held_out[-1]["loss"]):
        raise TrainingError(f"{finished}: the held-out loss at the end is {held_out[-1]['loss']}; train the phase anew")
    plots.mkdir(parents=True, exist_ok=True)
    _write_csv(plots / f"{phase}.csv", training)
    _write_csv(plots / f"{phase}_held_out.csv", held_out)
    draw_losses(plots / f"{phase}.png", f"{recipe.name}: {phase}", training, held_out)
    # Keyed by the phase: `dvc exp show` then has one column per number, without the file's path.
    return {phase: {"loss": held_out[-1]["loss"]}}


def attach_report(tracking: Tracking, run_id: str, recipe: dict[str, Any], picture: Path) -> None:
    """Attach the picture and the recipe, as its fields, to the MLflow run.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "recipe.yaml"
        write_yaml(settings, recipe)
        attach_files(tracking, run_id, [picture, settings])


def draw_losses(picture: Path, title: str, training: list[dict[str, float]], held_out: list[dict[str, float]]) -> None:
    """Plot the loss against the step: single points faint, their running mean and the held-out loss solid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    steps, losses = [row["step"] for row in training], [row["loss"] for row in training]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, _running_mean(losses), color="tab:blue", label="training (mean of 20 points)")
    axes.plot([r["step"] for r in held_out], [r["loss"] for r in held_out], "o-", color="tab:orange", label="held out")
    axes.set(title=title, xlabel="optimizer step", ylabel="masked cross-entropy (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    # Without the version that matplotlib writes by default, equal curves make equal files.
    figure.savefig(picture, metadata={"Software": None})
    plt.close(figure)


def _table(points: list[dict[str, Any]], prefix: str, *, with_parts: bool = True) -> list[dict[str, float]]:
    """One row a step of the values under `prefix`; without parts, `eval/loss` but not `eval/loss/news`."""
    rows = []
    for point in points:
        values = {key.removeprefix(prefix): value for key, value in point["values"].items() if key.startswith(prefix)}
        values = {key: value for key, value in values.items() if with_parts or "/" not in key}
        if values:
            rows.append({"step": point["step"], **values})
    return rows


def _running_mean(values: list[float], width: int = 20) -> list[float]:
    return [statistics.fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def _write_csv(file: Path, rows: list[dict[str, float]]) -> None:
    # A run that goes on on another machine may gain or lose a figure, such as the utilisation of a GPU.
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, fieldnames=names, restval="")
        writer.writeheader()
        writer.writerows(rows)
