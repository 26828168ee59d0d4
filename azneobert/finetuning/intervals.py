"""How far a score would move with another test split and other seeds: percentile bootstrap intervals.

A resample is how many times each example is drawn. Every score is computed from these counts for many resamples at
once. This takes seconds; calling `score` a thousand times would take minutes.

Shapes: R resamples, N test examples, K classes, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from azneobert.finetuning.scores import named_tags
from azneobert.finetuning.task import UNSEEN, Label, Task

Array = NDArray[Any]
Scorer = Callable[[Array], Array]  # how often each example is drawn [R, N] -> the scores [R]

_CHUNK = 1 << 20  # resamples times examples at once: some tens of megabytes


def bootstrap(
    task: Task,
    gold: Sequence[Label],
    predictions: Sequence[Sequence[Label]],
    name: str,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the mean of the score `name` over runs.

    predictions: those of each run; the runs differ in their seed. Each resample draws test examples and runs, both with
    replacement, so the interval covers the chance of the test and of the seeds. With one run it covers the test's
    chance alone, and with two or three runs too little of the seeds' chance.
    """
    rng = np.random.default_rng(seed)
    scorers = [_scorer(task, gold, predicted, name) for predicted in predictions]
    means = [_mean_of_drawn_runs(scorers, drawn, rng) for drawn in _draws(len(gold), resamples, rng)]
    return _interval(np.concatenate(means), level)


