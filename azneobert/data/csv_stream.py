"""CSV through Arrow's parser, plus what the parser lacks: its position, and notice of a quote that is never closed."""

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
    """The decompressed bytes of a CSV file without a byte order mark, followed by `end`.

    Arrow reads the feed in its own thread and closes it as soon as that thread has finished, while rows are still to
    come. A file closed then could not say how far it has been read, so `close` does nothing: the file closes when the
    last reference to it is gone.

    If a row of the wrong width is not UTF-8, Arrow refuses the file without naming the row. So reading ends in an error
    at bytes that are not UTF-8 and clears `is_utf8`; a `coded` feed writes each byte as the character of its number.

    Use it as a context manager. Arrow's thread reads ahead even when the reader has been given up, and a thread that
    still reads when the interpreter ends would abort the process. Leaving waits for the read and refuses later ones.
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
        """The next `size` bytes, or fewer at the end of the file, where `end` follows the last one."""
        with self._reading:
            if self._left:
                raise OSError("nobody reads this any more")
            if self._coded:
                return self.plain(size // 2).decode("latin-1").encode()  # no byte becomes more than two
            data = self.plain(size)
            self._check(data)
            return data

    def plain(self, size: int) -> bytes:
        """The same as `read`, but neither checked nor coded."""
        data = self._stream.read(size)
        if self._at_start:
            self._at_start, data = False, data.removeprefix(codecs.BOM_UTF8)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        if len(data) < size:
            # `end` is joined to the bytes before it, since Arrow refuses a first block without a line end.
            data, self._end = data + self._end, b""
        return data

    def _check(self, data: bytes) -> None:
        data = self._tail + data if self._tail else data
        # The last character may be cut: it is checked together with the bytes that come next.
        cut = next((n for n in range(1, min(4, len(data) + 1)) if data[-n] >= 0xC0), 0)
        cut = cut if cut and data[-cut] >= (0xC0, 0xE0, 0xF0)[cut - 1] else 0
        self._tail = data[len(data) - cut :]
        offsets = pa.py_buffer(array("i", [0, len(data) - cut]))
        try:  # several times faster than Python's decoder, which builds a string
            pa.StringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
        except pa.ArrowInvalid:
            self.is_utf8 = False
            raise OSError("not UTF-8") from None

    def tell(self) -> int:
        """How far the file has been read, in (compressed) bytes on disk."""
        return self._stream.packed()

    def close(self) -> None:
        """Do nothing: the docstring of the class says why."""


def end_row(columns: int) -> str:
    """A row to put after the last one of a file: too wide, whether or not a quote is open there.

    If a quote is open, the first quote of this row closes it. If not, the first quote opens one, and the second closes
    it. So the parser reports this row in any case, alone or with all that an open quote has swallowed.
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
    """The bytes that a `coded` feed turned into this text."""
    return value.encode("latin-1")
