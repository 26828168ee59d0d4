"""The labels of a task, and the numbers that stand for them in its examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import ne

from azneobert.errors import DataError
from azneobert.finetuning.examples import Named
from azneobert.finetuning.quoting import listed, shown
from azneobert.finetuning.task import OUTSIDE, Example
from azneobert.task_settings import Split

_ENTITY = re.compile(rf"{OUTSIDE}|[BI]-.+", re.DOTALL)

Labelled = tuple[Example, Named]


def read_as_bio(splits: dict[Split, list[Labelled]]) -> tuple[dict[Split, list[Labelled]], list[str]]:
    """Convert entity tags to BIO, where every entity begins with B-. In IOB1 only one beside another of its type does.

    Returns the splits, and a note if something was changed. Tags that are not entities stay as they are.
    """
    tags = {tag for examples in splits.values() for _, label in examples for tag in _names(label)}
    if not all(_ENTITY.fullmatch(tag) for tag in tags):
        return splits, []
    found: dict[Split, list[Labelled]] = {}
    count, first = 0, ""
    for split, examples in splits.items():
        found[split] = [(example, _begun(_names(label))) for example, label in examples]
        for (example, before), (_, after) in zip(examples, found[split], strict=True):
            if before != after:
                count += sum(map(ne, _names(before), _names(after)))
                first = first or example.where
    if not count:
        return splits, []
    return found, [f"{count:,} entities begin with I-, as IOB1 has it, the first in {first}: read as B-"]


def _begun(tags: Sequence[str]) -> tuple[str, ...]:
    def begins(before: str, tag: str) -> bool:
        return tag[:2] == "I-" and before[1:] != tag[1:]  # neither B- nor I- of the same type

    return tuple(f"B{tag[1:]}" if begins(before, tag) else tag for before, tag in pairwise((OUTSIDE, *tags)))


def _names(label: Named) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else (str(label),)


def labels_of(splits: dict[Split, list[Labelled]], known: tuple[str, ...] | None) -> list[str]:
    """The labels of a task, by number: the known labels, or else the sorted labels of the training split.

    Tags that reading as BIO has added to the known labels come last.

    Raises:
        DataError: there are fewer than two, or another split has one that training does not.
    """
    used = {split: {name for _, label in examples for name in _names(label)} for split, examples in splits.items()}
    if known is not None:
        labels = [*known, *sorted(set().union(*used.values()) - set(known))]
    else:
        labels = sorted(used["train"])
        for split, names in used.items():
            if names - used["train"]:
                raise DataError(_untrained(split, splits[split], labels))
    if len(labels) < 2:
        raise DataError(
            f"{splits['train'][0][0].where}: {listed(labels)} is the only label; expected two or more in the task"
        )
    return labels


def _untrained(split: Split, examples: list[Labelled], labels: list[str]) -> str:
    example, name = next((e, name) for e, label in examples for name in _names(label) if name not in labels)
    count = sum(name in _names(label) for _, label in examples)
    return (
        f"{example.where}: label {shown(name)}, of {count:,} {split} examples, is not in training ({listed(labels)}); "
        "expected training examples of it, or remove these"
    )


def numbered(examples: Iterable[Labelled], labels: list[str]) -> list[Example]:
    """The examples with the numbers of their labels."""
    numbers = {name: number for number, name in enumerate(labels)}

    def number(label: Named) -> int | float | tuple[int, ...]:
        if isinstance(label, tuple):
            return tuple(numbers[name] for name in label)
        return numbers[label] if isinstance(label, str) else label

    return [replace(example, label=number(label)) for example, label in examples]
