"""The vectors that a frozen encoder makes of a task's examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from azneobert.finetuning.task import Example, Task
from azneobert.pretrained import load_model, load_tokenizer
from azneobert.task_settings import Split

Array = NDArray[Any]


@dataclass(frozen=True)
class Vectors:
    """The vectors of a split [vectors, size], and for each the number of its example and of its part in it.

    An example has one vector; in a tokens task one for each word, in a choice task one for each answer.
    """

    values: Array
    example: Array
    part: Array


def embed(encoder: Path, task: Task, max_length: int, batch_size: int) -> dict[Split, Vectors]:
    """The vectors of a task's examples from an encoder, which is a folder that transformers loads.

    The vector of a text is the mean of its last hidden states, without special tokens. For two texts with vectors u and
    v it is [u, v, |u - v|, u * v]. For an answer, question and answer are read as one text. The vector of a word is the
    state of its first token. Texts are cut off at `max_length` tokens, and a word beyond the cut has no vector.

    Raises:
        AzNeoBertError: transformers cannot load the encoder.
    """
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    network = load_model(encoder, AutoModel, dtype=dtype).to(device).eval()
    tokenizer = load_tokenizer(encoder, split_words=task.kind == "tokens")
    reader = _Reader(network, tokenizer, max_length, batch_size)
    embed_split = {"tokens": _of_words, "choice": _of_answers}.get(task.kind, _of_texts)
    return {split: embed_split(reader, examples) for split, examples in task.splits.items()}


@dataclass(frozen=True)
class _Reader:
    """An encoder that reads texts in batches."""

    network: Any
    tokenizer: Any
    max_length: int
    batch_size: int

    def means(self, *texts: Sequence[Any]) -> Array:
        """The mean vector [texts, size] of each text, or of each text and its second read as one."""
        return np.stack(self.read(_mean, *texts))

    @torch.inference_mode()
    def read(self, take: Callable[[Array, Any], Any], *texts: Sequence[Any], **options: Any) -> list[Any]:
        """What `take` makes of the last hidden states [tokens, size] and the encoding of each text."""
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, **options)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        # Equal lengths together, to save padding. The longest first, so that running out of memory happens early.
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        taken: dict[int, Any] = {}
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = {name: [values[number] for number in numbers] for name, values in encoded.items()}
            padded = self.tokenizer.pad(batch, padding_side="right", return_tensors="pt").to(self.network.device)
            states = self.network(**padded).last_hidden_state.float().cpu().numpy()
            for number, of_text in zip(numbers, states, strict=True):
                taken[number] = take(of_text[: lengths[number]], encoded.encodings[number])
        return [taken[number] for number in range(len(order))]


def _mean(states: Array, encoding: Any) -> Array:
    own = states[np.equal(encoding.special_tokens_mask, 0)]
    # A text of control characters alone has no token of its own: the tokenizer drops them.
    mean: Array = own.mean(axis=0) if len(own) else np.zeros_like(states[0])
    return mean


def _first_tokens(states: Array, encoding: Any) -> tuple[list[int], Array]:
    """The numbers of the words that have a token, and the hidden state of each word's first token."""
    first: dict[int, int] = {}
    for position, word in enumerate(encoding.word_ids):
        if word is not None:
            first.setdefault(word, position)
    return list(first), states[list(first.values())]


def _of_texts(reader: _Reader, examples: list[Example]) -> Vectors:
    values = reader.means([example.text for example in examples])
    if examples[0].pair is not None:
        pairs = reader.means([example.pair for example in examples])
        values = np.concatenate([values, pairs, np.abs(values - pairs), values * pairs], axis=1)
    return Vectors(values, np.arange(len(examples)), np.zeros(len(examples), dtype=int))


def _of_answers(reader: _Reader, examples: list[Example]) -> Vectors:
    places = [(number, part) for number, example in enumerate(examples) for part in range(len(example.choices))]
    questions = [examples[number].text for number, _ in places]
    answers = [examples[number].choices[part] for number, part in places]
    return Vectors(reader.means(questions, answers), *np.array(places).T)


def _of_words(reader: _Reader, examples: list[Example]) -> Vectors:
    read = reader.read(_first_tokens, [list(example.text) for example in examples], is_split_into_words=True)
    example = np.repeat(np.arange(len(read)), [len(words) for words, _ in read])
    part = np.concatenate([np.asarray(words, dtype=int) for words, _ in read])
    return Vectors(np.concatenate([states for _, states in read]), example, part)
