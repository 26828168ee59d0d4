"""What a kind of task defines: how examples become a model's inputs, and how outputs become predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from azneobert.finetuning.task import Example, Label, Task

IGNORED = -100  # the label of a position without a loss


@dataclass(frozen=True)
class Row:
    """One input of the model, and the example that it belongs to. `mark` is the kind's own note."""

    inputs: dict[str, Any]
    owner: int
    mark: Any = None


@dataclass(frozen=True)
class Encoded:
    """The rows of some examples; how many of the examples did not fit and were cut; how many words have no token."""

    rows: list[Row]
    truncated: int = 0
    unseen: int = 0


@dataclass(frozen=True)
class Predictions:
    """The prediction for each example, in the shape of its label, and the model's confidence in it, from 0 to 1.

    Regression has no confidence: it is 0 there. A word's prediction may be `UNSEEN`.
    """

    labels: Sequence[Label]
    confidences: list[float]


class Kind(Protocol):
    """A kind of task. It has no state."""

    def auto_class(self) -> Any:
        """The class of transformers that makes a model of an encoder."""

    def head(self, task: Task) -> dict[str, Any]:
        """What the model's configuration says of its head."""

    def encode(self, tokenizer: Any, task: Task, examples: Sequence[Example], max_length: int) -> Encoded:
        """The model's inputs, with labels."""

    def collator(self, tokenizer: Any) -> Any:
        """The function that makes a batch of rows, padded to the longest row."""

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """The part of a batch's logits to keep, computed on the device."""

    def decode(self, outputs: np.ndarray, rows: Sequence[Row], task: Task, examples: Sequence[Example]) -> Predictions:
        """The predictions, from what `reduce` has kept of each row, padded to the longest."""
