"""Sentences of CoNLL: a word and its tag a line, blank lines between sentences, as CoNLL-2003 and CoNLL-U have them.

https://aclanthology.org/W03-0419/ and https://universaldependencies.org/format.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from azneobert.errors import DataError
from azneobert.finetuning.quoting import shown
from azneobert.task_settings import TaskSettings

CONLLU = ".conllu"
FORMATS = (".conll", CONLLU, ".iob", ".iob2", ".bio", ".txt")
_DOCUMENT = "-DOCSTART-"
_UNKNOWN = "_"  # of CoNLL-U: a word without a tag
_WIDTH = 10  # columns of CoNLL-U
_FORM, _UPOS = 1, 3
# Tweets have words such as `#Bakı`. With a tag, such a line is a word, not a comment before a sentence.
_WORD = re.compile(r"#\S*(\t|[ \t](.*[ \t])?(O|[BI]-\S+)\s*$)")

Cells = tuple[str, str | None]  # a word and its tag


def sentences(
    lines: Iterable[tuple[str, str]], form: str, settings: TaskSettings
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sentences of a file's lines: where each begins, and its words and tags under the names of the settings.

    The first column is the word and the last its tag; in CoNLL-U they are FORM and UPOS. Comments, -DOCSTART-, and the
    word ranges and empty nodes of CoNLL-U are left out. A sentence in which no word has a tag has no field for tags.

    Raises:
        DataError: a line has no word or too few columns, or only some words of a sentence have a tag.
    """
    start, words = "", list[Cells]()
    for where, line in lines:
        line = line.rstrip("\r\n")
        if not line.strip():
            if words:
                yield start, _sentence(start, words, settings)
                words = []
        elif not words and _is_comment(line, form):
            continue  # comments stand before a sentence; a `#` within one is a word
        elif cells := _conllu_cells(where, line) if form == CONLLU else _cells(where, line):
            start = start if words else where
            words.append(cells)
    if words:
        yield start, _sentence(start, words, settings)


def _is_comment(line: str, form: str) -> bool:
    return line.startswith("#") and (form == CONLLU or not _WORD.match(line))


def _cells(where: str, line: str) -> Cells | None:
    # Do not split at every white space: a number may contain a no-break space.
    columns = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
    word = columns[0]
    if word == _DOCUMENT:
        return None
    if not word.strip():
        raise DataError(f"{where}: no word in the first column; expected a word and its tag, or a blank line")
    return word, columns[-1] if len(columns) > 1 else None


def _conllu_cells(where: str, line: str) -> Cells | None:
    columns = line.split("\t")
    if len(columns) != _WIDTH:
        raise DataError(f"{where}: {len(columns)} columns, by tabs; expected the {_WIDTH} of CoNLL-U")
    if "-" in columns[0] or "." in columns[0]:
        return None
    word, tag = columns[_FORM], columns[_UPOS]
    if not word.strip():
        raise DataError(f"{where}: its FORM is empty; expected a word")
    return word, None if tag == _UNKNOWN else tag


def _sentence(where: str, words: list[Cells], settings: TaskSettings) -> dict[str, Any]:
    record: dict[str, Any] = {settings.text_fields[0]: [word for word, _ in words]}
    without = [word for word, tag in words if tag is None]
    if not without:
        record[settings.label_name] = [tag for _, tag in words]
    elif len(without) < len(words):
        raise DataError(
            f"{where}: {len(without)} of the {len(words)} words of this sentence have no tag, "
            f"{shown(without[0])} first; expected a tag for each word, or for none"
        )
    return record
