"""Local files as a source: several formats, read a batch at a time from any position."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from azneobert.data.records import Malformed, Position, Records, add_record, decode, parse_json
from azneobert.errors import DataError
from azneobert.recipe import FileSource as Source

FORMATS = (".jsonl", ".parquet", ".csv", ".txt")
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
_BATCH_DOCUMENTS = 4096
_BATCH_CHARACTERS = 4 << 20
_PARQUET_ROWS = 1024
_CSV_BLOCK = 16 << 20


def source_files(path: Path) -> list[Path]:
    """The files of a local source: the path itself, or the readable files below a folder in the order of their paths.

    Raises:
        DataError: the path is missing, holds no readable file, or a file is empty.
    """
    readable = "a .jsonl, .csv or .txt file (or one of them as .gz or .zst), or a .parquet file, would do"
    if not path.exists():
        raise DataError(f"{path}: no such source file or folder; change its `path`, or put it there: {readable}")
    if path.is_file():
        files = [path] if file_format(path) else []
    else:
        visible = (f for f in path.rglob("*") if not any(p.startswith(".") for p in f.relative_to(path).parts))
        files = sorted(f for f in visible if file_format(f) and f.is_file())
    if not files:
        raise DataError(f"{path}: holds no source; {readable}")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: is empty; remove it, or fetch it again")
    return files


def file_format(file: Path) -> tuple[str, str | None] | None:
    """A file's format and compression by its name, None where it is no source."""
    for suffix, compression in COMPRESSIONS.items():
        inner = file.name.removesuffix(suffix)
        if file.name.endswith(suffix) and inner.endswith(FORMATS) and not (suffix and inner.endswith(".parquet")):
            return Path(inner).suffix, compression
    return None


@dataclass
class _Cursor:
    """How far into a file the records reach: decompressed bytes, and lines or rows."""

    offset: int
    record: int


class FileReader:
    """Local files, one after the other. A position is a file's number and how far into it the records reach."""

    def __init__(self, source: Source):
        self._source = source
        self._files = source_files(Path(source.path))
        self._sizes = [file.stat().st_size for file in self._files]
        self.size: int | None = sum(self._sizes)

    def state(self) -> Any:
        """The names, sizes and dates of the files."""
        return [[str(file), size, file.stat().st_mtime_ns] for file, size in zip(self._files, self._sizes, strict=True)]

    def read(self, position: Position | None = None) -> Iterator[Records]:
        """The records from a position on, or all of them."""
        first = position or {"file": 0, "offset": 0, "record": 0}
        for number in range(first["file"], len(self._files)):
            at_start = number > first["file"]
            cursor = _Cursor(0, 0) if at_start else _Cursor(first["offset"], first["record"])
            before = sum(self._sizes[:number])
            for records in _read_file(self._files[number], self._source, cursor):
                records.position = {"file": number, "offset": cursor.offset, "record": cursor.record}
                records.bytes_read = before + (records.bytes_read or 0)
                yield records


def _read_file(file: Path, source: Source, cursor: _Cursor) -> Iterator[Records]:
    form, compression = file_format(file) or ("", None)
    try:
        if form == ".parquet":
            yield from _read_parquet(file, source, cursor)
        elif form == ".csv":
            yield from _read_csv(file, compression, source, cursor)
        else:
            yield from _read_lines(file, form, compression, source, cursor)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: damaged {form[1:]} file ({_one_line(error)}); fetch it again") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(
            f"{file}: damaged {compression or form[1:]} file ({_one_line(error)}); fetch it again"
        ) from None


def _read_lines(file: Path, form: str, compression: str | None, source: Source, cursor: _Cursor) -> Iterator[Records]:
    with file.open("rb") as raw:
        lines = _open_lines(raw, compression, cursor.offset)
        if form == ".jsonl":
            items = _json_lines(file, lines, cursor)
        else:
            items = _texts(file, lines, cursor, source.sample_by)
            source = source.model_copy(update={"text_field": "text", "id_field": None})
        records, characters = Records(), 0
        for where, record in items:
            before = len(records.texts)
            add_record(records, record, source, where)
            characters += len(records.texts[-1] or "") if len(records.texts) > before else 0
            if characters >= _BATCH_CHARACTERS or len(records) >= _BATCH_DOCUMENTS:
                records.bytes_read = raw.tell()
                yield records
                records, characters = Records(), 0
        records.bytes_read = raw.tell()
        yield records


def _open_lines(raw: BinaryIO, compression: str | None, offset: int) -> BinaryIO:
    """A file's lines from a (decompressed) offset on."""
    if compression is None:
        raw.seek(offset)
        return raw
    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
    while offset > 0:
        offset -= len(stream.read(min(_BATCH_CHARACTERS, offset)))
    return io.BufferedReader(stream, 1 << 20)


