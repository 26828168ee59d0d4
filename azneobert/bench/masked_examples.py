"""`azneobert bench masked --examples`: one masked word in held-out sentences, and what models put in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from azneobert.bench.masked import Loaded, load, open_model
from azneobert.bench.report import Row
from azneobert.data.store import TokenStore
from azneobert.data.stream import Batch
from azneobert.data.tokenizer import CLS, MASK, SEP, load_tokenizer, special_ids
from azneobert.engine.micro_batches import logits_of
from azneobert.errors import CheckpointError, DataError
from azneobert.filling import shown_token
from azneobert.training.inputs import Inputs

_TOP = 3
_WORDS = (5, 25)  # of a sentence: enough to guess by, few enough for a line
_LETTERS = 3  # of the word, at least
_TOKENS = 512  # of a document that are looked at; a window of a phase, its frame included, may be shorter
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")


@dataclass(frozen=True)
class Example:
    """A sentence in which `word`, one token, is masked: `ids` with the frame, the mask's position, the token."""

    text: str
    word: str
    ids: list[int]
    place: int
    token: int


def bench_examples(inputs: Inputs, models: list[str], count: int) -> Iterator[Row]:
    """A row for each example and model; without models, for each kept checkpoint of the phase, oldest first.

    The bar is the original word. It is met if the model ranks that word first.

    Raises:
        DataError: the prepared data are missing, or no held-out sentence has such a word.
        CheckpointError, RegistryError: a model cannot be read, has another tokenizer, or the phase has no checkpoint.
    """
    tokenizer = load_tokenizer(inputs.tokenizer)
    examples = find_examples(inputs, tokenizer, count)
    guesses = {model.name: guess(model, examples) for model in _opened(inputs, models)}
    for number, example in enumerate(examples):
        for name, found in guesses.items():
            top = [f"{shown_token(tokenizer.decode([token]))} {share:.1%}" for token, share in found[number]]
            best = found[number][0][0]
            yield Row(f"{example.text} ({name})", ", ".join(top), example.word, best == example.token)


def find_examples(inputs: Inputs, tokenizer: Tokenizer, count: int) -> list[Example]:
    """Held-out sentences of different documents, in an order that the recipe's seed decides: `count`, or all there are.

    Raises:
        DataError: there is none.
    """
    recipe, numbers = inputs.recipe, np.random.default_rng(inputs.recipe.seed)
    stores = [TokenStore.open(inputs.tokens / name / "validation") for name in recipe.data.sources]
    documents = [(store, number) for store in stores for number in range(len(store))]
    capacity = min(_TOKENS, min(recipe.phase(phase).sequence_length for phase in ("phase1", "phase2")))
    found: list[Example] = []
    for chosen in numbers.permutation(len(documents)):
        if len(found) == count:
            break
        store, number = documents[chosen]
        example = _of_document(store[number], capacity, tokenizer, numbers)
        found += [example] if example else []
    if not found:
        raise DataError(
            f"{inputs.tokens}: no held-out sentence of {_WORDS[0]} to {_WORDS[1]} words has a word that is one token; "
            "use more held-out documents or a larger vocabulary"
        )
    return found


@torch.no_grad()
def guess(model: Loaded, examples: list[Example]) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each example with their probabilities, best first."""
    sizes = [len(example.ids) for example in examples]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    device = model.world.device
    batch = Batch(
        input_ids=torch.tensor([token for example in examples for token in example.ids], device=device),
        position_ids=torch.cat([torch.arange(size, device=device) for size in sizes]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32, device=device),
        max_seqlen=max(sizes),
        masked_indices=torch.tensor(
            [start + example.place for start, example in zip(starts, examples, strict=False)], device=device
        ),
        targets=torch.tensor([example.token for example in examples], device=device),
    )
    best = logits_of(model.network, batch).softmax(-1).topk(_TOP)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(tokens, shares, strict=True)) for tokens, shares in pairs]


def _opened(inputs: Inputs, models: list[str]) -> Iterator[Loaded]:
    """The models that are named, or the checkpoints of the phase, one after the other."""
    for name in models:
        with open_model(inputs, name) as model:
            yield model
    if models:
        return
    checkpoints = inputs.checkpoints.steps()
    if not checkpoints:
        raise CheckpointError(
            f"{inputs.run.checkpoints}: no checkpoint there; run `dvc repro {inputs.phase}`, or name models"
        )
    for checkpoint in checkpoints:
        yield load(inputs, checkpoint, checkpoint.name)


def _of_document(
    tokens: np.ndarray, capacity: int, tokenizer: Tokenizer, numbers: np.random.Generator
) -> Example | None:
    """An example from a sentence at the beginning of a document, if one of these sentences has a suitable word."""
    sentences = _SENTENCE_END.split(tokenizer.decode(tokens[:capacity].tolist()))
    if len(tokens) > capacity:
        sentences.pop()  # the last sentence is cut off
    for place in numbers.permutation(len(sentences)):
        if _WORDS[0] <= len(sentences[place].split()) <= _WORDS[1]:
            examples = _of_sentence(" ".join(sentences[place].split()), tokenizer)
            fitting = [example for example in examples if len(example.ids) <= capacity]
            if fitting:
                return fitting[numbers.integers(len(fitting))]
    return None


def _of_sentence(sentence: str, tokenizer: Tokenizer) -> list[Example]:
    """An example for each word of letters that is one token."""
    ids = special_ids(tokenizer)
    encoded = tokenizer.encode(sentence, add_special_tokens=False)
    words = list(encoded.word_ids)
    framed = [ids[CLS], *encoded.ids, ids[SEP]]
    found = []
    for place, (token, (start, end)) in enumerate(zip(encoded.ids, encoded.offsets, strict=True), start=1):
        word = sentence[start:end].strip()
        if words.count(words[place - 1]) == 1 and len(word) >= _LETTERS and word.isalpha():
            before = sentence[:start] + " " * (sentence[start] == " ")
            masked = [*framed[:place], ids[MASK], *framed[place + 1 :]]
            found.append(Example(f"{before}{MASK}{sentence[end:]}", word, masked, place, token))
    return found
