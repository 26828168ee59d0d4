"""The scores of predictions, for each kind of task: scikit-learn, scipy and seqeval compute them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from azneobert.finetuning.task import OUTSIDE, UNSEEN, Label, Task

_MAIN = {
    "classification": "macro_f1",
    "pairs": "macro_f1",
    "regression": "spearman",
    "tokens": "accuracy",
    "choice": "accuracy",
}


def main_score(task: Task) -> str:
    """The score by which an epoch, a probe or an encoder is chosen; the higher, the better."""
    return "f1" if task.has_entities else _MAIN[task.kind]


def score(task: Task, gold: Sequence[Label], predicted: Sequence[Label]) -> dict[str, float]:
    """The scores of predictions, from 0 to 1; correlations and `mcc` from -1.

    classification, pairs: `accuracy`, `macro_f1` over the labels that occur in either, and `mcc`.
    regression: `spearman`, `pearson`; 0 where all predictions are one number, since they order nothing.
    tokens with entities: `f1`, `precision` and `recall` of whole entities, and the words' `accuracy`. Entities are read
    as conlleval does, seqeval's default mode: an I- tag after another type, or after O, begins an entity.
    Other tokens: the words' `accuracy` and `macro_f1`. choice: `accuracy`.

    A word that is `UNSEEN` is wrong, and found in no entity; as it is no label, `macro_f1` has no class for it.
    """
    if task.kind == "regression":
        return _correlations(gold, predicted)
    if task.has_entities:
        return _entity_scores(named_tags(task, gold), named_tags(task, predicted))
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    truth, guesses = classes(gold), classes(predicted)
    scores = {"accuracy": accuracy_score(truth, guesses)}
    if task.kind != "choice":
        occurring = sorted({*truth, *guesses} - {UNSEEN})
        scores["macro_f1"] = f1_score(truth, guesses, labels=occurring, average="macro")
    if task.kind in ("classification", "pairs"):
        scores["mcc"] = matthews_corrcoef(truth, guesses)
    return {name: float(value) for name, value in scores.items()}


def chance(task: Task, gold: Sequence[Label]) -> dict[str, float]:
    """The scores of always giving the most frequent label of `gold`; 0 for regression."""
    if task.kind == "regression":
        return score(task, gold, [0.0] * len(gold))
    usual = most_frequent(gold)
    constant = [(usual,) * len(label) if isinstance(label, tuple) else usual for label in gold]
    return score(task, gold, constant)


def most_frequent(labels: Sequence[Label]) -> int:
    """The class that most examples, or most words, have; of equally frequent classes the first."""
    ((usual, _),) = Counter(classes(labels)).most_common(1)
    return usual


def classes(labels: Sequence[Any]) -> list[int]:
    """The class of each thing that is classified: of each word in a tokens task, else of each example."""
    return [tag for label in labels for tag in (label if isinstance(label, tuple) else (label,))]


def named_tags(task: Task, labels: Sequence[Any]) -> list[list[str]]:
    """The names of the tags of each example of a task with entities; an unseen word is in none."""
    return [[OUTSIDE if tag == UNSEEN else task.labels[tag] for tag in tags] for tags in labels]


def _entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    return {
        "f1": float(f1_score(gold, predicted, zero_division=0)),
        "precision": float(precision_score(gold, predicted, zero_division=0)),
        "recall": float(recall_score(gold, predicted, zero_division=0)),
        "accuracy": float(accuracy_score(gold, predicted)),
    }


def _correlations(gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    # A correlation with a constant is undefined: scipy warns and gives NaN.
    if len(set(gold)) < 2 or len(set(predicted)) < 2:
        return {"spearman": 0.0, "pearson": 0.0}
    from scipy.stats import pearsonr, spearmanr

    return {
        "spearman": float(spearmanr(gold, predicted).statistic),
        "pearson": float(pearsonr(gold, predicted).statistic),
    }
