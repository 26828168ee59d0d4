"""The records that every reader of a source gives: an id and a text each, or what is wrong with the record."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from azneobert.files import check_depth
from azneobert.recipe import Source

# What a reader needs to continue where it stopped: plain JSON that only this reader interprets.
Position = dict[str, Any]
LONGEST = 64 << 20  # bytes of a record; in memory it may be several times as much
TOO_LONG = f"is longer than {LONGEST >> 20} MB, which no document is"


@dataclass
class Records:
    """Consecutive records of a source. `malformed` has a line for each unusable record that says what is wrong with it.

    A text may be missing (None). `position` is where to go on after these records; `bytes_read` is how far
    they reach into the source's files, None if that is not known. `warning` is a line about the file that they come
    from, for the user; `blank` means that the warning says that this file holds no text.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    position: Position = field(default_factory=dict)
    bytes_read: int | None = None
    warning: str = ""
    blank: bool = False

    def __len__(self) -> int:
        return len(self.texts) + len(self.malformed)


class SourceReader(Protocol):
    """Reads the records of one source, in an order that is always the same."""

    size: int | None  # bytes on disk

    def state(self) -> Any:
        """What the records depend on, in JSON: a position is only valid for a reader with the same state."""

    def read(self, position: Position | None = None) -> Iterator[Records]:
        """The records from a position on, or all of them.

        Raises:
            DataError: a file is missing, empty, damaged, or of no format that can be read.
        """


def pick(record: dict[str, Any], dotted: str) -> Any:
    """A field of a record; the name may be a dotted path into nested objects, such as ``translation.azj_Latn``.

    Raises:
        KeyError: with what was found instead.
    """
    value: Any = record
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
            raise KeyError(f"no field {dotted!r}, found {found}")
        value = value[key]
    return value


def add_record(records: Records, record: Any, source: Source, where: str) -> None:
    """Put a record's id and text into a batch, or what is wrong with it; `where` names it in either case."""
    if isinstance(record, Malformed):
        records.malformed.append(_writable(f"{where}: {record.problem}"))
        return
    try:
        if not isinstance(record, dict):
            raise KeyError(f"a JSON {type(record).__name__}, not an object")
        text = pick(record, source.text_field)
        identity = where if source.id_field is None else pick(record, source.id_field)
        if text is not None and not isinstance(text, str):
            raise KeyError(f"field {source.text_field!r} is {type(text).__name__}, not a string")
    except KeyError as error:
        # A record's field names may hold line ends or halves of surrogate pairs, or be very long.
        problem = " ".join(str(error.args[0]).split())[:300]
        records.malformed.append(_writable(f"{where}: {problem}"))
    else:
        identity = where if identity is None else identity
        records.ids.append(str(identity).encode("utf-8", "replace").decode())  # as `_writable`, a call for each record
        records.texts.append(text)


def _writable(text: str) -> str:
    # A JSON string or a file's name may hold half of a surrogate pair, which cannot be written to a file.
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Malformed:
    """A record that cannot even be parsed."""

    problem: str


def bounded_lines(lines: BinaryIO) -> Iterator[tuple[bytes | None, int]]:
    """The lines of a file with their sizes in bytes; None instead of a line that is too long to be held in memory."""
    while line := lines.readline(LONGEST + 1):
        size = len(line)
        if size <= LONGEST:
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := lines.readline(LONGEST)):
            size += len(line)
        yield None, size


def parse_json(line: bytes) -> Any:
    """The content of a line of JSON, None for a blank one, or `Malformed` for one that is not UTF-8 or not JSON.

    If a key stands twice, the last one counts. NaN is a number, as in the programs that write such files.
    """
    line = line.removeprefix(codecs.BOM_UTF8)
    if not line.strip():
        return None
    text = decode(line)
    try:
        check_depth(line)
        record = text if isinstance(text, Malformed) else json.loads(text)
    except ValueError as error:  # beside JSONDecodeError, an integer of thousands of digits
        return Malformed(f"not JSON ({error}): {line[:40]!r}")
    return Malformed("a JSON NoneType, not an object") if record is None else record


def decode(value: bytes) -> str | Malformed:
    """The text of UTF-8 bytes, or what is wrong with them."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return Malformed(f"not UTF-8 ({error.reason})")
