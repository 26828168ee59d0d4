"""CSV through Arrow's parser, plus what the parser lacks: its position, and notice of a quote that is never closed."""

from __future__ import annotations

import codecs
import threading
import time
import weakref
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv as pa_csv

from azneobert.data.unpacking import Unpacked

_LONGEST_LEAVE = 10.0  # seconds; giving up a reader takes Arrow's threads a millisecond
_PAUSE = 5e-4  # seconds
_BUFFER = 1 << 16  # bytes; a block is larger, and is read around the buffer

Lent = TypeVar("Lent")


class Feed:
    """The decompressed bytes of a CSV file without a byte order mark, followed by `end`.

    Arrow reads the feed in its own thread and closes it as soon as that thread has finished, while rows are still to
    come. A file closed then could not say how far it has been read, so closing does nothing: the file closes when the
    last reference to it is gone.

    If a row of the wrong width is not UTF-8, Arrow refuses the file without naming the row. So reading ends in an error
    at bytes that are not UTF-8 and clears `is_utf8`; a `coded` feed writes each byte as the character of its number.

    Use it as a context manager. Arrow's threads read ahead even when the reader has been given up, and a thread that
    reads, or lets go of a Python object, while the interpreter ends would abort the process. So leaving refuses later
    reads, and waits until Arrow holds no Python object any more.

    Raises:
        OSError: on leaving, if the bytes that were asked for could not be read.
    """

    def __init__(self, file: Path, compression: str | None, end: bytes = b"", coded: bool = False):
        self._stream = Unpacked(pa.OSFile(str(file)), compression)
        self._end = end
        self._coded = coded
        self._at_start = True
        self._tail = b""
        self._reading = threading.Lock()
        self._left = False
        self._error: Exception | None = None
        self._lent: list[weakref.ref[Any]] = []
        self.is_utf8 = True  # as far as it has been read

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        with self._reading:
            self._left = True
        end = time.monotonic() + _LONGEST_LEAVE
        while any(lent() is not None for lent in self._lent) and time.monotonic() < end:
            time.sleep(_PAUSE)
        if self._error is not None and isinstance(raised, pa.ArrowTypeError):
            raise self._error from None

    def lend(self, lent: Lent) -> Lent:
        """Give Arrow's threads an object that nobody else holds."""
        self._lent.append(weakref.ref(lent))
        return lent

    def read(self, size: int) -> bytes | None:
        """The next `size` bytes, or fewer at the end of the file, where `end` follows the last one.

        None where they cannot be read. Arrow then raises an `ArrowTypeError` of its own, for which leaving raises the
        true error: one raised here would be a Python object that Arrow's threads hold.
        """
        with self._reading:
            if self._left:
                return None
            try:
                if self._coded:
                    return self.plain(size // 2).decode("latin-1").encode()  # no byte becomes more than two
                data = self.plain(size)
                self._check(data)
            except Exception as error:
                self._error = error.with_traceback(None)
                return None
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


class _Reads:
    """A feed as Arrow holds it: when this object is gone, Arrow has let go of the file."""

    closed = False

    def __init__(self, feed: Feed):
        self.read = feed.read

    def close(self) -> None:
        """Do nothing: the docstring of `Feed` says why."""


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
    skip: Callable[[pa_csv.InvalidRow], str] = lambda row: "skip",
) -> pa_csv.CSVStreamingReader:
    """Columns of a file as bytes, so that one value that is not UTF-8 is one malformed record and not a broken file."""
    convert = pa_csv.ConvertOptions(
        include_columns=columns or [], column_types=dict.fromkeys(columns or [], pa.binary()), strings_can_be_null=False
    )
    # Arrow holds these two alone: a variable of this function would live on in the traceback of an error.
    return pa_csv.open_csv(
        # A buffered stream copies what it reads. Otherwise Arrow's threads would hold Python's bytes.
        pa.BufferedInputStream(pa.PythonFile(feed.lend(_Reads(feed)), mode="r"), _BUFFER),
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=block_size),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=feed.lend(partial(skip))),
        convert_options=convert,
    )


def coded(text: str) -> str:
    """A text as a `coded` feed gives it."""
    return text.encode().decode("latin-1")


def decoded(value: str) -> bytes:
    """The bytes that a `coded` feed turned into this text."""
    return value.encode("latin-1")
