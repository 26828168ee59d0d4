"""The rows of one file of labelled or unlabelled examples, whatever its format."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from azneobert.data.encoding import encoding_problem
from azneobert.data.local_files import damage_named, file_format, head, open_lines
from azneobert.data.records import LONGEST, TOO_LONG, Malformed, bounded_lines, decode, parse_json
from azneobert.errors import DataError
from azneobert.finetuning import conll
from azneobert.finetuning.quoting import one_line, shown
from azneobert.task_settings import TaskKind, TaskSettings

_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET_ROWS = 1024

Row = tuple[str, dict[str, Any]]  # where it stands (file and line, or row), and its fields


def formats(kind: TaskKind) -> tuple[str, ...]:
    """The file endings for examples of a kind. All files except parquet may be compressed as .gz or .zst."""
    return (*_TABLES, *conll.FORMATS) if kind == "tokens" else _TABLES


def readable(kind: TaskKind) -> str:
    """These file endings, for a message."""
    texts = ", ".join(suffix for suffix in formats(kind) if suffix != ".parquet")
    return f"one of {texts} (or of these as .gz or .zst), or .parquet"


def rows(file: Path, settings: TaskSettings) -> Iterator[Row]:
    """The rows of a file in their order.

    A row of CoNLL is a sentence: its words and, if it has any, its tags, named as `settings` name these fields.

    Raises:
        DataError: the file is missing or damaged, has a format or encoding that cannot be read, or holds a line that is
            not a row.
    """
    if not file.is_file():
        found = "is no regular file" if file.exists() else "no such file"
        raise DataError(f"{file}: {found}; expected {readable(settings.kind)}")
    form, compression = file_format(file, formats(settings.kind)) or ("", None)
    if not form:
        raise DataError(f"{file}: is of no format of {settings.kind} by its name; expected {readable(settings.kind)}")
    with damage_named(file, form, compression):
        if form == ".parquet":
            yield from _parquet_rows(file)
            return
        with file.open("rb") as raw:
            lines = open_lines(raw, compression)
            start = head(lines)
            if problem := encoding_problem(start, file, compression):
                raise DataError(f"{file}: {problem}")
            if form == ".jsonl":
                yield from _json_rows(file, lines)
            elif form in conll.FORMATS or (form == ".tsv" and _is_conll(start, settings)):
                yield from conll.sentences(_text_lines(file, lines), form, settings)
            else:
                yield from _delimited_rows(file, lines, form)


def _json_rows(file: Path, lines: BinaryIO) -> Iterator[Row]:
    for number, (line, _) in enumerate(bounded_lines(lines), start=1):
        record = Malformed(TOO_LONG) if line is None else parse_json(line)
        if isinstance(record, Malformed):
            raise DataError(f"{file}:{number}: {one_line(record.problem, 200)}; expected a JSON object")
        if record is not None and not isinstance(record, dict):
            raise DataError(f"{file}:{number}: is {shown(record)}; expected a JSON object")
        if record is not None:  # a blank line is not a row
            yield f"{file}:{number}", record


def _text_lines(file: Path, lines: BinaryIO) -> Iterator[tuple[str, str]]:
    """The lines of a text file with their ends, and where each stands."""
    for number, (line, _) in enumerate(bounded_lines(lines), start=1):
        if line is not None and number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        text = Malformed(TOO_LONG) if line is None else decode(line)
        if isinstance(text, Malformed):
            raise DataError(f"{file}:{number}: {text.problem}; mend or remove this line")
        yield f"{file}:{number}", text


def _is_conll(start: bytes, settings: TaskSettings) -> bool:
    """Whether a .tsv has no header: its first line names neither the words nor the tags."""
    line = start.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0].decode(errors="replace")
    names = {cell.strip('"\r') for cell in line.split("\t")}
    return names.isdisjoint((settings.text_fields[0], settings.label_name))


def _delimited_rows(file: Path, lines: BinaryIO, form: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)  # the module's own limit, 128 KB, is less than some texts
    reader = csv.reader((line for _, line in _text_lines(file, lines)), delimiter=_DELIMITERS[form], strict=True)
    names: list[str] = []
    while True:
        where = f"{file}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f'{where}: not {form[1:]} ({error}); expected a cell that holds quotes to be written as "a ""b"" c"'
            ) from None
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        if not names:
            names = _header(where, cells)
        elif len(cells) != len(names):
            raise DataError(f"{where}: {len(cells)} cells; expected {len(names)}, as the header has")
        else:
            yield where, dict(zip(names, cells, strict=True))


def _header(where: str, names: list[str]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: {names.count(twice)} columns are called {shown(twice)}; rename all but one")
    return names


def _parquet_rows(file: Path) -> Iterator[Row]:
    opened = pq.ParquetFile(file)
    _header(str(file), opened.schema_arrow.names)
    number = 0
    for batch in opened.iter_batches(_PARQUET_ROWS):
        try:
            found = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # such as a date that Python cannot represent
            raise DataError(
                f"{file}: a value in rows {number + 1:,} to {number + len(batch):,} is none that can be read "
                f"({one_line(error)}); mend it, or leave out its column"
            ) from None
        for row in found:
            number += 1
            yield f"{file}:{number}", row
    if number != opened.metadata.num_rows:  # Arrow reports no error here
        raise DataError(f"{file}: {number:,} rows, its end says {opened.metadata.num_rows:,}; fetch it again")
