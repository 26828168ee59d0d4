"""Decompress a file in pieces. A file that expands far more than any text does is refused, not read for days."""

from __future__ import annotations

import io

import pyarrow as pa

_FREELY = 64 << 20  # bytes that any file may unpack to
_MOST_TIMES = 200  # text compresses to a third or a tenth, one page repeated to a hundredth


class Unpacked(io.RawIOBase):
    """The decompressed bytes of a gzip or zstd file, or the bytes of an uncompressed file, from its start on.

    Raises:
        OSError: without errno, while reading: the file is damaged, or expands to more than text does.
    """

    def __init__(self, file: pa.NativeFile, compression: str | None):
        super().__init__()
        self._file = file
        self._stream = file if compression is None else pa.CompressedInputStream(file, compression)
        self._is_packed = compression is not None
        self._size = 0

    def readable(self) -> bool:
        """True: it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` of the next bytes; none at the end."""
        data: bytes = self._stream.read(size if size >= 0 else _FREELY)
        self._size += len(data)
        if self._is_packed and self._size > _FREELY and self._size > _MOST_TIMES * self.packed():
            raise OSError(f"it unpacks to more than {_MOST_TIMES} times its size, as no text does")
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer, as `io.BufferedReader` asks for it."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def packed(self) -> int:
        """How many (compressed) bytes of the file on disk have been read."""
        return int(self._file.tell())
