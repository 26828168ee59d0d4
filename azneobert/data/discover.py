"""Finds what is in a folder: its collections, the fields of their text and ids, their language, and labelled tasks."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from azneobert.data.languages import BUILT_IN
from azneobert.data.letters import are_of, count_letters
from azneobert.data.local_files import FORMATS, file_format, source_files
from azneobert.data.records import parse_json
from azneobert.errors import DataError
from azneobert.language import LanguageName
from azneobert.recipe import FileSource
from azneobert.settings import name_of

_SPLITS = ("train", "validation", "test")
_USUAL = ("text", "content", "body", "raw_content", "mətn", "metn", "article", "document")
_RECORDS, _FILES = 50, 20  # looked at per file and per folder
_HEAD = 16 << 20  # bytes of a file that are looked at
_LONG = 1 << 20  # bytes of a plain text file that is more than one document


@dataclass
class Found:
    """The collections and labelled tasks of a folder by name, the language, and a line for each other entry."""

    files: dict[str, FileSource] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    language: LanguageName = "azeri_latin"
    passed_over: list[str] = field(default_factory=list)


def discover(folder: Path) -> Found:
    """Look through a folder: each folder in it that holds readable files is a collection, and so is each such file.

    Raises:
        DataError: there is no such folder, or no collection in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; use one that holds the collections")
    found = Found()
    for place in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        name = _free_name(name_of(place.name.split(".")[0]), found)
        if all((place / f"{split}.jsonl").is_file() for split in _SPLITS):
            found.tasks[name] = str(place)
            continue
        try:
            found.files[name] = describe(place)
        except DataError as error:
            found.passed_over.append(str(error))
    if not found.files:
        raise DataError(
            f"{folder}: no collection there; expected files or folders of {', '.join(FORMATS)} (each but .parquet also "
            f".gz or .zst){''.join(f'; {line}' for line in found.passed_over[:3])}"
        )
    found.language = language_of([text for source in found.files.values() for text in sample_texts(source)])
    return found


def language_of(texts: list[str]) -> LanguageName:
    """The first built-in language that at least half of these texts are in; `any` if there is none."""
    for name, language in BUILT_IN.items():
        if language is not None and texts and are_of(count_letters(texts, language), language).mean() >= 0.5:
            return name
    return "any"


def describe(place: Path) -> FileSource:
    """A file or a folder as a source: the fields of text and id, and what a document is in plain text.

    Raises:
        DataError: it holds no readable file, or no field of text that all its files have.
    """
    files = source_files(place)[:_FILES]
    tables = [file for file in files if _format(file) != ".txt"]
    if not tables:
        long = len(files) == 1 and files[0].stat().st_size > _LONG
        return FileSource(path=str(place), sample_by="paragraph" if long else "document")
    fields = [_text_fields(file) for file in tables]
    common = {name: [text for each in fields for text in each[name]] for name in fields[0] if _in_all(name, fields)}
    if not common:
        raise DataError(
            f"{place}: no field of text that all its files have; give each such file a collection of its own"
        )
    text = next((name for name in _USUAL if name in common), max(common, key=lambda name: _promise(common[name])))
    has_id = all("id" in record for file in tables for record in first_records(file))
    return FileSource(path=str(place), text_field=text, id_field="id" if has_id else None)


def sample_texts(source: FileSource) -> list[str]:
    """The first texts of a source, to see what language it is in; a file that cannot be read gives none."""
    texts = []
    for file in source_files(Path(source.path))[:_FILES]:
        key = "text" if _format(file) == ".txt" else source.text_field
        texts += [text for record in first_records(file) for name, text in _strings(record) if name == key]
    return texts


def first_records(file: Path) -> list[dict[str, Any]]:
    """The first whole records of a file; for plain text, its beginning as one record."""
    form, compression = file_format(file) or ("", None)
    try:
        if form == ".parquet":
            batch = next(pq.ParquetFile(file).iter_batches(_RECORDS), None)
            return [] if batch is None else batch.to_pylist()
        with pa.input_stream(str(file), compression=compression) as stream:
            head = io.BytesIO(stream.read(_HEAD))  # one line may have no end
            lines = io.TextIOWrapper(head, encoding="utf-8-sig", errors="replace", newline="")
            if form == ".txt":
                return [{"text": lines.read(1 << 16)}]
            if form == ".csv":
                return list(itertools.islice(csv.DictReader(lines), _RECORDS))
            records = (parse_json(lines.readline().encode()) for _ in range(_RECORDS))
            return [record for record in records if isinstance(record, dict)]
    except (pa.ArrowException, OSError, csv.Error, ValueError):
        return []  # the reader reports what is wrong with it


def _text_fields(file: Path) -> dict[str, list[str]]:
    """The texts of each field (a dotted path) that holds text in most of a file's first records."""
    records = first_records(file)
    texts: dict[str, list[str]] = {}
    for record in records:
        for name, text in _strings(record):
            texts.setdefault(name, []).append(text)
    return {name: each for name, each in texts.items() if 2 * len(each) > len(records)}


def _in_all(name: str, fields: list[dict[str, list[str]]]) -> bool:
    return all(name in each for each in fields)


def _promise(texts: list[str]) -> tuple[bool, float]:
    """The rank of a field as the text field: a known language first (as in pairs of translations), then mean length."""
    return language_of(texts) != "any", sum(map(len, texts)) / len(texts)


def _strings(record: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, str) and value.strip() and key is not None:
            yield f"{within}{key}", value
        elif isinstance(value, dict) and within.count(".") < 5:
            yield from _strings(value, f"{within}{key}.")


def _format(file: Path) -> str:
    return (file_format(file) or ("", None))[0]


def _free_name(name: str, found: Found) -> str:
    numbers = (f"{name}{'' if number == 1 else f'_{number}'}" for number in itertools.count(1))
    return next(each for each in numbers if each not in found.files and each not in found.tasks)
