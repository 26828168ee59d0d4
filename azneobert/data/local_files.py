"""Local files as a source: several formats, read a batch at a time from any position."""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from azneobert.data.csv_stream import Feed, coded, decoded, end_row, open_csv
from azneobert.data.encoding import HEAD, encoding_problem
from azneobert.data.records import (
    LONGEST,
    TOO_LONG,
    Malformed,
    Position,
    Records,
    add_record,
    bounded_lines,
    decode,
    parse_json,
)
from azneobert.data.unpacking import Unpacked
from azneobert.errors import DataError
from azneobert.recipe import FileSource

FORMATS = (".jsonl", ".parquet", ".csv", ".txt")
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
_BATCH_DOCUMENTS = 4096
_BATCH_CHARACTERS = 4 << 20
_PARQUET_ROWS = 1024
_CSV_BLOCK = 16 << 20
_PIECE = 1 << 20


def source_files(path: Path) -> list[Path]:
    """The files of a local source: the path itself, or the readable files below a folder in the order of their paths.

    Links are followed.

    Raises:
        DataError: the path is missing, holds no readable file, or holds something that cannot be read: an empty file, a
            link to nowhere or in a circle, a pipe or a device, a folder that this user may not look into.
    """
    readable = "expected a .jsonl, .csv or .txt file (or one of them as .gz or .zst), or a .parquet file"
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such source file or folder; change its `path`, or put it there; {readable}")
    if stat.S_ISDIR(_stat(path).st_mode):
        files = sorted(_files_below(path))
    else:
        files = [path]
    for file in files:
        found = _stat(file)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{file}: is a {_kind(found.st_mode)}, no file or folder; {readable}")
        if file_format(file) and found.st_size == 0:
            raise DataError(f"{file}: is empty; remove it, or fetch it again")
    files = [file for file in files if file_format(file)]
    if not files:
        raise DataError(f"{path}: holds no source; {readable}")
    return files


def _files_below(path: Path) -> Iterator[Path]:
    """All files below a folder that are sources by their names and not hidden, in any order."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); allow it, or remove it") from None

    above: dict[str, set[tuple[int, int]]] = {}  # for each folder, the folders on the way to it
    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        found = _stat(Path(folder))
        way = above.pop(folder, set())
        if (found.st_dev, found.st_ino) in way:
            raise DataError(f"{folder}: is a link to a folder above it; remove it")
        folders[:] = [name for name in folders if not name.startswith(".")]
        above |= {str(Path(folder, name)): way | {(found.st_dev, found.st_ino)} for name in folders}
        for name in names:
            if not name.startswith("."):
                file = Path(folder, name)
                if file_format(file):
                    yield file
                elif file.is_symlink():
                    _stat(file)  # it may have been a link to a folder


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if path.is_symlink() and isinstance(error, FileNotFoundError):
            raise DataError(f"{path}: is a link to {path.readlink()}, which is not there; put it there") from None
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None


def _kind(mode: int) -> str:
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def file_format(file: Path, formats: tuple[str, ...] = FORMATS) -> tuple[str, str | None] | None:
    """A file's format and compression by its name, None if it has none of the formats."""
    for suffix, compression in COMPRESSIONS.items():
        inner = file.name.removesuffix(suffix)
        if file.name.endswith(suffix) and inner.endswith(formats) and not (suffix and inner.endswith(".parquet")):
            return Path(inner).suffix, compression
    return None


@dataclass
class _Cursor:
    """How far into a file the records reach: decompressed bytes, and lines or rows."""

    offset: int
    record: int

    @property
    def started(self) -> bool:
        return self.offset > 0 or self.record > 0


