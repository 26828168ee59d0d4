"""What a row says: its text and what goes with it, and the label that somebody gave it."""

from __future__ import annotations

import math
from typing import Any

from azneobert.data.records import pick
from azneobert.errors import DataError
from azneobert.finetuning.quoting import listed, one_line, shown
from azneobert.finetuning.task import Example
from azneobert.task_settings import TaskSettings

# A label before numbering: names instead of numbers.
Named = str | float | tuple[str, ...]


def unlabelled(where: str, record: dict[str, Any], settings: TaskSettings) -> Example:
    """The example of a row. Its label says nothing: it is 0, and in a `tokens` task 0 for each word.

    Raises:
        DataError: a field is missing, or holds something else than a text (words, answers) with something in it.
    """
    if settings.kind == "tokens":
        words = _words(where, record, settings)
        return Example(where, words, (0,) * len(words))
    texts = [_text(where, name, _field(where, record, name, "text_field")) for name in settings.text_fields]
    pair = None
    if settings.kind == "pairs" or (settings.kind == "regression" and _holds(record, settings.pair_field)):
        pair = _text(where, settings.pair_field, _field(where, record, settings.pair_field, "pair_field"))
    choices = _choices(where, record, settings) if settings.kind == "choice" else ()
    return Example(where, "\n".join(texts), 0, pair, choices)


def label_of(record: dict[str, Any], example: Example, settings: TaskSettings, labels: tuple[str, ...] | None) -> Named:
    """The label of an example's row, by name if it has one; in a `choice` task the number of the answer, from 0.

    A whole number is an index into `labels`. Without `labels` it is a name (but not in a `tokens` task).

    Raises:
        DataError: there is no label, its type does not fit the kind of the task, or it is not one of `labels`.
    """
    where, field = example.where, settings.label_name
    label = _field(where, record, field, "label_field")
    if settings.kind == "regression":
        return _score(where, field, label)
    if settings.kind == "choice":
        return _answer(where, field, label, example.choices, settings.first_label)
    if settings.kind != "tokens":
        return _name(where, field, label, labels)
    tags = label.split() if isinstance(label, str) else label
    if not isinstance(tags, list):
        raise DataError(f"{where}: {field} is {shown(tags)}; expected a list with a tag for each word")
    if len(tags) != len(example.text):
        raise DataError(f"{where}: {len(tags)} tags of {len(example.text)} words; expected a tag for each word")
    if labels is None and any(_is_number(tag) for tag in tags):
        raise DataError(f"{where}: {field} holds numbers; name what they stand for, from 0, in `labels`")
    return tuple(_name(where, f"a tag in {field}", tag, labels) for tag in tags)


def _holds(record: dict[str, Any], name: str) -> bool:
    try:
        _value(record, name)
    except KeyError:
        return False
    return True


def _field(where: str, record: dict[str, Any], name: str, setting: str) -> Any:
    try:
        return _value(record, name)
    except KeyError as error:
        raise DataError(f"{where}: {one_line(error.args[0], 300)}; expected it, or its name in `{setting}`") from None


def _value(record: dict[str, Any], name: str) -> Any:
    # A column of a table may have a dot in its name.
    return record[name] if name in record else pick(record, name)


def _is_text(value: Any) -> bool:
    # JSON can spell half of a surrogate pair, which no tokenizer accepts as text.
    return isinstance(value, str) and bool(value.strip()) and value.encode(errors="ignore").decode() == value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # in Python true is an int; here it is not a number


def _text(where: str, name: str, value: Any) -> str:
    if not _is_text(value):
        raise DataError(f"{where}: {name} is {shown(value)}; expected a string with something in it")
    return str(value)


def _words(where: str, record: dict[str, Any], settings: TaskSettings) -> tuple[str, ...]:
    name, *others = settings.text_fields
    if others:
        raise DataError(f"text_field: names {len(others) + 1} fields; expected one, with the words of a tokens task")
    words = _field(where, record, name, "text_field")
    if not isinstance(words, list):
        return tuple(_text(where, name, words).split())
    if not words:
        raise DataError(f"{where}: {name} is an empty list; expected a word or more")
    return tuple(_text(where, f"word {number} in {name}", word) for number, word in enumerate(words, start=1))


def _choices(where: str, record: dict[str, Any], settings: TaskSettings) -> tuple[str, ...]:
    name = settings.choices_field
    if isinstance(name, str):
        found = _field(where, record, name, "choices_field")
        if not isinstance(found, list):
            raise DataError(f"{where}: {name} is {shown(found)}; expected a list of answers")
        answers = [(f"answer {number} in {name}", answer) for number, answer in enumerate(found, start=1)]
    else:
        answers = [(field, _field(where, record, field, "choices_field")) for field in name]
    if len(answers) < 2:
        raise DataError(f"{where}: {len(answers)} answers; expected two or more")
    return tuple(_text(where, which, answer) for which, answer in answers)


def _name(where: str, field: str, label: Any, labels: tuple[str, ...] | None) -> str:
    """A label's name. A text of digits that is no label's name is a number: tables write numbers as text."""
    if not _is_number(label) and not _is_text(label):
        raise DataError(f"{where}: {field} is {shown(label)}; expected a string or a whole number")
    if labels is None or (isinstance(label, str) and label in labels):
        return str(label)
    number = _whole(label)
    if number is None:
        raise DataError(f"{where}: {field} is {shown(label)}; expected one of the labels {listed(labels)}")
    if not 0 <= number < len(labels):
        raise DataError(f"{where}: {field} is {shown(label)}; expected 0 to {len(labels) - 1}, the numbers of `labels`")
    return labels[number]


def _score(where: str, field: str, value: Any) -> float:
    try:
        score = float(value) if _is_number(value) or isinstance(value, float | str) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{where}: {field} is {shown(value)}; expected a finite number")
    return score


def _answer(where: str, field: str, label: Any, choices: tuple[str, ...], first: int) -> int:
    by_text = [number for number, answer in enumerate(choices) if answer == label]
    number = _whole(label)
    by_number = [number - first] if number is not None and 0 <= number - first < len(choices) else []
    found = set(by_text + by_number)
    if len(found) > 1:
        raise DataError(
            f"{where}: {field} is {shown(label)}, which is more than one answer; use its number, as a number"
        )
    if not found:
        raise DataError(
            f"{where}: {field} is {shown(label)}; expected {first} to {first + len(choices) - 1}, or the right answer"
        )
    return found.pop()


def _whole(value: Any) -> int | None:
    """A whole number, also one that is written in digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if _is_number(value) else None
