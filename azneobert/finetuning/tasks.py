"""Labelled tasks: a folder with train.jsonl, validation.jsonl and test.jsonl, each line a text and its label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from azneobert.data.sources import open_source
from azneobert.errors import DataError
from azneobert.recipe import Source

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """A text classification task; `splits` holds (text, label index) pairs, `labels` the names in sorted order."""

    name: str
    labels: list[str]
    splits: dict[str, list[tuple[str, int]]]


def read_task(folder: Path) -> Task:
    """Read a task.

    Raises:
        DataError: a split is missing or empty, a line is not JSON or lacks `text` or `label`, or a split holds a label
            that training does not.
    """
    raw = {split: list(_read_split(folder / f"{split}.jsonl")) for split in SPLITS}
    for split, examples in raw.items():
        if not examples:
            raise DataError(f"{folder / split}.jsonl: is empty; one JSON object a line, with text and label, would do")
    labels = sorted({label for _, label in raw["train"]})
    for split, examples in raw.items():
        unknown = Counter(label for _, label in examples if label not in labels)
        if unknown:
            raise DataError(
                f"{folder / split}.jsonl: label {next(iter(unknown))!r} is not in train.jsonl ({', '.join(labels)})"
            )
    index = {label: number for number, label in enumerate(labels)}
    return Task(folder.name, labels, {s: [(text, index[label]) for text, label in e] for s, e in raw.items()})


def _read_split(file: Path) -> Iterator[tuple[str, str]]:
    # `label` stands where a document's id would: the reader is the same.
    for records in open_source(Source(path=str(file), id_field="label")).read():
        if records.malformed:
            raise DataError(f"{records.malformed[0]}; a JSON object with text and label would do")
        for label, text in zip(records.ids, records.texts, strict=True):
            if text is None:
                raise DataError(f"{file}: a text of label {label!r} is null; a string would do")
            yield text, label
