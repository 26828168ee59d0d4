"""The vectors are the encoder's own, whatever else stands in the batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from azneobert.finetuning.embedding import embed
from azneobert.finetuning.task import Example, Task
from azneobert.pretrained import load_tokenizer

TEXTS = ["bakı gözəl şəhər", "dağ", "çay evdir gözəl ölkəmiz ağ dağlər üz su çay", "su üz"]


def _task(kind, examples, labels=()):
    return Task("task", kind, list(labels), {"train": examples})


def _texts(*texts):
    return _task("classification", [Example("here", text, 0) for text in texts], ["no"])


def _states(encoder, *texts, **options):
    """The last hidden states of one text alone, and its encoding."""
    tokenizer = load_tokenizer(encoder, split_words=options.get("is_split_into_words", False))
    encoded = tokenizer(*texts, return_tensors="pt", **options)
    with torch.no_grad():
        return AutoModel.from_pretrained(encoder).eval()(**encoded).last_hidden_state[0].numpy(), encoded.encodings[0]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_text_has_the_mean_of_its_tokens_whatever_it_is_batched_with(encoder, batch_size):
    vectors = embed(encoder, _texts(*TEXTS), 64, batch_size)["train"]
    for vector, text in zip(vectors.values, TEXTS, strict=True):
        states, encoding = _states(encoder, text)
        assert sum(encoding.special_tokens_mask) == 2
        assert vector == pytest.approx(states[1:-1].mean(axis=0), abs=1e-5)
    assert vectors.example.tolist() == [0, 1, 2, 3]


def test_a_text_is_cut_at_the_longest_length(encoder):
    (vector,) = embed(encoder, _texts(TEXTS[2]), 8, 4)["train"].values
    states, _ = _states(encoder, TEXTS[2], truncation=True, max_length=8)
    assert vector == pytest.approx(states[1:-1].mean(axis=0), abs=1e-5)


def test_a_text_without_a_token_has_the_vector_0(encoder):
    empty, other = embed(encoder, _texts("", "su"), 64, 4)["train"].values
    assert not empty.any()
    assert other.any()


@pytest.mark.parametrize("kind", ["pairs", "regression"])
def test_two_texts_have_their_vectors_and_how_these_differ(encoder, kind):
    first, second = embed(encoder, _texts("dağ", "su üz"), 64, 4)["train"].values
    (pair,) = embed(encoder, _task(kind, [Example("here", "dağ", 0, pair="su üz")], ["no"]), 64, 4)["train"].values
    expected = np.concatenate([first, second, abs(first - second), first * second])
    assert pair == pytest.approx(expected, abs=1e-5)


def test_an_answer_is_read_with_its_question(encoder):
    examples = [
        Example("here", "bakı gözəl", 1, choices=("su", "dağlər")),
        Example("there", "dağ", 0, choices=("çay", "ev", "üz")),
    ]
    vectors = embed(encoder, _task("choice", examples), 64, 2)["train"]
    assert vectors.example.tolist() == [0, 0, 1, 1, 1]
    assert vectors.part.tolist() == [0, 1, 0, 1, 2]
    states, encoding = _states(encoder, "bakı gözəl", "dağlər")
    own = np.array(encoding.special_tokens_mask) == 0
    assert vectors.values[1] == pytest.approx(states[own].mean(axis=0), abs=1e-5)


def test_a_word_has_the_vector_of_its_first_token(encoder):
    words = ("bakı", "ölkəmizdir", "dağ")
    vectors = embed(encoder, _task("tokens", [Example("here", words, (0, 0, 0))], ["O"]), 64, 2)["train"]
    states, encoding = _states(encoder, list(words), is_split_into_words=True)
    first = [encoding.word_ids.index(word) for word in range(3)]
    assert max(np.diff(first)) > 1, "a word of several tokens is what this is about"
    assert vectors.values == pytest.approx(states[first], abs=1e-5)
    assert vectors.part.tolist() == [0, 1, 2]


def test_a_word_beyond_the_longest_length_has_no_vector(encoder):
    long, short = Example("here", ("su",) * 30, (0,) * 30), Example("there", ("üz",), (0,))
    vectors = embed(encoder, _task("tokens", [long, short], ["O"]), 16, 2)["train"]
    of_long = vectors.part[vectors.example == 0].tolist()
    assert of_long == list(range(len(of_long)))
    assert 5 < len(of_long) < 15
    assert vectors.part[vectors.example == 1].tolist() == [0]
