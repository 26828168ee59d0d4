"""From the name of an encoder to a registered fine-tuned model: what the stage and `azneobert finetune` both do.

The experiment's files go into one folder, its curves and scores into an MLflow run, and the best model of the
pretrained weights becomes a version of a model of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azneobert.encoders import Encoder
from azneobert.errors import RegistryError
from azneobert.finetuning.experiment import CONFUSION, CURVE, MISTAKES, MODEL, REPORT, Result, make_room, run_experiment
from azneobert.finetuning.scores import main_score
from azneobert.finetuning.task import Task
from azneobert.finetuning.training import check_length
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import attach_files
from azneobert.recipe import Tracking
from azneobert.registry.finetuned import Tuned, push_finetuned
from azneobert.registry.versions import Version
from azneobert.task_settings import TaskSettings, TuningSettings
from azneobert.tracking.delivery import fresh_folder
from azneobert.tracking.published import publish_record
from azneobert.tracking.record import FINETUNING, RunInfo, read_run_id
from azneobert.tracking.tracker import Tracker


@dataclass(frozen=True)
class Tuning:
    """What is fine-tuned on which task, and where the results go.

    `called` is the encoder's name in texts that do not belong to one store: the card and the report.
    `folder` gets the experiment's files and the run's record, `running` is where the points wait for MLflow. `model` is
    the name of the registered model, None if the model is not to be registered; with `promote` its `champion` may
    move.
    """

    encoder: Encoder
    called: str
    task: Task
    task_settings: TaskSettings
    settings: TuningSettings
    tracking: Tracking
    folder: Path
    running: Path
    model: str | None
    tags: dict[str, str] = field(default_factory=dict)
    promote: bool = True


def tune(tuning: Tuning, say: Callable[[str], None]) -> tuple[dict[str, Any], Version | None]:
    """Do all of it; returns the report, and the version if the model was registered.

    Raises:
        DataError: the folder is a file, or holds another model.
        TrainingError: the encoder takes no texts of that length, or a loss is not finite.
        RegistryError: MLflow does not answer when the model is to be registered; the files are there all the same.
    """
    task = tuning.task
    check_length(tuning.encoder.folder, task, tuning.settings.max_length)
    make_room(tuning.folder)
    for line in task.notes:
        say(f"{task.name}: {line}")
    with _recorded(tuning) as tracker:

        def note(result: Result) -> None:
            main = main_score(task)
            say(f"{task.name}: {result.weights} weights, seed {result.seed}: test {main} {result.scores[main]:.3f}")
            _log(tracker, tuning.settings.seeds.index(result.seed), result)

        about = {"encoder": tuning.called, "encoder_sha256": tuning.encoder.sha256}
        encoder = tuning.encoder.folder
        report = run_experiment(encoder, task, tuning.task_settings, tuning.settings, tuning.folder, note, about)
    for split, count in report["truncated"].items():
        longest = f"longer than {report['max_length']} tokens"
        say(f"{task.name}: {count:,} of {report['examples'][split]:,} {split} examples were {longest}, and were cut")
    for split, count in report["unseen"].items():
        say(f"{task.name}: {count:,} {split} words have no token of this tokenizer: the model does not see them")
    publish_record(tuning.running, tuning.folder)
    pictures = [tuning.folder / name for name in (CONFUSION, CURVE) if (tuning.folder / name).is_file()]
    run_id = read_run_id(tuning.running)
    if run_id is not None:
        attach_files(tuning.tracking, run_id, [tuning.folder / REPORT, tuning.folder / MISTAKES, *pictures])
    if tuning.model is None:
        return report, None
    if run_id is None:
        raise RegistryError(
            f"{tracking_uri(tuning.tracking)}: MLflow has not taken the run, and the model is not registered; it is "
            f"in {tuning.folder / MODEL}; start again when MLflow answers"
        )
    tuned = Tuned(tuning.folder / MODEL, pictures, report, tuning.encoder.name)
    return report, push_finetuned(tuned, tuning.model, run_id, tuning.tracking, promote=tuning.promote)


@contextmanager
def _recorded(tuning: Tuning) -> Iterator[Tracker]:
    """One MLflow run of all the fine-tuning."""
    name, encoder = tuning.task.name, tuning.encoder.name
    info = RunInfo(
        name=f"{name} {encoder} {said_seeds(tuning.settings.seeds)}",
        params={
            "finetuning": tuning.settings.model_dump(mode="json", include=set(TuningSettings.model_fields)),
            "task": tuning.task_settings.model_dump(mode="json"),
        },
        tags={
            "azneobert.model": encoder,
            "azneobert.task": name,
            "azneobert.data_sha256": tuning.task.sha256,
            **tuning.tags,
        },
        description=f"Fine-tuning of {encoder} on {name}. The step of a test score is the place of its seed, from "
        "0, that of a curve the epoch.",
        group=FINETUNING,
    )
    fresh_folder(tuning.running.parent)
    tracker = Tracker(tuning.running, tuning.tracking, info)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    finally:
        tracker.finish(status)


def _log(tracker: Tracker, number: int, result: Result) -> None:
    """A point for the seed, and one for each epoch."""
    scores = {f"test/{name}/{result.weights}": value for name, value in result.scores.items()}
    tracker.log(number, scores | {f"seconds/{result.weights}": result.seconds})
    for epoch in result.epochs:
        curve = {"train_loss": epoch.loss} | {f"validation_{name}": value for name, value in epoch.validation.items()}
        tracker.log(
            epoch.number, {f"{name}/{result.weights}_seed_{result.seed}": value for name, value in curve.items()}
        )


def said_seeds(seeds: tuple[int, ...]) -> str:
    """The seeds in a run's name: `seed 1`, `seeds 1, 2, 3`, or how many there are."""
    if len(seeds) > 5:
        return f"{len(seeds)} seeds"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