def paired(
    task: Task,
    gold: Sequence[Label],
    ours: Sequence[Sequence[Label]],
    theirs: Sequence[Sequence[Label]],
    name: str,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """By how much our mean score exceeds theirs, with its interval: (difference, low, high).

    Both sides are scored on the same drawn test examples. Their runs are drawn separately and may differ in number.
    """
    rng = np.random.default_rng(seed)
    our_scorers = [_scorer(task, gold, predicted, name) for predicted in ours]
    their_scorers = [_scorer(task, gold, predicted, name) for predicted in theirs]
    whole = np.ones((1, len(gold)))
    difference = np.mean([s(whole) for s in our_scorers]) - np.mean([s(whole) for s in their_scorers])
    differences = [
        _mean_of_drawn_runs(our_scorers, drawn, rng) - _mean_of_drawn_runs(their_scorers, drawn, rng)
        for drawn in _draws(len(gold), resamples, rng)
    ]
    return float(difference), *_interval(np.concatenate(differences), level)


def _draws(examples: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """The resamples in chunks [R, N]: how often each example is drawn."""
    at_once = max(1, _CHUNK // examples)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        yield rng.multinomial(examples, np.full(examples, 1 / examples), size=rows).astype(np.float64)


def _mean_of_drawn_runs(scorers: Sequence[Scorer], drawn_RN: Array, rng: np.random.Generator) -> Array:
    runs = len(scorers)
    times_RS = rng.multinomial(runs, np.full(runs, 1 / runs), size=len(drawn_RN))
    scores_RS = np.stack([score(drawn_RN) for score in scorers], axis=1)
    means: Array = (times_RS * scores_RS).sum(axis=1) / runs
    return means


def _interval(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scorer(task: Task, gold: Sequence[Any], predicted: Sequence[Any], name: str) -> Scorer:
    if task.kind == "regression":
        return _correlation_scorer(np.asarray(gold, dtype=np.float64), np.asarray(predicted, dtype=np.float64), name)
    if task.has_entities and name != "accuracy":
        parts = _entity_counts(named_tags(task, gold), named_tags(task, predicted))
    else:
        parts = _class_counts(gold, predicted)
    formula = _FORMULAS[name]
    return lambda drawn_RN: formula(*((part_KN @ drawn_RN.T).T for part_KN in parts))


def _class_counts(gold: Sequence[Any], predicted: Sequence[Any]) -> tuple[Any, Any, Any]:
    """For each class and example, how many words are right in this class, belong to it, and were predicted as it.

    Three sparse matrices [K, N]. Where an example has a single label, the example itself counts as one word. A word
    that is `UNSEEN` was predicted as no class.
    """
    from scipy.sparse import csr_array

    labels = [np.atleast_1d(label) for label in gold]
    example = np.repeat(np.arange(len(labels)), [len(label) for label in labels])
    truth, guess = np.concatenate(labels), np.concatenate([np.atleast_1d(label) for label in predicted])
    shape = (int(max(truth.max(), guess.max())) + 1, len(labels))

    def counts(classes: Array, which: Array) -> Any:
        return csr_array((np.ones(len(which)), (classes, which)), shape=shape)

    right, seen = truth == guess, guess != UNSEEN
    return counts(truth[right], example[right]), counts(truth, example), counts(guess[seen], example[seen])


def _entity_counts(gold: list[list[str]], predicted: list[list[str]]) -> tuple[Array, Array, Array]:
    """For each sentence the number of right, true and predicted entities: three arrays [1, N]."""
    from seqeval.metrics.sequence_labeling import get_entities

    pairs = [(set(get_entities(truth)), set(get_entities(guess))) for truth, guess in zip(gold, predicted, strict=True)]
    counts = np.array([[len(truth & guess), len(truth), len(guess)] for truth, guess in pairs], dtype=np.float64)
    return counts[None, :, 0], counts[None, :, 1], counts[None, :, 2]


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where whole is 0, as in scikit-learn and seqeval."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _accuracy(right_RK: Array, gold_RK: Array, predicted_RK: Array) -> Array:
    return _ratio(right_RK.sum(axis=1), gold_RK.sum(axis=1))


def _macro_f1(right_RK: Array, gold_RK: Array, predicted_RK: Array) -> Array:
    occurring_RK = gold_RK + predicted_RK
    return _ratio(_ratio(2 * right_RK, occurring_RK).sum(axis=1), (occurring_RK > 0).sum(axis=1).astype(np.float64))


def _mcc(right_RK: Array, gold_RK: Array, predicted_RK: Array) -> Array:
    """Matthews' coefficient of many classes (Gorodkin, 2004)."""
    total = gold_RK.sum(axis=1)
    covariance = right_RK.sum(axis=1) * total - (gold_RK * predicted_RK).sum(axis=1)
    of_gold, of_predicted = total**2 - (gold_RK**2).sum(axis=1), total**2 - (predicted_RK**2).sum(axis=1)
    return _ratio(covariance, np.sqrt(of_gold * of_predicted))


# Each takes three arrays [R, K] of drawn counts: right, true and predicted.
_FORMULAS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "mcc": _mcc,
    "f1": lambda right, gold, predicted: _ratio(2 * right, gold + predicted)[:, 0],
    "precision": lambda right, gold, predicted: _ratio(right, predicted)[:, 0],
    "recall": lambda right, gold, predicted: _ratio(right, gold)[:, 0],
}


def _correlation_scorer(gold_N: Array, predicted_N: Array, name: str) -> Scorer:
    if name == "pearson":
        return lambda drawn_RN: _correlation(drawn_RN, gold_N[None], predicted_N[None])
    rank_gold, rank_predicted = _ranker(gold_N), _ranker(predicted_N)
    return lambda drawn_RN: _correlation(drawn_RN, rank_gold(drawn_RN), rank_predicted(drawn_RN))


def _ranker(values_N: Array) -> Scorer:
    """Ranks within a resample, [R, N] -> [R, N]; equal values share their mean rank. Sorts once, not per resample."""
    from scipy.sparse import csr_array

    distinct, place_N = np.unique(values_N, return_inverse=True)
    examples = np.arange(len(values_N))
    of_value = csr_array((np.ones(len(values_N)), (place_N, examples)), shape=(len(distinct), len(values_N)))

    def ranks(drawn_RN: Array) -> Array:
        times = (of_value @ drawn_RN.T).T
        ranked: Array = (np.cumsum(times, axis=1) - (times - 1) / 2)[:, place_N]
        return ranked

    return ranks


def _correlation(drawn_RN: Array, x_RN: Array, y_RN: Array) -> Array:
    (x_RN, of_x), (y_RN, of_y) = _centred(drawn_RN, x_RN), _centred(drawn_RN, y_RN)
    return _ratio((drawn_RN * x_RN * y_RN).sum(axis=1), np.sqrt(of_x * of_y))


def _centred(drawn_RN: Array, x_RN: Array) -> tuple[Array, Array]:
    """The deviations from the mean [R, N], and the sum of their squares [R]."""
    mean = (drawn_RN * x_RN).sum(axis=1, keepdims=True) / drawn_RN.sum(axis=1, keepdims=True)
    deviations = x_RN - mean
    squares = (drawn_RN * deviations**2).sum(axis=1)
    # Of a resample of one value over and over, only rounding is left, which must not pass for a correlation.
    return deviations, np.where(squares > 1e-24 * (drawn_RN * x_RN**2).sum(axis=1), squares, 0)
