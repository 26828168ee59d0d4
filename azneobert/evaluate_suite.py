"""From the names of encoders and a suite to a table: which of them is better, and where the difference is chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from azneobert.encoders import Encoder, check_encoder, open_encoder
from azneobert.errors import AzNeoBertError, DataError, RegistryError, TrainingError
from azneobert.finetuning.comparison import Comparison, Row, row_of, standings
from azneobert.finetuning.comparison_files import FILES, TABLE, write_comparison
from azneobert.finetuning.reading import read_task
from azneobert.finetuning.scores import main_score
from azneobert.finetuning.speed import device_name, tokens_a_word
from azneobert.finetuning.suites import Suite
from azneobert.finetuning.task import Task
from azneobert.finetuning.trials import Contender, Trial, trials
from azneobert.mlflow_store import attach_files, check_store
from azneobert.recipe import Tracking
from azneobert.settings import name_of
from azneobert.tracking.delivery import fresh_folder
from azneobert.tracking.record import FINETUNING, RunInfo
from azneobert.tracking.tracker import Tracker

TRIALS, RUNNING = "trials", "running"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """Which models are compared on which suite, and where results go. `random` adds random weights of the first one."""

    suite: Suite
    models: list[str]
    tracking: Tracking
    folder: Path
    random: bool = False


def evaluate_suite(evaluation: Evaluation, say: Say) -> Comparison:
    """Train every model on every task of the suite, except what the folder already has; write and record the results.

    Errors in a name, a folder or the store are found before anything is trained. A task that cannot be read is
    reported and left out; a task on which a model cannot be trained is left out for that model.

    Raises:
        DataError: the folder holds something else, no task can be read, or a file of a former training is damaged.
        RegistryError: MLflow does not answer, or does not have a version.
        AzNeoBertError: there is no such model, it is given twice, or transformers cannot read it.
        TrainingError: no model can be trained on any task.
    """
    _check_folder(evaluation.folder)
    models = _checked_models(evaluation)
    tasks, left_out = _read_tasks(evaluation.suite, say)
    contenders, found, fertilities = list[Contender](), dict[str, dict[str, list[Trial]]](), dict[str, float]()
    for name in models:
        with open_encoder(name, evaluation.tracking) as encoder:
            of_encoder = _contenders(encoder, with_random=evaluation.random and name == models[0])
            fertility = tokens_a_word(encoder.folder, tasks.values())
            for contender in of_encoder:
                fertilities[contender.name] = fertility
                found[contender.name] = _trials_of(contender, tasks, evaluation, say)
            contenders += of_encoder
    comparison = _compared(evaluation.suite, tasks, left_out, contenders, found, fertilities)
    write_comparison(comparison, evaluation.folder)
    _record(evaluation, comparison)
    return comparison


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; expected a new folder, or one of an earlier evaluation")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TRIALS).is_dir():
        raise DataError(f"{folder}: holds something else; expected a new folder, or one of an earlier evaluation")


def _checked_models(evaluation: Evaluation) -> list[str]:
    """The models by the names that `Encoder` has. An alias becomes a number here, since it may move later."""
    for number, name in enumerate(evaluation.models):
        if name in evaluation.models[:number]:
            raise AzNeoBertError(f"{name}: stands twice among the models; expected each of them once")
    check_store(evaluation.tracking)
    given = dict[str, str]()
    for name in evaluation.models:
        resolved = check_encoder(name, evaluation.tracking)
        if resolved in given:
            raise AzNeoBertError(f"{name}: is the same version as {given[resolved]}; remove one of the two")
        given[resolved] = name
    return list(given)


def _read_tasks(suite: Suite, say: Say) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks, and for those that cannot be read the reason."""
    tasks, left_out = dict[str, Task](), dict[str, str]()
    for name, settings in suite.tasks.items():
        try:
            tasks[name] = read_task(name, settings)
        except DataError as error:
            left_out[name] = str(error)
            say(f"{name}: left out: {error}")
            continue
        for note in tasks[name].notes:
            say(f"{name}: {note}")
    if not tasks:
        raise DataError(f"{suite.name}: none of its {len(suite.tasks)} tasks can be read; see the lines above")
    return tasks, left_out


def _contenders(encoder: Encoder, *, with_random: bool) -> list[Contender]:
    contenders = [Contender(encoder.name, encoder.folder, encoder.sha256, "pretrained")]
    if with_random:
        contenders.append(Contender(f"{encoder.name}, random weights", encoder.folder, encoder.sha256, "random"))
    return contenders


