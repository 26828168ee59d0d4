"""Intervals are those of the plain loop over resamples, and hold the true score as often as they say."""

import numpy as np
import pytest

from azneobert.finetuning.intervals import _draws, _scorer, bootstrap, paired
from azneobert.finetuning.scores import score
from azneobert.finetuning.task import UNSEEN, Task

RNG = np.random.default_rng(3)
CLASSES = Task("reviews", "classification", list("abcd"), {})
REGRESSION = Task("similarity", "regression", [], {})
ENTITIES = Task("names", "tokens", ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"], {})
POS = Task("pos", "tokens", ["ADJ", "NOUN", "VERB"], {})
ALL_ENTITIES = Task("all names", "tokens", ["B-LOC", "B-PER", "I-PER"], {})
CHOICE = Task("questions", "choice", [], {})


def _sentences(tags, count):
    return [tuple(RNG.integers(0, tags, size=1 + n % 7).tolist()) for n in range(count)]


# Rounded, so that there are ties.
_NUMBERS = RNG.normal(size=40).round(1)
GOLD = {
    CLASSES.name: RNG.integers(0, 3, 40).tolist(),
    REGRESSION.name: _NUMBERS.tolist(),
    ENTITIES.name: _sentences(5, 40),
    POS.name: _sentences(3, 40),
    CHOICE.name: RNG.integers(0, 4, 40).tolist(),
}
RUNS = {
    CLASSES.name: [RNG.integers(0, 4, 40).tolist() for _ in range(3)],
    REGRESSION.name: [(_NUMBERS + RNG.normal(size=40)).round(1).tolist() for _ in range(3)],
    ENTITIES.name: [_sentences(5, 40) for _ in range(3)],
    POS.name: [_sentences(3, 40) for _ in range(3)],
    CHOICE.name: [RNG.integers(0, 4, 40).tolist() for _ in range(3)],
}
EACH_SCORE = pytest.mark.parametrize(
    ("task", "name"),
    [
        *((CLASSES, name) for name in ("accuracy", "macro_f1", "mcc")),
        *((REGRESSION, name) for name in ("spearman", "pearson")),
        *((ENTITIES, name) for name in ("f1", "precision", "recall", "accuracy")),
        *((POS, name) for name in ("accuracy", "macro_f1")),
        (CHOICE, "accuracy"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)


def _looped(task, gold, predicted, name, drawn):
    """The plain way: `score` on the examples of each resample, each as often as it was drawn."""
    resamples = [np.repeat(np.arange(len(gold)), times.astype(int)) for times in drawn]
    return [score(task, [gold[i] for i in r], [predicted[i] for i in r])[name] for r in resamples]


@EACH_SCORE
def test_every_resample_scores_what_score_says_of_it(task, name):
    gold, predicted = GOLD[task.name], RUNS[task.name][0]
    (drawn,) = _draws(len(gold), 60, np.random.default_rng(1))
    assert _scorer(task, gold, predicted, name)(drawn) == pytest.approx(_looped(task, gold, predicted, name, drawn))


@pytest.mark.parametrize(
    ("task", "name"),
    [*((POS, name) for name in ("accuracy", "macro_f1")), *((ALL_ENTITIES, name) for name in ("f1", "accuracy"))],
)
def test_unseen_words_are_scored_as_score_does(task, name):
    gold, predicted = GOLD[POS.name], [(UNSEEN, *tags[1:]) for tags in RUNS[POS.name][0]]
    (drawn,) = _draws(len(gold), 60, np.random.default_rng(1))
    assert _scorer(task, gold, predicted, name)(drawn) == pytest.approx(_looped(task, gold, predicted, name, drawn))


@EACH_SCORE
def test_the_interval_is_that_of_the_plain_loop_over_examples_and_runs(task, name):
    gold, runs = GOLD[task.name], RUNS[task.name]
    rng = np.random.default_rng(5)
    (drawn,) = _draws(len(gold), 50, rng)
    scores = np.transpose([_looped(task, gold, run, name, drawn) for run in runs])
    means = (scores * rng.multinomial(3, [1 / 3] * 3, size=50)).sum(axis=1) / 3
    expected = np.quantile(means, [0.05, 0.95])
    assert bootstrap(task, gold, runs, name, resamples=50, level=0.9, seed=5) == pytest.approx(tuple(expected))


@EACH_SCORE
def test_a_difference_is_that_of_the_mean_scores_and_lies_in_its_interval(task, name):
    gold, (first, second, third) = GOLD[task.name], RUNS[task.name]
    difference, low, high = paired(task, gold, [first, second], [third], name)
    one, two, three = (score(task, gold, run)[name] for run in RUNS[task.name])
    assert difference == pytest.approx((one + two) / 2 - three)
    assert low < difference < high


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_a_constant_prediction_has_a_correlation_of_0_in_every_resample(name):
    # The mean of many 0.1 is not 0.1 to the last bit.
    assert bootstrap(REGRESSION, [float(n) for n in range(50)], [[0.1] * 50], name) == (0, 0)


def test_more_resamples_than_are_held_at_once_give_as_many_scores(monkeypatch):
    monkeypatch.setattr("azneobert.finetuning.intervals._CHUNK", 100)
    chunks = list(_draws(40, 7, np.random.default_rng(0)))
    assert [chunk.shape for chunk in chunks] == [(2, 40)] * 3 + [(1, 40)]
    assert all((chunk.sum(axis=1) == 40).all() for chunk in chunks)


def test_the_same_seed_gives_the_same_interval():
    gold, runs = GOLD[CLASSES.name], RUNS[CLASSES.name]
    assert bootstrap(CLASSES, gold, runs, "accuracy") == bootstrap(CLASSES, gold, runs, "accuracy")
    assert bootstrap(CLASSES, gold, runs, "accuracy") != bootstrap(CLASSES, gold, runs, "accuracy", seed=1)


def test_paired_examples_tell_apart_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    gold = [0] * 400
    theirs = (rng.random(400) < 0.3).astype(int)
    ours = np.where(rng.random(400) < 0.15, 0, theirs)  # right wherever they are, and in some of their mistakes
    _, low, _ = paired(CLASSES, gold, [ours.tolist()], [theirs.tolist()], "accuracy")
    assert low > 0
    our_low, _ = bootstrap(CLASSES, gold, [ours.tolist()], "accuracy")
    _, their_high = bootstrap(CLASSES, gold, [theirs.tolist()], "accuracy")
    assert our_low < their_high


def test_runs_that_differ_widen_the_interval():
    gold = [0] * 1000
    alike = [[0] * 800 + [1] * 200] * 5
    apart = [[0] * right + [1] * (1000 - right) for right in (600, 700, 800, 900, 1000)]
    (low, high), (wide_low, wide_high) = (bootstrap(CLASSES, gold, runs, "accuracy") for runs in (alike, apart))
    assert wide_high - wide_low > 1.5 * (high - low)


@pytest.mark.parametrize(("name", "truth"), [("accuracy", 0.8), ("mcc", 0.6)])
def test_nineteen_of_twenty_intervals_hold_the_true_score(name, truth):
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(200):
        gold = rng.integers(0, 2, 200)
        predicted = np.where(rng.random(200) < 0.8, gold, 1 - gold)
        low, high = bootstrap(CLASSES, gold.tolist(), [predicted.tolist()], name, resamples=400)
        held += low <= truth <= high
    assert 0.9 <= held / 200 <= 0.98


def test_intervals_of_spearman_hold_the_true_correlation():
    rng = np.random.default_rng(12)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # of two normal variables of which Pearson's is 0.6
    held = 0
    for _ in range(200):
        gold = rng.normal(size=200)
        predicted = 0.6 * gold + 0.8 * rng.normal(size=200)
        low, high = bootstrap(REGRESSION, gold.tolist(), [predicted.tolist()], "spearman", resamples=400)
        held += low <= truth <= high
    assert 0.9 <= held / 200 <= 0.98
