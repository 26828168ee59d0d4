"""The mistakes that a model was surest of. Often the label or the task is wrong there, not the model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azneobert.finetuning.task import UNSEEN, Example, Label, Task

_LONGEST = 200  # characters of a text


def worst_mistakes(
    task: Task,
    examples: Sequence[Example],
    predicted: Sequence[Label],
    confidence: Sequence[float],
    n: int = 10,
) -> list[dict[str, Any]]:
    """The `n` mistakes that the model was surest of, the surest first; of regression those farthest from the truth.

    confidence: the probability that the model gave each of its predictions; not looked at for regression.

    Each has `where` the example stands, its shortened `text`, `gold` and `predicted`, and the `confidence`, or for
    regression the `distance`. Labels are given by name, answers by their text. Instead of `gold` and `predicted`, a
    tokens task has the `words` that differ, each as `word: gold -> predicted`; of an unseen word, `gold -> no token`.
    """
    measure, measured = "confidence", confidence
    if task.kind == "regression":
        measure, measured = "distance", _distances(examples, predicted)
    wrong = [number for number, example in enumerate(examples) if predicted[number] != example.label]
    return [
        {
            "where": examples[number].where,
            "text": _text(examples[number]),
            **_difference(task, examples[number], predicted[number]),
            measure: round(float(measured[number]), 4),
        }
        for number in sorted(wrong, key=lambda number: -measured[number])[:n]
    ]


def write_mistakes(rows: list[dict[str, Any]], file: Path) -> None:
    """Write mistakes as CSV: a header, then a line for each mistake."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]) if rows else ["where", "text"])
        writer.writeheader()
        writer.writerows(rows)


def _distances(examples: Sequence[Any], predicted: Sequence[Any]) -> list[float]:
    return [abs(example.label - guess) for example, guess in zip(examples, predicted, strict=True)]


def _difference(task: Task, example: Example, predicted: Any) -> dict[str, Any]:
    gold: Any = example.label
    if task.kind == "tokens":
        differing = [
            f"{word}: {task.labels[tag]} -> {'no token' if guess == UNSEEN else task.labels[guess]}"
            for word, tag, guess in zip(example.text, gold, predicted, strict=True)
            if tag != guess
        ]
        return {"words": "; ".join(differing)}
    if task.kind == "regression":
        return {"gold": gold, "predicted": round(float(predicted), 4)}
    names = [_shortened(choice) for choice in example.choices] if task.kind == "choice" else task.labels
    return {"gold": names[gold], "predicted": names[predicted]}


def _text(example: Example) -> str:
    text = example.text if isinstance(example.text, str) else " ".join(example.text)
    return _shortened(text) + (f" || {_shortened(example.pair)}" if example.pair else "")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
