"""What a phase leaves for a person: its numbers, its curves as CSV, and a picture, in MLflow too."""

from __future__ import annotations

import csv
import logging
import statistics
from pathlib import Path
from typing import Any

import yaml

from azneobert.errors import RegistryError, TrainingError
from azneobert.mlflow_store import attach_files
from azneobert.model.encoder import count_parameters
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_run_id
from azneobert.training.inputs import Inputs

log = logging.getLogger(__name__)


def write_report(inputs: Inputs, plots: Path) -> dict[str, Any]:
    """Write `<phase>.csv`, `<phase>_held_out.csv` and `<phase>.png` into `plots`; return the phase's metrics.

    The picture and the recipe are attached to the MLflow run as well, where MLflow answers.

    Raises:
        TrainingError: the run's points are not here, as when its checkpoints came from another machine without them.
    """
    points = read_points(inputs.tracking)
    training = _table(points, "train/")
    held_out = _table(points, "eval/", with_parts=False)
    if not training or not held_out:
        raise TrainingError(
            f"{inputs.tracking}: holds no points of the run in {inputs.folder}; bring that folder along, "
            f"or move {inputs.folder} away to train anew"
        )
    plots.mkdir(parents=True, exist_ok=True)
    _write_csv(plots / f"{inputs.phase}.csv", training)
    _write_csv(plots / f"{inputs.phase}_held_out.csv", held_out)
    picture = plots / f"{inputs.phase}.png"
    draw_losses(picture, f"{inputs.recipe_name}: {inputs.phase}", training, held_out)
    _attach(inputs, picture)
    last = training[-1]
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "parameters": count_parameters(inputs.recipe.model),
        "train_loss": last["loss"],
        "held_out_loss": held_out[-1]["loss"],
        "held_out_accuracy": held_out[-1]["accuracy"],
        "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in training), 1),
    }


def draw_losses(picture: Path, title: str, training: list[dict[str, float]], held_out: list[dict[str, float]]) -> None:
    """The loss against the step: each step faint, their running mean and the held-out loss plain."""
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
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


def _attach(inputs: Inputs, picture: Path) -> None:
    run_id = read_run_id(inputs.tracking)
    recipe = inputs.tracking / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(inputs.recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    try:
        if run_id:
            attach_files(inputs.recipe.tracking, run_id, [picture, recipe])
    except RegistryError as error:
        log.warning("%s: the loss curve is not attached to the run, it is in %s", error, picture)
