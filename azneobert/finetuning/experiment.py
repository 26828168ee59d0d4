"""What an encoder is worth on a task: several seeds, the same network from random weights, the frozen encoder.

Everything for a person to read goes into one folder: report.json, learning_curve.png, confusion.png, mistakes.csv,
predictions.json, and the model itself in model/.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azneobert.errors import DataError
from azneobert.files import write_json
from azneobert.finetuning.figures import Curve, Weights, draw_confusion, draw_learning_curve
from azneobert.finetuning.intervals import bootstrap, paired
from azneobert.finetuning.mistakes import worst_mistakes, write_mistakes
from azneobert.finetuning.probe import probe
from azneobert.finetuning.saved import TASK, save_model
from azneobert.finetuning.scores import chance, main_score
from azneobert.finetuning.task import Label, Task
from azneobert.finetuning.training import Epoch, Trained, prepare, train
from azneobert.task_settings import TaskSettings, TuningSettings

REPORT, CURVE, CONFUSION, MISTAKES = "report.json", "learning_curve.png", "confusion.png", "mistakes.csv"
PREDICTIONS, MODEL = "predictions.json", "model"


@dataclass(frozen=True)
class Result:
    """What one seed came to: the test split's scores and predictions, and the way there."""

    weights: Weights
    seed: int
    scores: dict[str, float]
    validation: float  # the main score of the best epoch
    epochs: list[Epoch]
    labels: Sequence[Label]
    confidences: list[float]
    seconds: float


def results(
    encoder: Path, task: Task, settings: TuningSettings, weights: Weights, seeds: tuple[int, ...] | None = None
) -> Iterator[tuple[Result, Trained]]:
    """Train once for each seed; each result as soon as it is there.

    Raises:
        AzNeoBertError: transformers cannot read the encoder.
        TrainingError: the encoder takes no texts of that length, or a loss is not finite.
    """
    tokenizer, splits = prepare(encoder, task, settings.max_length)
    main = main_score(task)
    for seed in seeds or settings.seeds:
        began = time.monotonic()
        found = train(encoder, task, splits, tokenizer, settings, seed, pretrained=weights == "pretrained")
        yield (
            Result(
                weights=weights,
                seed=seed,
                scores=found.scores,
                validation=found.best.validation[main],
                epochs=found.epochs,
                labels=found.test.labels,
                confidences=found.test.confidences,
                seconds=time.monotonic() - began,
            ),
            found,
        )


