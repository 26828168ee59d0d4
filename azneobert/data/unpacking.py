"""A packed file, unpacked in pieces. What unpacks to far more than any text does is refused, not read for days."""

from __future__ import annotations

import io

import pyarrow as pa

_FREELY = 64 << 20  # bytes that any file may unpack to
_MOST_TIMES = 200  # text packs to a third or a tenth, the same page again and again to a hundredth


class Unpacked(io.RawIOBase):
    """The bytes that a gzip or zstd file holds, or those of a file that is not packed, from its start on.

    Raises:
        OSError: without a number, while reading: the file is damaged, or unpacks to more than text does.
    """

    def __init__(self, file: pa.NativeFile, compression: str | None):
        super().__init__()
        self._file = file
        self._stream = file if compression is None else pa.CompressedInputStream(file, compression)
        self._is_packed = compression is not None
        self._size = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """So many of the next bytes, or fewer; none at the end."""
        data: bytes = self._stream.read(size if size >= 0 else _FREELY)
        self._size += len(data)
        if self._is_packed and self._size > _FREELY and self._size > _MOST_TIMES * self.packed():
            raise OSError(f"it unpacks to more than {_MOST_TIMES} times its size, as no text does")
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As `io.BufferedReader` asks for them."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def packed(self) -> int:
        """How many bytes of the file, as it is packed, have been read."""
        return int(self._file.tell())
