"""CSV through Arrow's parser, with what it does not do itself: say how far it is, and that a quote is never closed."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from azneobert.data.encoding import HEAD


class Feed:
    """The bytes of a CSV file, without a byte order mark, and then `end`.

    Arrow reads it from a thread of its own and lets go of it, which closes it, as soon as that is through, while rows
    are still to be had. A file that was closed then could not say how far it has been read; this one closes with the
    last who holds it. With `coded`, each byte is written as the character of its number, so that everything is UTF-8.
    """

    closed = False

    def __init__(self, file: Path, compression: str | None, end: bytes = b"", coded: bool = False):
        self._file = pa.OSFile(str(file))
        self._stream = self._file if compression is None else pa.CompressedInputStream(self._file, compression)
        self._end = end
        self._coded = coded
        self.head = self._stream.read(HEAD)
        self._pending = self.head.removeprefix(codecs.BOM_UTF8)

    def read(self, size: int) -> bytes:
        """So many of the next bytes, or fewer at the end."""
        if self._coded:
            size //= 2  # no byte becomes more than two
        # A first block of a header without a line end would be refused, so the end comes with what is before it.
        while len(self._pending) < size and (more := self._stream.read(size - len(self._pending)) or self._end):
            self._end = self._end if more is not self._end else b""
            self._pending += more
        data, self._pending = self._pending[:size], self._pending[size:]
        return data.decode("latin-1").encode() if self._coded else data

    def tell(self) -> int:
        """How far the file, as it is packed, has been read."""
        return int(self._file.tell())

    def close(self) -> None:
        """Nothing yet: see above."""


def end_row(columns: int) -> str:
    """A row to put after the last one of a file: too wide, whether or not a quote is open there.

    If one is, the first quote of `",",` closes it, else it opens one of its own, which the second one closes. So the
    parser reports this row in any case, alone or with all that an open quote has swallowed.
    """
    return '"' + "," * columns + '"' + "," * columns


def open_csv(
    feed: Feed,
    block_size: int,
    columns: list[str] | None = None,
    skip: Callable[[pa_csv.InvalidRow], str] | None = None,
) -> pa_csv.CSVStreamingReader:
    """Columns of a file as bytes, so that one value that is not UTF-8 is one malformed record and not a broken file."""
    convert = pa_csv.ConvertOptions(
        include_columns=columns or [], column_types=dict.fromkeys(columns or [], pa.binary()), strings_can_be_null=False
    )
    return pa_csv.open_csv(
        pa.PythonFile(feed, mode="r"),
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=block_size),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip or (lambda row: "skip")),
        convert_options=convert,
    )


def coded(text: str) -> str:
    """A text as a `coded` feed gives it."""
    return text.encode().decode("latin-1")


def decoded(value: str) -> bytes:
    """What a `coded` feed has made a text of."""
    return value.encode("latin-1")