def run_experiment(
    encoder: Path,
    task: Task,
    task_settings: TaskSettings,
    settings: TuningSettings,
    folder: Path,
    note: Callable[[Result], None],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Run the experiment and write it into a folder that `make_room` has made. Returns the content of report.json.

    `note` is told of each result.

    `about` is what the caller knows of the encoder; it goes into the report.

    Raises:
        AzNeoBertError: transformers cannot read the encoder.
        TrainingError: the encoder takes no texts of that length, or a loss is not finite.
    """
    found: dict[Weights, list[Result]] = {"pretrained": [], "random": []}
    truncated: dict[str, int] = {}
    unseen: dict[str, int] = {}
    main = main_score(task)
    for weights, of_weights in found.items():
        for result, trained in results(encoder, task, settings, weights):
            note(result)
            if weights == "pretrained" and all(result.validation > former.validation for former in of_weights):
                save_model(trained, task, task_settings, settings, folder / MODEL)
            of_weights.append(result)
            truncated = {split: count for split, count in trained.truncated.items() if count}
            unseen = {split: count for split, count in trained.unseen.items() if count}
    probed = probe(encoder, task, settings)
    write_pictures(task, found, folder)
    report = (
        about
        | describe(task, found, settings)
        | {
            "probe": {name: rounded(scores) for name, scores in probed.items()},
            "truncated": truncated,
            "unseen": unseen,
            "notes": task.notes,
            "best_seed": best_of(found["pretrained"]).seed,
            "validation": round(best_of(found["pretrained"]).validation, 6),
        }
    )
    report["gain"] = difference(task, found["pretrained"], found["random"], main)
    write_json(folder / REPORT, report)
    return report


def make_room(folder: Path) -> None:
    """Make the folder of an experiment, and remove what an earlier experiment has left there.

    Raises:
        DataError: it is a file, or its model/ is not one that was made here.
    """
    model = folder / MODEL
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; expected a folder, or a name for a new one")
    if model.exists() and not (model / TASK).is_file():
        raise DataError(f"{model}: is there already, and is no model of an experiment; use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    for name in (REPORT, CURVE, CONFUSION, MISTAKES, PREDICTIONS):
        (folder / name).unlink(missing_ok=True)


def write_pictures(task: Task, found: dict[Weights, list[Result]], folder: Path) -> None:
    """Write the learning curves, the mistakes of the best pretrained model, and the predictions of all models."""
    gold = [one.label for one in task.splits["test"]]
    best = best_of(found["pretrained"])
    main = main_score(task)
    curves = [
        Curve(r.weights, r.seed, [epoch.loss for epoch in r.epochs], [epoch.validation[main] for epoch in r.epochs])
        for of_weights in found.values()
        for r in of_weights
    ]
    draw_learning_curve(task, curves, folder / CURVE)
    if task.kind != "regression":
        draw_confusion(task, gold, best.labels, folder / CONFUSION)
    write_mistakes(worst_mistakes(task, task.splits["test"], best.labels, best.confidences), folder / MISTAKES)
    predictions = {
        weights: {str(result.seed): list(result.labels) for result in of_weights}
        for weights, of_weights in found.items()
    }
    write_json(folder / PREDICTIONS, {"sha256": task.sha256, "labels": task.labels, "test": gold} | predictions)


def best_of(found: list[Result]) -> Result:
    """The result with the best validation score, the first of equals. Its model is kept."""
    return max(found, key=lambda result: result.validation)


def describe(task: Task, found: dict[Weights, list[Result]], settings: TuningSettings) -> dict[str, Any]:
    """The figures of a task: sizes, the settings, and each score's mean, deviation and 95% interval."""
    gold = [one.label for one in task.splits["test"]]
    return {
        "task": task.name,
        "kind": task.kind,
        "score": main_score(task),
        "data_sha256": task.sha256,
        "examples": {split: len(examples) for split, examples in task.splits.items()},
        "labels": len(task.labels),
        "max_length": settings.max_length,
        "seeds": list(settings.seeds),
        "chance": rounded(chance(task, gold)),
        "curves": {
            weights: {str(result.seed): [asdict(epoch) for epoch in result.epochs] for result in of}
            for weights, of in found.items()
        },
        **{weights: summary(task, of) for weights, of in found.items()},
    }


def summary(task: Task, found: list[Result]) -> dict[str, dict[str, Any]]:
    """For each score: mean and deviation over the seeds, and an interval over seeds and test examples."""
    gold = [one.label for one in task.splits["test"]]
    figures = {}
    for name in found[0].scores:
        values = [result.scores[name] for result in found]
        low, high = bootstrap(task, gold, [result.labels for result in found], name)
        figures[name] = {
            "mean": round(statistics.fmean(values), 4),
            "deviation": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
            "low": round(low, 4),
            "high": round(high, 4),
            "by_seed": [round(value, 4) for value in values],
        }
    return figures


def difference(task: Task, ours: list[Result], theirs: list[Result], name: str) -> dict[str, Any]:
    """By how much our mean score exceeds theirs, with its 95% interval; `noise` if the interval contains 0."""
    gold = [one.label for one in task.splits["test"]]
    by, low, high = paired(task, gold, [r.labels for r in ours], [r.labels for r in theirs], name)
    return {"difference": round(by, 4), "low": round(low, 4), "high": round(high, 4), "noise": low <= 0 <= high}


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """Scores as reports have them."""
    return {name: round(value, 4) for name, value in scores.items()}