def _json_lines(file: Path, lines: Iterable[bytes], cursor: _Cursor) -> Iterator[tuple[str, Any]]:
    for line in lines:
        cursor.offset += len(line)
        cursor.record += 1
        record = parse_json(line)
        if record is not None:
            yield f"{file}:{cursor.record}", record


def _texts(
    file: Path, lines: Iterable[bytes], cursor: _Cursor, sample_by: Literal["document", "paragraph", "line"]
) -> Iterator[tuple[str, Any]]:
    """Plain text: a record is the whole file, what stands between blank lines, or a line."""
    pending: list[bytes] = []
    size = number = 0

    def record() -> tuple[str, Any]:
        nonlocal size, number
        where = str(file) if sample_by == "document" else f"{file}:{cursor.record + 1}"
        text = b"".join(pending)
        cursor.offset, cursor.record = cursor.offset + size, cursor.record + number
        pending.clear()
        size = number = 0
        decoded = decode(text)
        return where, decoded if isinstance(decoded, Malformed) else {"text": decoded}

    for line in lines:
        pending.append(line)
        size, number = size + len(line), number + 1
        if sample_by == "line" or (sample_by == "paragraph" and line.isspace()):
            yield record()
    if pending:
        yield record()


def _read_parquet(file: Path, source: Source, cursor: _Cursor) -> Iterator[Records]:
    opened = pq.ParquetFile(file)
    columns = _columns(file, opened.schema_arrow.names, source)
    size, rows = file.stat().st_size, opened.metadata.num_rows
    group_end = 0
    for group in range(opened.num_row_groups):
        group_start, group_end = group_end, group_end + opened.metadata.row_group(group).num_rows
        if group_end <= cursor.record:
            continue
        skip = cursor.record - group_start
        for batch in opened.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns):
            taken = batch.slice(min(skip, len(batch)))
            skip -= len(batch) - len(taken)
            if len(taken):
                yield _from_arrow(file, taken, source, cursor, size * (cursor.record + len(taken)) // rows)


def _read_csv(file: Path, compression: str | None, source: Source, cursor: _Cursor) -> Iterator[Records]:
    try:
        names = _open_csv(file, compression).schema.names
    except UnicodeDecodeError:
        raise DataError(f"{file}: its header is not UTF-8; save it as UTF-8") from None
    columns = _columns(file, names, source)
    malformed: list[str] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        malformed.append(f"{file}:{row.number}: {row.actual_columns} columns, the header has {row.expected_columns}")
        return "skip"

    # The parser runs ahead of the batches and passes over empty ones, so the rows that it skips come after all others;
    # an offset of 1 says that they did.
    rows, ended = 0, cursor.offset
    with file.open("rb") as raw:
        for batch in _open_csv(raw, compression, columns, skip):
            rows += len(batch)
            if rows > cursor.record:
                yield _from_arrow(file, batch, source, cursor, raw.tell())
        if malformed and not ended:
            cursor.offset = 1
            yield Records(malformed=malformed, bytes_read=raw.tell())


def _open_csv(
    file: Path | BinaryIO,
    compression: str | None,
    columns: list[str] | None = None,
    skip: Callable[[pa_csv.InvalidRow], str] | None = None,
) -> pa_csv.CSVStreamingReader:
    # Bytes, so that one value that is not UTF-8 is one malformed record and not a broken file.
    convert = pa_csv.ConvertOptions(
        include_columns=columns or [], column_types=dict.fromkeys(columns or [], pa.binary()), strings_can_be_null=False
    )
    plain = pa.PythonFile(file, mode="r") if not isinstance(file, Path) else pa.OSFile(str(file))
    return pa_csv.open_csv(
        plain if compression is None else pa.CompressedInputStream(plain, compression),
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip or (lambda row: "skip")),
        convert_options=convert,
    )


def _columns(file: Path, names: list[str], source: Source) -> list[str]:
    """The top-level columns that the text and the id stand in."""
    fields = [name for name in (source.text_field, source.id_field) if name is not None]
    missing = [name for name in fields if name.split(".")[0] not in names]
    if missing:
        raise DataError(f"{file}: no column {missing[0]!r}, found {', '.join(names)}; name one of them")
    return list(dict.fromkeys(name.split(".")[0] for name in fields))


def _from_arrow(file: Path, batch: pa.RecordBatch, source: Source, cursor: _Cursor, bytes_read: int) -> Records:
    """Rows of a table as records; moves the cursor past them."""
    records = Records(bytes_read=bytes_read)
    for row in _rows(batch):
        cursor.record += 1
        add_record(records, row, source, f"{file}:{cursor.record}")
    return records


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Malformed]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield Malformed(f"not UTF-8 ({error.reason})")
            return
        for number in range(len(batch)):
            yield from _rows(batch.slice(number, 1))
        return
    for row in rows:
        decoded = {name: decode(value) if isinstance(value, bytes) else value for name, value in row.items()}
        yield next((value for value in decoded.values() if isinstance(value, Malformed)), decoded)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
