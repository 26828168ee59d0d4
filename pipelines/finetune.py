"""Stage: fine-tune the registered model on one labelled task, beside the same network from random weights."""

from stage import run_stage

import statistics
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azneobert.environment import experiment_tag
from azneobert.files import write_json
from azneobert.finetuning.classification import fine_tune
from azneobert.finetuning.tasks import Task, read_task
from azneobert.layout import Layout
from azneobert.recipe import Recipe
from azneobert.registry.pull import pull
from azneobert.registry.registered import read_registered, registered_version
from azneobert.tracking.delivery import fresh_folder
from azneobert.tracking.published import publish_record
from azneobert.tracking.record import RunInfo
from azneobert.tracking.tracker import Tracker


def finetune(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    settings = recipe.finetuning
    task = read_task(Path(settings.files[options.task].path))
    version = registered_version(settings.model, read_registered(layout.registered), recipe.tracking)
    scores: dict[str, list[dict[str, float]]] = {"pretrained": [], "random": []}
    with recorded(recipe, layout, options.task, version) as tracker, tempfile.TemporaryDirectory() as scratch:
        encoder = pull(version, Path(scratch) / "model", recipe.tracking)
        for weights, found in scores.items():
            for seed in settings.seeds:
                found.append(fine_tune(encoder, task, settings, seed, pretrained=weights == "pretrained"))
                print(
                    f"{options.task}: {weights} weights, seed {seed}: test accuracy {found[-1]['accuracy']:.1%}",
                    flush=True,
                )
        log_scores(tracker, scores)
    figures = {weights: summary(found) for weights, found in scores.items()}
    figures["examples"] = {split: len(examples) for split, examples in task.splits.items()}
    figures["seeds"] = seeds = len(settings.seeds)
    figures["chance"] = round(chance(task), 4)
    write_json(layout.report(f"finetune/{options.task}"), figures)
    compared = {"accuracy": figures["pretrained"]["accuracy"], "untrained": figures["random"]["accuracy"]}
    write_json(layout.metrics(f"finetune/{options.task}"), {options.task: compared})
    for weights in scores:
        mean, deviation = figures[weights]["accuracy"], figures[weights]["accuracy_deviation"]
        print(f"{options.task}: {weights} weights: test accuracy {mean:.1%} ± {deviation:.1%}, {seeds} seeds")


def chance(task: Task) -> float:
    """The accuracy of always giving the label that most test examples have."""
    labels = Counter(label for _, label in task.splits["test"])
    return max(labels.values()) / labels.total()


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean and deviation over the seeds."""
    figures = {}
    for key in found[0]:
        values = [scores[key] for scores in found]
        figures[key] = round(statistics.fmean(values), 4)
        figures[f"{key}_deviation"] = round(statistics.stdev(values), 4) if len(values) > 1 else 0.0
    return figures


@contextmanager
def recorded(recipe: Recipe, layout: Layout, task: str, version: str) -> Iterator[Tracker]:
    """One MLflow run of all the fine-tuning, which is published at its end; the step is the number of the seed."""
    info = RunInfo(
        name=f"{recipe.name}-finetune-{task}",
        params={"finetuning": recipe.finetuning.model_dump(mode="json")},
        tags={"azneobert.recipe": recipe.name, "azneobert.model": version} | experiment_tag(),
        description=f"Fine-tuning of {version} on {task}; the step is the number of the seed.",
    )
    run = layout.running(f"finetune-{task}")
    fresh_folder(run.path)
    tracker = Tracker(run.tracking, recipe.tracking, info)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    finally:
        tracker.finish(status)
    publish_record(run.tracking, layout.finetuned(task))


def log_scores(tracker: Tracker, scores: dict[str, list[dict[str, float]]]) -> None:
    """A point for each seed: the scores from either weights."""
    for number, each in enumerate(zip(*scores.values(), strict=True)):
        tracker.log(
            number, {f"test/{k}/{w}": v for w, found in zip(scores, each, strict=True) for k, v in found.items()}
        )


if __name__ == "__main__":
    run_stage(finetune, task=lambda recipe: recipe.finetuning.files)
