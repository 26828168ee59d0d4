"""A labelled task in memory: the data model that all kinds of task, readers and scores share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from azneobert.files import sha256_of_json
from azneobert.task_settings import Split, TaskKind

Label = int | float | tuple[int, ...]  # `Example` says which type each kind of task has
OUTSIDE = "O"  # the tag of a word that is in no entity
UNSEEN = -1  # predicted for a word of which the model sees no token, where no tag is O; equal to no label


@dataclass(frozen=True)
class Example:
    """One labelled example.

    `text` is a string, and a tuple of words in a `tokens` task. `label` is the index of a label in `Task.labels`
    (classification, pairs), a number (regression), an index for each word (tokens) or the number of the right answer,
    from 0 (choice).
    """

    where: str  # file and line, or what else names it to a person
    text: str | tuple[str, ...]
    label: Label
    pair: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def said(self) -> list[object]:
        """The content without the label: two examples of equal content count as the same."""
        text = list(self.text) if isinstance(self.text, tuple) else self.text
        return [text, self.pair, list(self.choices)]


@dataclass(frozen=True)
class Task:
    """A task that was checked: labels by index (none for regression and choice), and the examples of its splits.

    `notes` are lines for a person: what was left out, made or counted while it was read.
    """

    name: str
    kind: TaskKind
    labels: list[str]
    splits: dict[Split, list[Example]]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        """The hash of labels and examples of all splits: results of different hashes cannot be compared."""
        return sha256_of_json(
            [
                self.kind,
                self.labels,
                {split: [[*one.said, one.label] for one in examples] for split, examples in self.splits.items()},
            ]
        )

    @property
    def has_entities(self) -> bool:
        """Whether its tags are entities in BIO: O, B-... and I-..., rather than a class for each word (as POS has)."""
        return (
            self.kind == "tokens"
            and any(label[:2] == "B-" for label in self.labels)
            and all(label == OUTSIDE or label[:2] in ("B-", "I-") for label in self.labels)
        )