def _trials_of(
    contender: Contender, tasks: dict[str, Task], evaluation: Evaluation, say: Say
) -> dict[str, list[Trial]]:
    """The trials of a model by task; without the tasks on which it cannot be trained."""
    found = dict[str, list[Trial]]()
    for name, task in tasks.items():
        of_task, main = list[Trial](), main_score(task)
        try:
            for trial, is_known in trials(contender, task, evaluation.suite.tuning, evaluation.folder / TRIALS):
                of_task.append(trial)
                known = ", of an earlier run" if is_known else ""
                say(f"{name}: {contender.name}: seed {trial.seed}: test {main} {trial.scores[main]:.1%}{known}")
        except TrainingError as error:
            say(f"{name}: {contender.name}: left out: {error}")
            continue
        found[name] = sorted(of_task, key=lambda trial: evaluation.suite.tuning.seeds.index(trial.seed))
    return found


def _compared(
    suite: Suite,
    tasks: dict[str, Task],
    left_out: dict[str, str],
    contenders: list[Contender],
    found: dict[str, dict[str, list[Trial]]],
    fertilities: dict[str, float],
) -> Comparison:
    by_task = {
        name: standings(task, of_task)
        for name, task in tasks.items()
        if (of_task := {model: by_name[name] for model, by_name in found.items() if name in by_name})
    }
    if not by_task:
        raise TrainingError(f"{suite.name}: no model can be trained on any of its tasks; see the lines above")
    device, rows = device_name(), list[Row]()
    for contender in contenders:
        of_model = found[contender.name]
        if of_model:
            of_tasks = {name: by_task[name][contender.name] for name in of_model}
            all_trials = [trial for of_task in of_model.values() for trial in of_task]
            rows.append(row_of(contender, all_trials, of_tasks, fertilities[contender.name], device))
    return Comparison(
        suite=suite.name,
        seeds=suite.tuning.seeds,
        device=device,
        scores={name: main_score(tasks[name]) for name in by_task},
        examples={name: len(tasks[name].splits["test"]) for name in by_task},
        data_sha256={name: tasks[name].sha256 for name in by_task},
        left_out=left_out,
        rows=rows,
    )


def _record(evaluation: Evaluation, comparison: Comparison) -> None:
    """One MLflow run of the whole comparison: its figures, and its files."""
    info = RunInfo(
        name=f"{comparison.suite}: {', '.join(evaluation.models)}"[:250],  # MLflow's longest name
        params={
            "finetuning": evaluation.suite.tuning.model_dump(mode="json"),
            "tasks": {name: task.model_dump(mode="json") for name, task in evaluation.suite.tasks.items()},
        },
        tags={"azneobert.suite": comparison.suite},
        description=f"Encoders compared on the suite {comparison.suite}; the table is the artifact {TABLE}.",
        group=FINETUNING,
    )
    folder = fresh_folder(evaluation.folder / RUNNING) / "tracking"
    tracker, status = Tracker(folder, evaluation.tracking, info), "FAILED"
    try:
        tracker.log(0, _figures(comparison))
        attach_files(evaluation.tracking, tracker.deliver(), [evaluation.folder / name for name in FILES])
        status = "FINISHED"
    except RegistryError as error:
        raise RegistryError(f"{error}; the results are in {evaluation.folder}; run it again to record them") from None
    finally:
        tracker.finish(status)


def _figures(comparison: Comparison) -> dict[str, float]:
    figures = dict[str, float]()
    labels = _labels([row.name for row in comparison.rows])
    for row, label in zip(comparison.rows, labels, strict=True):
        figures |= {f"{task}/{label}": standing.mean for task, standing in row.standings.items()}
        figures |= {f"tokens_a_word/{label}": row.tokens_a_word, f"parameters/{label}": float(row.parameters)}
        if row.tokens_per_second is not None:
            figures[f"tokens_per_second/{label}"] = row.tokens_per_second
        if (average := comparison.average(row)) is not None:
            figures[f"average/{label}"] = average
    return figures


def _labels(models: list[str]) -> list[str]:
    """Names of models for use in names of figures, which may not hold @ or begin with a slash."""
    labels = list[str]()
    for model in models:
        label = name_of(model[-60:])
        labels.append(f"{label}-{len(labels) + 1}" if label in labels else label)
    return labels