class FileReader:
    """Local files, one after the other. A position is a file's number and how far into it the records reach."""

    def __init__(self, source: FileSource):
        self._source = source
        self._files = source_files(Path(source.path))
        found = [file.stat() for file in self._files]
        self._sizes = [one.st_size for one in found]
        self._twins: dict[int, Path] = {}  # files that came before under another name
        first: dict[tuple[int, int], int] = {}
        for number, one in enumerate(found):
            before = first.setdefault((one.st_dev, one.st_ino), number)
            if before != number:
                self._twins[number] = self._files[before]
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
            if number in self._twins and not cursor.started:
                yield Records(
                    position={"file": number, "offset": 0, "record": 0},
                    bytes_read=before,
                    warning=f"{self._files[number]}: is the same file as {self._twins[number]}, "
                    "so that all of it comes twice; remove one of them",
                )
            for records in _read_file(self._files[number], self._source, cursor):
                records.position = {"file": number, "offset": cursor.offset, "record": cursor.record}
                records.bytes_read = before + (records.bytes_read or 0)
                yield records


def _read_file(file: Path, source: FileSource, cursor: _Cursor) -> Iterator[Records]:
    form, compression = file_format(file) or ("", None)
    with damage_named(file, form, compression):
        if form == ".parquet":
            yield from _read_parquet(file, source, cursor)
        elif form == ".csv":
            yield from _read_csv(file, compression, source, cursor)
        else:
            yield from _read_lines(file, form, compression, source, cursor)


@contextmanager
def damage_named(file: Path, form: str, compression: str | None) -> Iterator[None]:
    """Turn the error that a damaged file of this format and compression raises into one line."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:  # names of columns in another encoding
        raise DataError(f"{file}: damaged {form[1:]} file ({_one_line(error)}); fetch it again") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(
            f"{file}: damaged {compression or form[1:]} file ({_one_line(error)}); fetch it again"
        ) from None


def _read_lines(
    file: Path, form: str, compression: str | None, source: FileSource, cursor: _Cursor
) -> Iterator[Records]:
    with file.open("rb") as raw:
        lines = open_lines(raw, compression, cursor.offset)
        from_start = nothing_yet = not cursor.started
        whole_files = form == ".txt" and source.sample_by == "document"
        if from_start and not whole_files and (problem := encoding_problem(head(lines), file, compression)):
            raise DataError(f"{file}: {problem}")
        if form == ".jsonl":
            items = _json_lines(file, lines, cursor)
        else:
            items = _texts(file, compression, lines, cursor, source.sample_by)
            source = source.model_copy(update={"text_field": "text", "id_field": None})
        records, characters = Records(), 0
        for where, record in items:
            before = len(records.texts)
            add_record(records, record, source, where)
            characters += len(records.texts[-1] or "") if len(records.texts) > before else 0
            if nothing_yet:
                nothing_yet = form == ".txt" and len(records.texts) > before and _is_blank(records.texts[-1])
            if characters >= _BATCH_CHARACTERS or len(records) >= _BATCH_DOCUMENTS:
                records.bytes_read = raw.tell()
                yield records
                records, characters = Records(), 0
        records.bytes_read = raw.tell()
        if nothing_yet:
            _note_blank(records, file, f"{cursor.record:,} blank lines" if cursor.record else "it is packed nothing")
        yield records


def _is_blank(text: str | None) -> bool:
    return not text or text.isspace()


def _note_blank(records: Records, file: Path, found: str) -> None:
    records.blank, records.warning = True, f"{file}: holds no record: {found}"


def open_lines(raw: BinaryIO, compression: str | None, offset: int = 0) -> BinaryIO:
    """A file's lines from a (decompressed) offset on."""
    if compression is None:
        raw.seek(offset)
        return raw
    stream = Unpacked(pa.PythonFile(raw, mode="r"), compression)
    while offset > 0:
        offset -= len(stream.read(min(_BATCH_CHARACTERS, offset)))
    return io.BufferedReader(stream, 1 << 20)


def head(lines: BinaryIO) -> bytes:
    """The next bytes of what `open_lines` has opened, without consuming them."""
    assert isinstance(lines, io.BufferedReader)
    return lines.peek(HEAD)[:HEAD]  # what is in its buffer


def _json_lines(file: Path, lines: BinaryIO, cursor: _Cursor) -> Iterator[tuple[str, Any]]:
    for line, size in bounded_lines(lines):
        cursor.offset += size
        cursor.record += 1
        record = Malformed(TOO_LONG) if line is None else parse_json(line)
        if record is not None:
            yield f"{file}:{cursor.record}", record


