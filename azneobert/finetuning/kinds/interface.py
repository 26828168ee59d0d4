"""What a kind of task has to say: how examples become a model's inputs, and its outputs predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from azneobert.finetuning.task import Example, Label, Task

IGNORED = -100  # the label of a position that no loss is taken of


@dataclass(frozen=True)
class Row:
    """One input of the model: what it is given, and which example it is of. `mark` is the kind's own note."""

    inputs: dict[str, Any]
    owner: int
    mark: Any = None


@dataclass(frozen=True)
class Encoded:
    """The rows of some examples, and how many of the examples did not fit and were cut."""

    rows: list[Row]
    truncated: int = 0


@dataclass(frozen=True)
class Predictions:
    """For each example what is predicted, in the shape of its label, and how sure the model is of it, from 0 to 1.

    A regression is not sure of anything: there it is 0.
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
        """What makes a batch of rows, padded to the longest of them."""

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """What is kept of a batch's logits, on the device."""

    def decode(self, outputs: np.ndarray, rows: Sequence[Row], task: Task, examples: Sequence[Example]) -> Predictions:
        """The predictions, from what `reduce` has kept of each row, padded to the longest."""
