"""Two runs side by side, by what MLflow has of them: settings that differ, figures, and the curves of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.pictures import MEAN_OF, pyplot, running_mean, save_picture
from azneobert.recipe import Tracking
from azneobert.tracking.names import LOSS, LOSS_BY_TOKENS, name_in_mlflow
from azneobert.tracking.record import FINETUNING, RunInfo, tracking_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Curve = list[tuple[int, float]]

_FIGURES = ("train/loss", "eval/loss", "eval/accuracy", "train/tokens", "train/tokens_per_second", "train/mfu")
_NAMED = 10  # runs, in a message


@dataclass(frozen=True)
class ComparedRun:
    """A run as MLflow has it. `figures` are the last values by MLflow's names; curves are of the training loss."""

    name: str
    id: str
    experiment: str
    params: dict[str, str]
    figures: dict[str, float]
    by_steps: Curve
    by_tokens: Curve

    @property
    def label(self) -> str:
        """A name for the run beside another one, which may have the same name."""
        return f"{self.name} ({self.id[:8]})"


def compared_runs(tracking: Tracking, asked: list[str]) -> list[ComparedRun]:
    """The runs of the recipe's experiments that have these names or ids; the first letters of an id will do.

    Raises:
        RegistryError: MLflow does not answer, or a name is that of no run or of several.
    """
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        runs = list(_runs(client, tracking))
        return [_compared(client, _chosen(runs, each, tracking)) for each in asked]


def differing_params(a: ComparedRun, b: ComparedRun) -> list[tuple[str, str, str]]:
    """The settings that differ: their dotted names and both values, empty where a run has none."""
    return [
        (key, a.params.get(key, ""), b.params.get(key, ""))
        for key in sorted(a.params.keys() | b.params.keys())
        if a.params.get(key) != b.params.get(key)
    ]


def paired_figures(a: ComparedRun, b: ComparedRun) -> list[tuple[str, float | None, float | None]]:
    """The figures side by side: a summary for training, all for fine-tuning."""
    if a.by_steps or b.by_steps:
        names = [name_in_mlflow(name) for name in _FIGURES]
    else:
        names = sorted(name for name in a.figures.keys() | b.figures.keys() if not name.startswith("system/"))
    pairs = [(name, a.figures.get(name), b.figures.get(name)) for name in names]
    return [pair for pair in pairs if pair[1:] != (None, None)]


def draw_curves(picture: Path, runs: list[ComparedRun]) -> None:
    """The training loss of the runs against steps and against tokens: each point faint, their running mean solid.

    Raises:
        RegistryError: a run has no training loss.
    """
    for run in runs:
        if not run.by_steps:
            raise RegistryError(
                f"{run.label}: has no points of {LOSS}, so there is no curve to draw; leave out --output"
            )
    figure, both = pyplot().subplots(1, 2, figsize=(11, 4.5), dpi=120, sharey=True)
    for axes, label, curves in (
        (both[0], "optimizer step", [run.by_steps for run in runs]),
        (both[1], "tokens", [run.by_tokens for run in runs]),
    ):
        for number, (run, curve) in enumerate(zip(runs, curves, strict=True)):
            places, losses = [place for place, _ in curve], [loss for _, loss in curve]
            axes.plot(places, losses, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axes.plot(places, running_mean(losses), color=f"C{number}", label=run.label)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    both[0].set(ylabel="masked cross-entropy (nats)")
    both[0].legend(title=f"training loss, mean of {MEAN_OF} points")
    save_picture(figure, picture)


def _runs(client: MlflowClient, tracking: Tracking) -> Iterator[Run]:
    """The runs of the recipe's experiments, newest first in each."""
    for group in ("", FINETUNING):
        experiment = client.get_experiment_by_name(tracking_of(RunInfo("", group=group), tracking).experiment)
        token: str | None = "" if experiment else None
        while experiment and token is not None:
            page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token or None)
            yield from page
            token = page.token or None


def _chosen(runs: list[Run], asked: str, tracking: Tracking) -> Run:
    named = [run for run in runs if run.info.run_name == asked]
    found = named or [run for run in runs if asked and run.info.run_id.startswith(asked)]
    if len(found) == 1:
        return found[0]
    where = f"MLflow at {tracking_uri(tracking)}"
    if found:
        raise RegistryError(f"{where}: {asked} is {len(found)} runs; use an id of {_listed(found)}")
    if not runs:
        raise RegistryError(f"{where}: experiment {tracking.experiment} has no runs; `dvc repro` makes some")
    raise RegistryError(f"{where}: no run {asked}; expected a name or an id of {_listed(runs)}")


def _listed(runs: list[Run]) -> str:
    said = [f"{run.info.run_name} ({run.info.run_id})" for run in runs[:_NAMED]]
    return ", ".join(said) + (f" and {len(runs) - _NAMED:,} more" if len(runs) > _NAMED else "")


def _compared(client: MlflowClient, run: Run) -> ComparedRun:
    run_id = run.info.run_id
    return ComparedRun(
        name=run.info.run_name,
        id=run_id,
        experiment=run.info.experiment_id,
        params=dict(run.data.params),
        figures={name_in_mlflow(name): value for name, value in run.data.metrics.items()},
        by_steps=_curve(client, run_id, LOSS),
        by_tokens=_curve(client, run_id, LOSS_BY_TOKENS),
    )


def _curve(client: MlflowClient, run_id: str, metric: str) -> Curve:
    """One value per step: the last recorded one, if a run went back and recorded steps again."""
    history = sorted(client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)
    return sorted({point.step: point.value for point in history}.items())
