"""What a frozen encoder knows: how a linear model and nearest neighbours score on its vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from azneobert.errors import DataError
from azneobert.finetuning.embedding import Array, Vectors, embed
from azneobert.finetuning.scores import main_score, most_frequent, score
from azneobert.finetuning.task import Label, Task
from azneobert.task_settings import Split, TuningSettings

_NEIGHBOURS = 5
_MOST_VECTORS = 20_000  # training vectors, so that a probe takes minutes: a tokens task has one for each word
_INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of logistic regression, strongest penalty first
_PENALTIES = (10_000.0, 1_000.0, 100.0, 10.0, 1.0)  # alpha of ridge regression


def probe(encoder: Path, task: Task, settings: TuningSettings) -> dict[str, dict[str, float]]:
    """The test scores of models that learn from the vectors of the training split, or from 20,000 of them.

    `linear`: logistic or ridge regression on standardised vectors, with the penalty that is best on validation; in a
    choice task it gives the answer that is likeliest to be right. `knn`: the five nearest neighbours by cosine; not for
    a choice task. A word without a vector gets the most frequent tag.

    Raises:
        AzNeoBertError: transformers cannot load the encoder.
        DataError: all labels of the training split are the same.
    """
    vectors = embed(encoder, task, settings.max_length, settings.batch_size)
    x, y = _learned_from(task, vectors["train"])

    def scores(model: Any, split: Split) -> dict[str, float]:
        gold = [example.label for example in task.splits[split]]
        return score(task, gold, _predicted(task, model, split, vectors[split]))

    models = [model.fit(x, y) for model in _linear_models(task)]
    best = max(models, key=lambda model: scores(model, "validation")[main_score(task)])
    found = {"linear": scores(best, "test")}
    if task.kind != "choice":
        found["knn"] = scores(_nearest(task, len(x)).fit(x, y), "test")
    return found


def _learned_from(task: Task, vectors: Vectors) -> tuple[Array, Array]:
    chosen = np.random.default_rng(0).permutation(len(vectors.values))[:_MOST_VECTORS]
    examples = task.splits["train"]
    targets = [
        _target(task, examples[example].label, part)
        for example, part in zip(vectors.example[chosen], vectors.part[chosen], strict=True)
    ]
    if task.kind != "regression" and len(set(targets)) < 2:
        raise DataError(f"{task.name}: all labels of the training split are the same; expected two of them at least")
    return vectors.values[chosen], np.array(targets)


def _target(task: Task, label: Label, part: int) -> int | float:
    if task.kind == "choice":
        return int(label == part)
    return label[part] if isinstance(label, tuple) else label


def _linear_models(task: Task) -> list[Any]:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task.kind == "regression":
        return [make_pipeline(StandardScaler(), Ridge(penalty)) for penalty in _PENALTIES]
    return [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)) for c in _INVERSE_PENALTIES]


def _nearest(task: Task, examples: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsRegressor if task.kind == "regression" else KNeighborsClassifier
    return kind(min(_NEIGHBOURS, examples), metric="cosine")


def _predicted(task: Task, model: Any, split: Split, vectors: Vectors) -> list[Label]:
    """A prediction for each example of the split, in the shape of `Example.label`."""
    examples = task.splits[split]
    if task.kind == "choice":
        right = model.predict_proba(vectors.values)[:, 1]
        return [int(right[vectors.example == number].argmax()) for number in range(len(examples))]
    values: list[Any] = model.predict(vectors.values).tolist()
    if task.kind != "tokens":
        return values
    unseen = most_frequent([example.label for example in task.splits["train"]])
    tags = [[unseen] * len(example.text) for example in examples]
    for value, example, part in zip(values, vectors.example, vectors.part, strict=True):
        tags[example][part] = value
    return [tuple(of_example) for of_example in tags]
