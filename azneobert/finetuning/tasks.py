"""Labelled tasks: a folder with train.jsonl, validation.jsonl and test.jsonl, each line a text and its label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azneobert.data.records import TOO_LONG, Malformed, bounded_lines, parse_json
from azneobert.errors import DataError

SPLITS = ("train", "validation", "test")
_LINE = "expected a JSON object with text and label"


@dataclass(frozen=True)
class Task:
    """A text classification task; `splits` holds (text, label index) pairs, `labels` the names in sorted order."""

    name: str
    labels: list[str]
    splits: dict[str, list[tuple[str, int]]]


def read_task(folder: Path) -> Task:
    """Read a task. A label is a string, or a whole number, whose digits are its name.

    Raises:
        DataError: a split is missing or empty, a line is not JSON, lacks `text` or `label` or holds something else
            there, or a split holds a label that training does not.
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
                f"{folder / split}.jsonl: label {next(iter(unknown))!r} is not in train.jsonl "
                f"({' '.join(', '.join(labels).split())})"
            )
    index = {label: number for number, label in enumerate(labels)}
    return Task(folder.name, labels, {s: [(text, index[label]) for text, label in e] for s, e in raw.items()})


def _read_split(file: Path) -> Iterator[tuple[str, str]]:
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected one JSON object a line, with text and label")
    with file.open("rb") as lines:
        for number, (line, _) in enumerate(bounded_lines(lines), start=1):
            record = Malformed(TOO_LONG) if line is None else parse_json(line)
            if record is not None:  # a blank line is none
                yield _example(record, f"{file}:{number}")


def _example(record: Any, where: str) -> tuple[str, str]:
    if isinstance(record, Malformed):
        raise DataError(f"{where}: {record.problem}; {_LINE}")
    if not isinstance(record, dict):
        raise DataError(f"{where}: is {_shown(record)}; {_LINE}")
    for field in ("text", "label"):
        if field not in record:
            raise DataError(f"{where}: no field {field!r}, found {_one_line(', '.join(record)) or 'none'}; {_LINE}")
    text, label = record["text"], record["label"]
    if not _is_text(text):
        raise DataError(f"{where}: text is {_shown(text)}; expected a string with something in it")
    if isinstance(label, int) and not isinstance(label, bool):  # true is an int in Python, and no label
        label = str(label)
    if not _is_text(label):
        raise DataError(f"{where}: label is {_shown(label)}; expected a string or a whole number")
    return text, label


def _is_text(value: Any) -> bool:
    # Half of a surrogate pair, which JSON can spell, is no text that a tokenizer takes.
    return isinstance(value, str) and bool(value.strip()) and value.encode(errors="ignore").decode() == value


def _shown(value: Any) -> str:
    """A value in a message: containers by their kind, anything else as JSON."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return _one_line(json.dumps(value, ensure_ascii=False))


def _one_line(text: str) -> str:
    """A name or a value that a file holds may have line ends, halves of surrogate pairs, or very much in it."""
    return " ".join(text.split())[:60].encode(errors="replace").decode()