def _texts(
    file: Path,
    compression: str | None,
    lines: BinaryIO,
    cursor: _Cursor,
    sample_by: Literal["document", "paragraph", "line"],
) -> Iterator[tuple[str, Any]]:
    """Plain text: a record is the whole file, the text between blank lines, or a line.

    If a record is a whole file, a file in another encoding is one malformed record.
    """
    pending = bytearray()
    size = number = held = 0

    def record() -> tuple[str, Any]:
        nonlocal size, number, held
        where = str(file) if sample_by == "document" else f"{file}:{cursor.record + 1}"
        text, is_whole = bytes(pending), held <= LONGEST
        if not cursor.offset:
            text = text.removeprefix(codecs.BOM_UTF8)
        cursor.offset, cursor.record = cursor.offset + size, cursor.record + number
        pending.clear()
        size = number = held = 0
        found = decode(text) if is_whole else Malformed(TOO_LONG)
        if sample_by == "document" and is_whole and (isinstance(found, Malformed) or "\0" in found):
            found = Malformed(problem) if (problem := encoding_problem(text[:HEAD], file, compression)) else found
        return where, found if isinstance(found, Malformed) else {"text": found}

    for line, length in _pieces(lines) if sample_by == "document" else bounded_lines(lines):
        size, held = size + length, held + length
        number += 1 if line is None or sample_by != "document" else line.count(b"\n")
        if line is not None and held <= LONGEST:
            pending += line
        if sample_by == "line" or (sample_by == "paragraph" and line is not None and line.isspace()):
            yield record()
    if size:
        yield record()


def _pieces(file: BinaryIO) -> Iterator[tuple[bytes | None, int]]:
    while piece := file.read(_PIECE):
        yield piece, len(piece)


def _read_parquet(file: Path, source: FileSource, cursor: _Cursor) -> Iterator[Records]:
    opened = pq.ParquetFile(file)
    columns = _columns(file, opened.schema_arrow.names, source)
    size, rows = file.stat().st_size, opened.metadata.num_rows
    if not rows:
        records = Records(bytes_read=size)
        _note_blank(records, file, "0 rows")
        yield records
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
        if cursor.record != group_end:  # Arrow does not report it
            raise pa.ArrowInvalid(f"{cursor.record:,} rows up to row group {group}, its end says {group_end:,}")
    if group_end != rows:
        raise pa.ArrowInvalid(f"its row groups have {group_end:,} rows, its end says {rows:,}")


def _read_csv(file: Path, compression: str | None, source: FileSource, cursor: _Cursor) -> Iterator[Records]:
    size = file.stat().st_size
    names = _csv_header(file, compression, cursor)
    if names is None:
        blank, lines = Records(bytes_read=size), _count_blank(file, compression)
        _note_blank(blank, file, f"{lines:,} blank lines" if lines else "it is packed nothing")
        yield blank
        return
    columns = _columns(file, names, source)
    from_start, ended, rows = not cursor.started, cursor.offset, 0
    malformed: list[str] = []
    for recode in (False, True):
        rows = 0
        malformed = []
        feed = Feed(file, compression, f"\n{end_row(len(names))}".encode(), recode)
        asked = [coded(name) for name in columns] if recode else columns
        try:
            with feed:
                for batch in open_csv(feed, _CSV_BLOCK, asked, _skip(file, end_row(len(names)), malformed, recode)):
                    before, rows = rows, rows + len(batch)
                    if rows > cursor.record:
                        fresh = batch.slice(max(0, cursor.record - before))
                        fresh = _recoded(fresh, columns) if recode else fresh
                        yield _from_arrow(file, fresh, source, cursor, feed.tell())
            break
        except (pa.ArrowInvalid, OSError) as error:
            if "straddles two block boundaries" in str(error):
                raise DataError(
                    f"{file}: a row after the {rows:,}th is longer than {_CSV_BLOCK >> 20} MB; look there for a quote "
                    "that never closes"
                ) from None
            if recode or feed.is_utf8:
                raise
    # The parser runs ahead of the batches and passes over empty ones, so the rows that it skips are given after all
    # others; an offset of 1 says that they have been given.
    if malformed and not ended:
        cursor.offset = 1
        yield Records(malformed=malformed, bytes_read=size)
    elif not rows and from_start:
        empty = Records(bytes_read=size)
        _note_blank(empty, file, "a header and no row")
        yield empty


