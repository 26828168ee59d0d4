"""A probe learns what the frozen vectors hold, chooses on validation, and is scored on the test."""

import random

import pytest
from toy import ROOT

from azneobert.errors import DataError
from azneobert.finetuning import probe as probe_module
from azneobert.finetuning.probe import probe
from azneobert.finetuning.task import Example, Task
from azneobert.recipe import load_recipe

SETTINGS = load_recipe(ROOT / "recipes" / "sample.yaml").finetuning.model_copy(update={"max_length": 32})
GOOD, BAD, OTHERS = ["gözəl", "ağ"], ["dağ", "su"], ["bakı", "şəhər", "çay", "ev", "üz"]


def _task(kind, labels, make, count=60):
    """A task of which each split has other examples, which `make` makes of random numbers."""
    numbers = random.Random(4)
    splits = {split: [make(numbers) for _ in range(count)] for split in ("train", "validation", "test")}
    return Task("task", kind, labels, splits)


def _sentence(numbers, words):
    return " ".join([numbers.choice(OTHERS), numbers.choice(words), numbers.choice(words), numbers.choice(OTHERS)])


def _opinion(numbers):
    label = numbers.randrange(2)
    return Example("here", _sentence(numbers, (BAD, GOOD)[label]), label)


def test_classes_that_the_words_tell_are_found(encoder):
    found = probe(encoder, _task("classification", ["bad", "good"], _opinion), SETTINGS)
    assert found.keys() == {"linear", "knn"}
    assert found["linear"]["macro_f1"] > 0.95
    assert found["knn"]["macro_f1"] > 0.9


def test_labels_that_nothing_tells_are_not_found(encoder):
    task = _task("classification", ["bad", "good"], lambda n: Example("here", _sentence(n, OTHERS), n.randrange(2)))
    assert 0.25 < probe(encoder, task, SETTINGS)["linear"]["accuracy"] < 0.75


def test_pairs_are_told_by_both_texts(encoder):
    def make(numbers):
        first, second = numbers.randrange(2), numbers.randrange(2)
        texts = [_sentence(numbers, (BAD, GOOD)[which]) for which in (first, second)]
        return Example("here", texts[0], int(first == second), pair=texts[1])

    found = probe(encoder, _task("pairs", ["other", "same"], make, count=120), SETTINGS)
    assert found["linear"]["accuracy"] > 0.8
    assert found["knn"]["accuracy"] > 0.8


def test_a_number_is_told(encoder):
    def make(numbers):
        good = numbers.randrange(6)
        return Example("here", " ".join([*GOOD[:1] * good, *BAD[:1] * (5 - good)]), good / 2)

    found = probe(encoder, _task("regression", [], make), SETTINGS)
    assert found["linear"]["spearman"] > 0.95
    assert found["knn"]["pearson"] > 0.95


def _words(numbers):
    # Each is told by its first token: of `gözəl`, `üz` and others that is, in this small vocabulary, the space alone.
    words = [numbers.choice(["ağ", "dağ", "su", "bakı", "ev"]) for _ in range(5)]
    return Example("here", tuple(words), tuple(int(word not in ("ağ", "dağ")) for word in words))


def test_words_are_told_apart(encoder):
    found = probe(encoder, _task("tokens", ["B-GOOD", "O"], _words, count=200), SETTINGS)
    assert found["linear"]["f1"] > 0.85
    assert found["knn"]["f1"] > 0.85


@pytest.mark.parametrize(("tag", "right"), [(0, 0), (1, 0.85)])
def test_words_beyond_the_longest_length_are_given_the_most_frequent_tag(encoder, tag, right):
    task = _task("tokens", ["B-GOOD", "O"], _words)
    # At two tokens a word, the model reads 15 of these.
    task.splits["test"] = [Example("here", ("bakı",) * 100, (0,) * 15 + (tag,) * 85)]
    for scores in probe(encoder, task, SETTINGS).values():
        assert right <= scores["accuracy"] <= right + 0.15


def test_the_likeliest_answer_is_given(encoder):
    def make(numbers):
        right = numbers.randrange(3)
        choices = [_sentence(numbers, GOOD if place == right else BAD) for place in range(3)]
        return Example("here", numbers.choice(OTHERS), right, choices=tuple(choices))

    found = probe(encoder, _task("choice", [], make), SETTINGS)
    assert found.keys() == {"linear"}
    assert found["linear"]["accuracy"] > 0.9


def test_it_learns_from_no_more_vectors_than_it_takes_at_most(encoder, monkeypatch):
    def make(numbers):
        return Example("here", ("su", "gözəl") * 3, (0, 1) * 3)

    task = _task("tokens", ["N", "A"], make, count=5)
    monkeypatch.setattr(probe_module, "_MOST_VECTORS", 12)
    x, y = probe_module._learned_from(task, probe_module.embed(encoder, task, 32, 4)["train"])
    assert len(x) == len(y) == 12
    assert set(y) == {0, 1}


def test_one_label_alone_is_refused(encoder):
    task = _task("classification", ["bad", "good"], lambda numbers: Example("here", "su", 1), count=3)
    with pytest.raises(DataError, match=r"task: all labels of the training split are the same; expected two"):
        probe(encoder, task, SETTINGS)
