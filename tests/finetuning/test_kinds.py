"""Examples become rows of a model's inputs, and what the model makes of the rows becomes the examples' predictions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from azneobert.finetuning.kinds.interface import IGNORED
from azneobert.finetuning.kinds.known import kind_of
from azneobert.finetuning.task import UNSEEN, Example, Task
from azneobert.pretrained import load_tokenizer

WORDS = ["bakı", "gözəl", "şəhər", "dağ", "su", "çay", "ev", "üz", "ağ"]
DROPPED = "\u200b"  # the tokenizer of an export takes it away


@pytest.fixture(scope="module")
def tokenizer(encoder):
    return load_tokenizer(encoder)


@pytest.fixture(scope="module")
def word_tokenizer(encoder):
    return load_tokenizer(encoder, split_words=True)


def _task(kind, labels=()):
    return Task("task", kind, list(labels), {})


def _shuffled(rows):
    return random.Random(3).sample(rows, len(rows))


def _one_hot(numbers, width):
    return np.eye(width)[numbers] * 9.0


@pytest.mark.parametrize("pair", [None, "dağ su"])
def test_the_most_probable_label_goes_to_its_example_whatever_the_order_of_the_rows(tokenizer, pair):
    kind, task = kind_of("pairs" if pair else "classification"), _task("classification", ["a", "b", "c"])
    examples = [Example("here", " ".join(WORDS[: 1 + n]), n % 3, pair) for n in range(7)]
    rows = _shuffled(kind.encode(tokenizer, task, examples, 64).rows)
    assert [row.inputs["labels"] for row in rows] == [row.owner % 3 for row in rows]
    found = kind.decode(_one_hot([row.inputs["labels"] for row in rows], 3), rows, task, examples)
    assert found.labels == [one.label for one in examples]
    assert found.confidences == pytest.approx([1 / (1 + 2 * np.exp(-9.0))] * 7)


def test_a_number_is_given_as_it_is(tokenizer):
    kind, task = kind_of("regression"), _task("regression")
    examples = [Example("here", "dağ", n / 2, "su") for n in range(5)]
    rows = _shuffled(kind.encode(tokenizer, task, examples, 64).rows)
    outputs = np.array([[row.inputs["labels"]] for row in rows])
    assert kind.decode(outputs, rows, task, examples).labels == [one.label for one in examples]
    assert kind.head(task)["num_labels"] == 1


def test_both_texts_of_a_pair_are_read_and_the_longer_one_is_cut_first(tokenizer):
    long, short = " ".join(WORDS * 4), "dağ su"
    kind, task = kind_of("pairs"), _task("pairs", ["no", "yes"])
    examples = [Example("here", long, 0, short), Example("here", short, 1, long), Example("here", short, 1, short)]
    encoded = kind.encode(tokenizer, task, examples, 24)
    first, second = (tokenizer.decode(row.inputs["input_ids"]) for row in encoded.rows[:2])
    assert [len(row.inputs["input_ids"]) for row in encoded.rows[:2]] == [24, 24]
    assert tokenizer.decode(tokenizer(short)["input_ids"], skip_special_tokens=True) in first
    assert second.split("[SEP]")[0] == tokenizer.decode(tokenizer(short)["input_ids"]).split("[SEP]")[0]
    assert encoded.truncated == 2


@pytest.mark.parametrize(("max_length", "cut"), [(64, 0), (16, 3), (4, 9)])
def test_texts_that_are_longer_than_the_model_takes_are_counted(tokenizer, max_length, cut):
    examples = [Example("here", " ".join(["dağ"] * (n * n)), 0) for n in range(2, 11)]
    lengths = [len(tokenizer(one.text)["input_ids"]) for one in examples]
    encoded = kind_of("classification").encode(tokenizer, _task("classification", ["a", "b"]), examples, max_length)
    assert encoded.truncated == sum(length > max_length for length in lengths)
    assert [len(row.inputs["input_ids"]) for row in encoded.rows] == [min(n, max_length) for n in lengths]


def test_each_answer_is_a_pair_with_its_question(tokenizer):
    kind, task = kind_of("choice"), _task("choice")
    examples = [
        Example("here", "bakı gözəl", 1, choices=("su", "dağ")),
        Example("there", "ev", 2, choices=("çay", "ev", "üz")),
        Example("there", "ev " * 60, 0, choices=("çay", "üz " * 60)),
    ]
    encoded = kind.encode(tokenizer, task, examples, 32)
    assert [(row.owner, row.mark) for row in encoded.rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert [row.inputs["labels"] for row in encoded.rows] == [0, 1, 0, 0, 1, 1, 0]
    assert encoded.rows[1].inputs["input_ids"] == tokenizer("bakı gözəl", "dağ")["input_ids"]
    assert encoded.truncated == 1, "an example of which two answers are cut counts once"
    rows = _shuffled(encoded.rows)
    odds = {(0, 0): -1.0, (0, 1): 2.0, (1, 0): -3.0, (1, 1): -2.0, (1, 2): -1.0, (2, 0): 0.5, (2, 1): 0.0}
    found = kind.decode(np.array([[0.0, odds[row.owner, row.mark]] for row in rows]), rows, task, examples)
    assert found.labels == [1, 2, 0], "also where no answer is more probably right than wrong"
    assert found.confidences[0] == pytest.approx(1 / (1 + np.exp(-3.0)))


# Words


def _sentence(words, tags=None):
    return Example("here", tuple(words), tuple(tags or (n % 2 for n in range(len(words)))))


def _outputs(kind, rows, tags):
    """What `reduce` keeps of logits that are certain of the labels, and say the tag `tags` everywhere else."""
    longest = max(len(row.inputs["input_ids"]) for row in rows)
    logits = torch.zeros(len(rows), longest, tags + 1)
    logits[..., tags] = 5
    for number, row in enumerate(rows):
        for position, label in enumerate(row.inputs["labels"]):
            if label != IGNORED:
                logits[number, position, label] = 9
    return kind.reduce(logits).numpy()


def test_a_tag_stands_at_the_first_piece_of_its_word_alone(word_tokenizer):
    kind, task = kind_of("tokens"), _task("tokens", ["O", "B-X"])
    words = ["bakı", "ölkəmizdir", "dağ"]
    [row] = kind.encode(word_tokenizer, task, [_sentence(words, (1, 0, 1))], 64).rows
    encoding = word_tokenizer(words, is_split_into_words=True)
    first = [encoding.word_ids().index(word) for word in range(3)]
    assert max(np.diff(first)) > 1, "a word of several pieces is what this is about"
    assert [p for p, label in enumerate(row.inputs["labels"]) if label != IGNORED] == first
    assert [row.inputs["labels"][position] for position in first] == [1, 0, 1]
    assert row.mark == list(zip(first, range(3), strict=True))


def test_each_word_of_a_long_sentence_is_predicted_once_away_from_the_ends(word_tokenizer):
    kind, task = kind_of("tokens"), _task("tokens", ["O", "B-X"])
    examples = [_sentence([WORDS[n % len(WORDS)] for n in range(100)]), _sentence(["su"])]
    encoded = kind.encode(word_tokenizer, task, examples, 24)
    rows = [row for row in encoded.rows if row.owner == 0]
    assert len(rows) > 8
    assert max(len(row.inputs["input_ids"]) for row in rows) == 24
    assert sorted(word for row in rows for _, word in row.mark) == list(range(100))
    for number, row in enumerate(rows):
        for position, word in row.mark:
            near = min(position, len(row.inputs["input_ids"]) - 1 - position)
            assert near > 2 or (number == 0 and position <= 3) or (number == len(rows) - 1 and word > 95)
            assert row.inputs["labels"][position] == word % 2
        assert sum(label != IGNORED for label in row.inputs["labels"]) == len(row.mark)
    shuffled = _shuffled(encoded.rows)
    found = kind.decode(_outputs(kind, shuffled, 2), shuffled, task, examples)
    assert found.labels == [one.label for one in examples]


def test_a_word_that_fills_windows_has_its_tag_at_its_first_piece(word_tokenizer):
    """Regression: a first word that was longer than a window had it at the first piece of the last window."""
    kind, task = kind_of("tokens"), _task("tokens", ["O", "B-X"])
    link = "https://" + "qəzet/" * 20
    rows = kind.encode(word_tokenizer, task, [_sentence([link, "su"], (1, 0))], 24).rows
    [(position, row)] = [(position, row) for row in rows for position, word in row.mark if word == 0]
    whole = word_tokenizer([link], is_split_into_words=True)["input_ids"]
    assert len(whole) > 60
    assert position == 1
    assert row.inputs["input_ids"][:20] == whole[:20]


def test_a_word_without_a_piece_is_in_no_entity_and_a_sentence_of_such_words_is_not_read(word_tokenizer):
    """Regression: the loss of a batch in which no position has a label is not a number."""
    kind, task = kind_of("tokens"), _task("tokens", ["B-X", "O"])
    examples = [_sentence(["su", DROPPED, "dağ"], (0, 0, 0)), _sentence([DROPPED, DROPPED], (0, 0))]
    encoded = kind.encode(word_tokenizer, task, examples, 24)
    assert [[word for _, word in row.mark] for row in encoded.rows] == [[0, 2]]
    found = kind.decode(_outputs(kind, encoded.rows, 2), encoded.rows, task, examples)
    assert found.labels == [(0, 1, 0), (1, 1)]
    assert encoded.unseen == 3


def test_without_an_o_a_word_without_a_piece_has_no_tag(word_tokenizer):
    """Regression: it had the first tag, and was right wherever that was its label."""
    kind, task = kind_of("tokens"), _task("tokens", ["ADJ", "NOUN"])
    examples = [_sentence(["su", DROPPED, "dağ"], (1, 0, 1)), _sentence([DROPPED], (0,)), _sentence(["ev"], (1,))]
    encoded = kind.encode(word_tokenizer, task, examples, 24)
    found = kind.decode(_outputs(kind, encoded.rows, 2), encoded.rows, task, examples)
    assert found.labels == [(1, UNSEEN, 1), (UNSEEN,), (1,)]
    assert found.confidences[:2] == [0, 0]
    assert found.confidences[2] > 0.9
    assert encoded.unseen == 2


def test_a_sentence_is_as_sure_as_its_least_sure_word(word_tokenizer):
    kind, task = kind_of("tokens"), _task("tokens", ["O", "B-X"])
    examples = [_sentence(["su", "dağ", "ev"])]
    [row] = kind.encode(word_tokenizer, task, examples, 24).rows
    outputs = np.ones((1, len(row.inputs["input_ids"]), 2))
    outputs[0, row.mark[1][0], 1] = 0.25
    outputs[0, 0, 1] = 0.1  # of [CLS], which is no word
    assert kind.decode(outputs, [row], task, examples).confidences == [0.25]


@pytest.mark.parametrize("name", ["classification", "pairs", "tokens"])
def test_the_head_has_a_class_for_each_label(name):
    assert kind_of(name).head(_task(name, ["O", "B-X"])) | {"problem_type": ""} == {
        "id2label": {0: "O", 1: "B-X"},
        "label2id": {"O": 0, "B-X": 1},
        "problem_type": "",
    }
