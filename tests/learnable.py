"""Labelled tasks that a tiny network learns in seconds: a word decides."""

from __future__ import annotations

import random

from azneobert.finetuning.task import Example, Task
from azneobert.task_settings import TuningSettings

OTHERS = ["bakı", "şəhər", "çay", "ev", "üz"]
GOOD, BAD = ["gözəl"], ["dağ"]
SIZES = {"train": 240, "validation": 48, "test": 64}
LEARNING = TuningSettings(epochs=6, patience=2, batch_size=16, learning_rate=3e-3, max_length=32, seeds=(1,))


def classification(sizes: dict[str, int] = SIZES, noise: float = 0.0) -> Task:
    """Sentences of 2 to 9 words, one of which tells the label; a share of the labels is drawn instead."""

    def make(numbers: random.Random, where: str) -> Example:
        label = numbers.randrange(2)
        words = [*numbers.choices(OTHERS, k=numbers.randrange(1, 9)), numbers.choice((BAD, GOOD)[label])]
        numbers.shuffle(words)
        return Example(where, " ".join(words), numbers.randrange(2) if numbers.random() < noise else label)

    return _task("classification", ["bad", "good"], make, sizes)


def tokens(sizes: dict[str, int] = SIZES) -> Task:
    """Sentences of 1 to 8 words, of which some are entities."""

    def make(numbers: random.Random, where: str) -> Example:
        words = tuple(numbers.choice(["gözəl", "dağ", *OTHERS]) for _ in range(numbers.randrange(1, 9)))
        return Example(where, words, tuple({"gözəl": 1, "dağ": 2}.get(word, 0) for word in words))

    return _task("tokens", ["O", "B-GOOD", "B-BAD"], make, sizes)


def regression(sizes: dict[str, int] = SIZES) -> Task:
    """The share of a pair's words that are good."""

    def make(numbers: random.Random, where: str) -> Example:
        good = numbers.randrange(6)
        words = GOOD * good + BAD * (5 - good)
        numbers.shuffle(words)
        return Example(where, " ".join(words[:3]), good / 5, " ".join(words[3:]))

    return _task("regression", [], make, sizes)


def choice(sizes: dict[str, int] = SIZES) -> Task:
    """Two to four answers, of which one is good."""

    def make(numbers: random.Random, where: str) -> Example:
        answers = [numbers.choice(OTHERS) for _ in range(numbers.randrange(2, 5))]
        right = numbers.randrange(len(answers))
        answers[right] = f"{numbers.choice(OTHERS)} {GOOD[0]}"
        return Example(where, numbers.choice(OTHERS), right, choices=tuple(answers))

    return _task("choice", [], make, sizes)


def _task(kind, labels, make, sizes) -> Task:  # type: ignore[no-untyped-def]
    numbers = random.Random(5)
    splits = {split: [make(numbers, f"{split}:{n}") for n in range(1, size + 1)] for split, size in sizes.items()}
    return Task("toy_task", kind, labels, splits)
