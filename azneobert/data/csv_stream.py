"""CSV through Arrow's parser, with what it does not do itself: say how far it is, and that a quote is never closed."""

from __future__ import annotations

import codecs
import threading
from array import array
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from azneobert.data.unpacking import Unpacked


class Feed:
    """The bytes of a CSV file, unpacked, without a byte order mark, and then `end`.

    Arrow reads it from a thread of its own and lets go of it, which closes it, as soon as that is through, while rows
    are still to be had. A file that was closed then could not say how far it has been read; this one closes with the
    last who holds it.

    Of a row of the wrong width Arrow says nothing if it is not UTF-8, and refuses the file. So reading ends in an error
    at what is not, `is_utf8` says so, and a feed that is `coded` writes each byte as the character of its number.

    Use as a context manager: Arrow's thread reads ahead of a reader that was given up, and one that is at it when the
    interpreter ends would abort the process. On leaving, it is waited for, and reads no more.
    """

    closed = False

    def __init__(self, file: Path, compression: str | None, end: bytes = b"", coded: bool = False):
        self._stream = Unpacked(pa.OSFile(str(file)), compression)
        self._end = end
        self._coded = coded
        self._at_start = True
        self._tail = b""
        self._reading = threading.Lock()
        self._left = False
        self.is_utf8 = True  # as far as it has been read

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._reading:
            self._left = True

    def read(self, size: int) -> bytes:
        """So many of the next bytes, or fewer at the end, and `end` after the last."""
        with self._reading:
            if self._left:
                raise OSError("nobody reads this any more")
            if self._coded:
                return self.plain(size // 2).decode("latin-1").encode()  # no byte becomes more than two
            data = self.plain(size)
            self._check(data)
            return data

    def plain(self, size: int) -> bytes:
        """The same without a look at what they are."""
        data = self._stream.read(size)
        if self._at_start:
            self._at_start, data = False, data.removeprefix(codecs.BOM_UTF8)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        if len(data) < size:
            # With what is before it, since a first block that holds no line end would be refused.
            data, self._end = data + self._end, b""
        return data

    def _check(self, data: bytes) -> None:
        data = self._tail + data if self._tail else data
        # A character may be cut at the end of what has been read: it is looked at with what comes next.
        cut = next((n for n in range(1, min(4, len(data) + 1)) if data[-n] >= 0xC0), 0)
        cut = cut if cut and data[-cut] >= (0xC0, 0xE0, 0xF0)[cut - 1] else 0
        self._tail = data[len(data) - cut :]
        offsets = pa.py_buffer(array("i", [0, len(data) - cut]))
        try:  # several times faster than Python's decoder, which makes a text of it
            pa.StringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
        except pa.ArrowInvalid:
            self.is_utf8 = False
            raise OSError("not UTF-8") from None

    def tell(self) -> int:
        """How far the file, as it is packed, has been read."""
        return self._stream.packed()

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
