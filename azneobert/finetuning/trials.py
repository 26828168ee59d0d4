"""One training of a comparison, and the file that it leaves, so that it is not repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azneobert.errors import DataError
from azneobert.files import read_json, sha256_of_json, write_json
from azneobert.finetuning.experiment import results
from azneobert.finetuning.figures import Weights
from azneobert.finetuning.speed import Speed, measure_speed
from azneobert.finetuning.task import Label, Task
from azneobert.task_settings import TuningSettings


@dataclass(frozen=True)
class Contender:
    """An encoder in a comparison: a folder that transformers loads, used with its own weights or random ones."""

    name: str
    folder: Path
    sha256: str
    weights: Weights


@dataclass(frozen=True)
class Trial:
    """What one seed came to: the test split's scores and predictions, and how fast the model reads that split."""

    seed: int
    scores: dict[str, float]
    labels: list[Label]
    parameters: int  # of the encoder, embeddings included, the task's head left out
    speed: Speed


def trials(contender: Contender, task: Task, tuning: TuningSettings, folder: Path) -> Iterator[tuple[Trial, bool]]:
    """The trials of all seeds, each as soon as it is ready, and whether it was found in the folder.

    Missing trials are trained, and each is written when it ends. A file belongs to one content of the encoder, one
    content of the task, one seed and all settings except the other seeds.

    Raises:
        DataError: a file in the folder is damaged.
        AzNeoBertError: transformers cannot read the encoder.
        TrainingError: the encoder takes no texts of that length, or a loss is not finite.
    """
    identities = {seed: _identity(contender, task, tuning, seed) for seed in tuning.seeds}
    files = {seed: folder / f"{task.name}-{sha256_of_json(one)[:16]}.json" for seed, one in identities.items()}
    for file in files.values():
        if file.exists():
            yield _read(file), True
    missing = tuple(seed for seed, file in files.items() if not file.exists())
    if not missing:
        return
    for result, trained in results(contender.folder, task, tuning, contender.weights, missing):
        trial = Trial(
            seed=result.seed,
            scores=result.scores,
            labels=list(result.labels),
            parameters=trained.model.base_model.num_parameters(),
            speed=measure_speed(trained, task, tuning),
        )
        write_json(files[result.seed], {"identity": identities[result.seed], "model": contender.name} | asdict(trial))
        yield trial, False


def _identity(contender: Contender, task: Task, tuning: TuningSettings, seed: int) -> dict[str, Any]:
    return {
        "encoder_sha256": contender.sha256,
        "weights": contender.weights,
        "data_sha256": task.sha256,
        "tuning": tuning.model_dump(mode="json", exclude={"seeds"}),
        "seed": seed,
    }


def _read(file: Path) -> Trial:
    try:
        content = read_json(file)
        return Trial(
            seed=content["seed"],
            scores=content["scores"],
            labels=[tuple(label) if isinstance(label, list) else label for label in content["labels"]],
            parameters=content["parameters"],
            speed=Speed(**content["speed"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); remove it, and that training is repeated") from None
