"""Tasks with one label for a text or a pair of texts: classification, pairs, and regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from azneobert.finetuning.kinds.interface import Encoded, Predictions, Row
from azneobert.finetuning.task import Example, Task


class Texts:
    """Classification of texts, or of pairs of them."""

    def auto_class(self) -> Any:
        """A classifier."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def head(self, task: Task) -> dict[str, Any]:
        """A class for each label."""
        names = dict(enumerate(task.labels))
        return {
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "problem_type": "single_label_classification",
        }

    def encode(self, tokenizer: Any, task: Task, examples: Sequence[Example], max_length: int) -> Encoded:
        """A row for each example."""
        return encode_pairs(
            tokenizer,
            [(one.text, one.pair, one.label, number, None) for number, one in enumerate(examples)],
            max_length,
        )

    def collator(self, tokenizer: Any) -> Any:
        """Rows, padded to the longest."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """All of them."""
        return logits.float()

    def decode(self, outputs: np.ndarray, rows: Sequence[Row], task: Task, examples: Sequence[Example]) -> Predictions:
        """The most probable label, and its probability."""
        found = np.zeros((len(examples), outputs.shape[1]))
        found[[row.owner for row in rows]] = outputs
        probabilities = softmax(found)
        return Predictions(found.argmax(1).tolist(), probabilities.max(1).tolist())


class Regression(Texts):
    """A number for a text or a pair of texts."""

    def head(self, task: Task) -> dict[str, Any]:
        """One number, learnt by its squared error."""
        return {"num_labels": 1, "problem_type": "regression"}

    def decode(self, outputs: np.ndarray, rows: Sequence[Row], task: Task, examples: Sequence[Example]) -> Predictions:
        """The number."""
        found = np.zeros(len(examples))
        found[[row.owner for row in rows]] = outputs[:, 0]
        return Predictions(found.tolist(), [0.0] * len(examples))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[Any, str | None, Any, int, Any]], max_length: int) -> Encoded:
    """Rows from (text, second text or None, label, owner, mark). In a pair, the longer text is cut first."""
    if not pairs:
        return Encoded([])
    texts = [text for text, *_ in pairs]
    second = [other for _, other, *_ in pairs] if pairs[0][1] is not None else None
    cut = tokenizer(texts, second, truncation=True, max_length=max_length)
    rows = [
        Row({name: values[at] for name, values in cut.items()} | {"labels": label}, owner, mark)
        for at, (_, _, label, owner, mark) in enumerate(pairs)
    ]
    truncated = {row.owner for row, encoding in zip(rows, cut.encodings, strict=True) if encoding.overflowing}
    return Encoded(rows, len(truncated))
