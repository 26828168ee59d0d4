"""Multiple choice: the model reads each answer together with its question and says whether the answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from azneobert.finetuning.kinds.interface import Encoded, Predictions, Row
from azneobert.finetuning.kinds.texts import Texts, encode_pairs, softmax
from azneobert.finetuning.task import Example, Task

_WRONG, _RIGHT = 0, 1


class Choice(Texts):
    """Predicts the answer with the highest probability of being right."""

    def head(self, task: Task) -> dict[str, Any]:
        """Right or wrong."""
        return {
            "id2label": {_WRONG: "wrong", _RIGHT: "right"},
            "label2id": {"wrong": _WRONG, "right": _RIGHT},
            "problem_type": "single_label_classification",
        }

    def encode(self, tokenizer: Any, task: Task, examples: Sequence[Example], max_length: int) -> Encoded:
        """A row for each answer; its mark is the answer's number."""
        pairs = [
            (one.text, answer, _RIGHT if number == one.label else _WRONG, owner, number)
            for owner, one in enumerate(examples)
            for number, answer in enumerate(one.choices)
        ]
        return encode_pairs(tokenizer, pairs, max_length)

    def decode(self, outputs: np.ndarray, rows: Sequence[Row], task: Task, examples: Sequence[Example]) -> Predictions:
        """The number of the answer, and its share of the answers' odds."""
        odds: list[list[float]] = [[0.0] * len(one.choices) for one in examples]
        for row, logits in zip(rows, outputs, strict=True):
            odds[row.owner][row.mark] = float(logits[_RIGHT] - logits[_WRONG])
        return Predictions(
            [int(np.argmax(found)) for found in odds], [float(softmax(np.array(found)).max()) for found in odds]
        )
