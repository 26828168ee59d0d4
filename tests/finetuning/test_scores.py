"""What each kind of task is scored by."""

import warnings

import pytest

from azneobert.finetuning.scores import chance, main_score, score
from azneobert.finetuning.task import UNSEEN, Task

CLASSES = Task("reviews", "classification", ["mənfi", "müsbət", "neytral", "qarışıq"], {})
REGRESSION = Task("similarity", "regression", [], {})
ENTITIES = Task("names", "tokens", ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"], {})
B_LOC, B_PER, I_LOC, I_PER, OUT = range(5)
POS = Task("pos", "tokens", ["ADJ", "NOUN", "VERB"], {})
CHOICE = Task("questions", "choice", [], {})


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (CLASSES, "macro_f1"),
        (Task("nli", "pairs", ["no", "yes"], {}), "macro_f1"),
        (REGRESSION, "spearman"),
        (ENTITIES, "f1"),
        (POS, "accuracy"),
        (CHOICE, "accuracy"),
    ],
)
def test_the_main_score_is_the_one_that_the_field_reports(task, name):
    assert main_score(task) == name


def test_classes_are_scored_over_the_labels_that_occur():
    # The fourth label occurs nowhere: its F1 is no 0 in the mean.
    scores = score(CLASSES, [0, 0, 1, 2], [0, 1, 1, 2])
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert scores["mcc"] == pytest.approx((3 * 4 - 5) / ((16 - 6) * (16 - 6)) ** 0.5)
    assert score(CLASSES, [0, 0, 1, 2], [0, 0, 1, 3])["macro_f1"] == pytest.approx((1 + 1 + 0 + 0) / 4)


def test_regression_is_scored_by_order_and_by_straightness():
    scores = score(REGRESSION, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 80.0])
    assert scores["spearman"] == pytest.approx(1)
    assert 0.5 < scores["pearson"] < 0.9
    assert score(REGRESSION, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx({"spearman": -1, "pearson": -1})


@pytest.mark.parametrize(("gold", "predicted"), [([1.0, 2.0], [0.3, 0.3]), ([2.0, 2.0], [1.0, 3.0])])
def test_a_constant_orders_nothing_and_has_a_correlation_of_0(gold, predicted):
    assert score(REGRESSION, gold, predicted) == {"spearman": 0, "pearson": 0}


def test_entities_count_whole():
    gold = [(B_PER, I_PER, OUT, B_LOC), (B_LOC, OUT)]
    predicted = [(B_PER, OUT, OUT, B_LOC), (B_LOC, B_PER)]
    assert score(ENTITIES, gold, predicted) == pytest.approx(
        {"f1": 2 * 2 / (3 + 4), "precision": 2 / 4, "recall": 2 / 3, "accuracy": 4 / 6}
    )


def test_entities_are_read_as_conlleval_reads_them():
    # An I- tag that continues nothing begins an entity; a B- tag after its own type begins another.
    assert score(ENTITIES, [(OUT, B_LOC, I_LOC)], [(OUT, I_LOC, I_LOC)])["f1"] == 1
    assert score(ENTITIES, [(B_PER, B_LOC)], [(B_PER, I_LOC)])["f1"] == 1
    assert score(ENTITIES, [(B_PER, I_PER)], [(B_PER, B_PER)])["f1"] == 0
    # No entity goes on in the next sentence.
    assert score(ENTITIES, [(B_PER,), (B_PER,)], [(B_PER,), (I_PER,)])["f1"] == 1


def test_where_no_entity_is_found_the_scores_are_0():
    assert score(ENTITIES, [(OUT, OUT)], [(OUT, OUT)]) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 1}


def test_plain_tags_are_scored_by_word():
    scores = score(POS, [(0, 1, 2), (1,)], [(0, 1, 1), (1,)])
    assert scores == pytest.approx({"accuracy": 3 / 4, "macro_f1": (1 + 4 / 5 + 0) / 3})


def test_an_unseen_word_is_wrong_whatever_its_label_is():
    scores = score(POS, [(0, 1, 2), (1,)], [(UNSEEN, 1, 2), (1,)])
    assert scores == pytest.approx({"accuracy": 3 / 4, "macro_f1": (0 + 1 + 1) / 3})
    # Of the last tag too, which is the one that Python finds at -1.
    assert score(POS, [(2,)], [(UNSEEN,)]) == {"accuracy": 0, "macro_f1": 0}
    names = Task("names", "tokens", ["B-LOC", "B-PER"], {})
    assert score(names, [(0, 1, 1)], [(0, UNSEEN, 1)]) == pytest.approx(
        {"f1": 2 * 2 / (3 + 2), "precision": 1, "recall": 2 / 3, "accuracy": 2 / 3}
    )


def test_answers_are_scored_by_accuracy_alone():
    assert score(CHOICE, [0, 3, 1], [0, 3, 2]) == pytest.approx({"accuracy": 2 / 3})


def test_chance_is_the_most_frequent_label_of_the_test():
    assert chance(CLASSES, [1, 1, 2, 0])["accuracy"] == 0.5
    assert chance(CLASSES, [1, 1, 2, 0])["mcc"] == 0
    assert chance(CHOICE, [3, 3, 3, 0]) == {"accuracy": 0.75}
    assert chance(POS, [(1, 1, 1), (0, 2)])["accuracy"] == 3 / 5
    assert chance(ENTITIES, [(OUT, OUT, B_LOC)]) == pytest.approx(
        {"f1": 0, "precision": 0, "recall": 0, "accuracy": 2 / 3}
    )
    assert chance(REGRESSION, [1.0, 2.0]) == {"spearman": 0, "pearson": 0}