def _skip(file: Path, end: str, malformed: list[str], recode: bool) -> Callable[[pa_csv.InvalidRow], str]:
    """A handler that notes in `malformed` each row of another width than the header, and a quote that never closes."""

    def skip(row: pa_csv.InvalidRow) -> str:
        text = decoded(row.text).decode(errors="replace") if recode else row.text
        where = f"{file}:{row.number}"
        if text.endswith(f"\n{end}"):
            # Each line that the quote has swallowed counts as malformed, so that the tolerated share decides.
            lost = [line for line in text[: -len(end)].split("\n") if line.strip()]
            malformed.append(f"{where}: a quote opens here and never closes, {len(lost):,} lines: {lost[0]!r:.60}")
            malformed.extend([f"{where}: inside a quote that never closes"] * (len(lost) - 1))
        elif text != end:
            found, expected = row.actual_columns, row.expected_columns
            malformed.append(f"{where}: {found} columns, the header has {expected}: {text!r:.60}")
        return "skip"

    return skip


def _recoded(batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
    """A batch of a `coded` feed, with the bytes that are in the file."""
    values = ([value and decoded(value.decode()) for value in column.to_pylist()] for column in batch.columns)
    return pa.RecordBatch.from_arrays([pa.array(column, pa.binary()) for column in values], names=columns)


def _csv_header(file: Path, compression: str | None, cursor: _Cursor) -> list[str] | None:
    """The names of the columns, None if the file holds only blank lines."""
    problem = None if cursor.started else encoding_problem(Feed(file, compression).plain(HEAD), file, compression)
    if problem:
        raise DataError(f"{file}: {problem}")
    names: list[str] = []
    # A small block is enough for nearly every header.
    for block, recode in ((min(HEAD, _CSV_BLOCK), False), (_CSV_BLOCK, False), (_CSV_BLOCK, True)):
        try:
            with Feed(file, compression, b"\n", recode) as feed:
                names = list(open_csv(feed, block).schema.names)
            names = [decoded(name).decode() for name in names] if recode else names
            break
        except UnicodeDecodeError:
            raise DataError(f"{file}: its header is not UTF-8; save it as UTF-8") from None
        except (pa.ArrowInvalid, OSError) as error:
            if "Empty CSV" in str(error) and block == _CSV_BLOCK:
                break
            if recode:
                raise
    if not "".join(names).strip() and _count_blank(file, compression) is not None:
        return None
    if not names:
        raise DataError(f"{file}: its first row is longer than {_CSV_BLOCK >> 20} MB; put the column names there")
    return names


def _count_blank(file: Path, compression: str | None) -> int | None:
    """The number of lines of a file that is blank, None if it is not."""
    feed, lines = Feed(file, compression), 0
    while data := feed.plain(_CSV_BLOCK):
        if data.strip():
            return None
        lines += data.count(b"\n")
    return lines


def _columns(file: Path, names: list[str], source: FileSource) -> list[str]:
    """The top-level columns that the text and the id stand in."""
    fields = [name for name in (source.text_field, source.id_field) if name is not None]
    missing = [name for name in fields if name.split(".")[0] not in names]
    if missing:
        found = " ".join(", ".join(names).split())[:300] or "none"
        raise DataError(f"{file}: no column {missing[0]!r}, found {found}; name one of them")
    columns = list(dict.fromkeys(name.split(".")[0] for name in fields))
    for column in columns:
        if names.count(column) > 1:
            raise DataError(f"{file}: {names.count(column)} columns are called {column!r}; rename all but one")
    return columns


def _from_arrow(file: Path, batch: pa.RecordBatch, source: FileSource, cursor: _Cursor, bytes_read: int) -> Records:
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
