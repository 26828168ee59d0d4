"""A tag for each word: entities, parts of speech.

The model sees the pieces of a word; the word's tag stands at its first piece. A sentence that is too long for the model
is read in overlapping windows, and each word gets its tag from the window in which it is farthest from an end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from azneobert.finetuning.kinds.interface import IGNORED, Encoded, Predictions, Row
from azneobert.finetuning.task import OUTSIDE, UNSEEN, Example, Task

_OVERLAP = 4  # windows share one part in so many of their length


class Tokens:
    """Classification of words."""

    def auto_class(self) -> Any:
        """A classifier of tokens."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def head(self, task: Task) -> dict[str, Any]:
        """A class for each tag."""
        names = dict(enumerate(task.labels))
        return {"id2label": names, "label2id": {name: number for number, name in names.items()}}

    def encode(self, tokenizer: Any, task: Task, examples: Sequence[Example], max_length: int) -> Encoded:
        """A row for each window that decides a tag. Its mark: the positions whose tags count, and their words.

        Words that yield no token, such as those of control characters alone, are in no row; they are counted.
        """
        encoded = tokenizer(
            [list(one.text) for one in examples],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            stride=max_length // _OVERLAP,
            return_overflowing_tokens=True,
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        firsts = [_first_pieces(encoded.word_ids(number)) for number in range(len(owners))]
        # For each word of an example: its distance from an end, and the row. Of equally good rows the first one wins,
        # since a later one may begin within the word.
        best: dict[tuple[int, int], tuple[int, int]] = {}
        for number, (owner, found) in enumerate(zip(owners, firsts, strict=True)):
            length = len(encoded["input_ids"][number])
            for word, position in found.items():
                distance = min(position, length - 1 - position)
                if distance > best.get((owner, word), (-1, number))[0]:
                    best[owner, word] = distance, number
        rows = []
        for number, (owner, found) in enumerate(zip(owners, firsts, strict=True)):
            mark = [(position, word) for word, position in found.items() if best[owner, word][1] == number]
            if not mark:  # a batch of such rows has no mean loss
                continue
            labels = [IGNORED] * len(encoded["input_ids"][number])
            tags = examples[owner].label
            assert isinstance(tags, tuple)
            for position, word in mark:
                labels[position] = tags[word]
            inputs = {name: values[number] for name, values in encoded.items()} | {"labels": labels}
            rows.append(Row(inputs, owner, mark))
        return Encoded(rows, unseen=sum(len(one.text) for one in examples) - len(best))

    def collator(self, tokenizer: Any) -> Any:
        """Rows and their labels, padded to the longest."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def reduce(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, length, tags) -> (rows, length, 2): the most probable tag of each token and its probability."""
        probability, tag = logits.float().softmax(-1).max(-1)
        return torch.stack([tag.float(), probability], -1)

    def decode(self, outputs: np.ndarray, rows: Sequence[Row], task: Task, examples: Sequence[Example]) -> Predictions:
        """A tag for each word, and the lowest probability among them.

        A word without a token is in no entity: it gets `O`. Where no tag is `O` it gets `UNSEEN`, which is wrong
        whatever its label is, and the confidence is 0.
        """
        unseen = task.labels.index(OUTSIDE) if OUTSIDE in task.labels else UNSEEN
        tags = [[unseen] * len(one.text) for one in examples]
        sure = [1.0] * len(examples)
        for row, (found, probability) in zip(rows, outputs.transpose(0, 2, 1), strict=True):
            for position, word in row.mark:
                tags[row.owner][word] = int(found[position])
                sure[row.owner] = min(sure[row.owner], float(probability[position]))
        sure = [0.0 if UNSEEN in one else confidence for one, confidence in zip(tags, sure, strict=True)]
        return Predictions([tuple(one) for one in tags], sure)


def _first_pieces(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Where in a row each word begins."""
    found: dict[int, int] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            found.setdefault(word, position)
    return found
