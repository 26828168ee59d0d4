"""The eleven collections: what each is, and how its source files become (id, text) pairs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from azneobert.errors import DataError

# In the order of their precedence: a text that stands in two collections is kept in the first.
COLLECTIONS = {
    "wikipedia": "encyclopaedia articles",
    "e_qanun": "legislation",
    "court_cases": "court rulings",
    "news": "news items",
    "pdfs": "text extracted from PDF files: books, theses, reports",
    "folklor": "folk tales, verse and sayings",
    "nllb": "the Azerbaijani side of sentence pairs",
    "fineweb2": "filtered web pages",
    "hplt3": "web pages of the HPLT crawl",
    "culturax": "web pages of CulturaX",
    "cc100": "raw paragraphs of Common Crawl",
}

SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class RawDocument:
    """A document as its source states it, before any cleaning."""

    id: str
    text: str


def source_files(path: Path) -> list[Path]:
    """The files of one source: the path itself, or the supported files of a folder in the order of their names.

    Raises:
        DataError: the path is missing, holds no supported file, or a file is empty.
    """
    supported = " or ".join(SUFFIXES)
    if not path.exists():
        raise DataError(f"{path}: no such source file or folder; put {supported} files there or change its `path`")
    if path.is_file():
        files = [path]
    else:
        files = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES))
    if not files or not files[0].name.endswith(SUFFIXES):
        raise DataError(f"{path}: holds no source; a {supported} file would do")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: is empty; one JSON object a line, with the document's text, would do")
    return files


def read_source(path: Path, text_field: str, id_field: str | None) -> Iterator[RawDocument]:
    """Every document of a source, in file order.

    `text_field` may be a dotted path into nested objects, such as ``translation.azj_Latn``. Without an `id_field` a
    document is named by its file and line.

    Raises:
        DataError: a line is not a JSON object, or lacks the text field; the message names file and line.
    """
    for file in source_files(path):
        with _open_bytes(file) as lines:
            yield from _read_lines(file, lines, text_field, id_field)


def _open_bytes(file: Path) -> IO[bytes]:
    if file.name.endswith(".gz"):
        return gzip.open(file)  # type: ignore[return-value]  # a GzipFile is a binary file but for its stubs
    return file.open("rb")


def _read_lines(file: Path, lines: IO[bytes], text_field: str, id_field: str | None) -> Iterator[RawDocument]:
    number = 0
    try:
        for number, raw in enumerate(lines, start=1):
            line = raw.decode()
            if line.strip():
                record = _parse(file, number, line)
                text = _field(file, number, record, text_field)
                identity = _field(file, number, record, id_field) if id_field else f"{file.name}:{number}"
                yield RawDocument(id=identity, text=text)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}:{number}: is not UTF-8 ({error.reason}); convert the file to UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}:{number + 1}: broken gzip file ({error}); fetch it again") from None


def _parse(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        shown = line.strip()[:40]
        raise DataError(
            f"{file}:{number}: not JSON ({error.msg}): {shown!r}; one JSON object a line would do"
        ) from None
    if not isinstance(record, dict):
        raise DataError(f"{file}:{number}: a JSON {type(record).__name__}; an object with the document's text would do")
    return record


def _field(file: Path, number: int, record: dict[str, Any], dotted: str) -> str:
    value: Any = record
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
            raise DataError(
                f"{file}:{number}: no field {dotted!r}, found {found}; name a field that is there, or add it"
            )
        value = value[key]
    if not isinstance(value, str):
        raise DataError(f"{file}:{number}: field {dotted!r} is {type(value).__name__}; a string would do")
    return value
