"""Cleaned documents on disk: a folder of Parquet parts for each collection, read back in batches."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from azneobert.errors import DataError

HASH_BYTES = 16
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("hash", pa.binary(HASH_BYTES)),
        ("validation", pa.bool_()),
        ("words", pa.int32()),
    ]
)
_RESTORE = "`azneobert cache check`, then `dvc repro deduplicate` makes it anew"
_CHECKSUM = b"azneobert.crc32"  # a key in the footer; the value is that of all other bytes
_CHECKSUM_BYTES = 8
_TAIL_BYTES = 8  # after a Parquet file's footer: 4 bytes of its length, 4 of a magic number
_PIECE_BYTES = 4 << 20
_ROWS = 1024  # an encoding takes some hundred bytes a token, so few documents at a time


@dataclass
class Documents:
    """Cleaned documents by column: ids, texts, content hashes, the side of the split, and words (by white space)."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    validation: list[bool] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


def write_part(folder: Path, number: int, documents: Documents) -> Path:
    """Write one part of a collection; it appears under its name only when it is whole and on the disk."""
    columns = [documents.ids, documents.texts, documents.hashes, documents.validation, documents.words]
    target = folder / part_name(number)
    partial = folder / f".{target.name}.partial"
    with partial.open("w+b") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=_ROWS)
            writer.add_key_value_metadata({_CHECKSUM.decode(): "0" * _CHECKSUM_BYTES})
        _seal(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    return target


def parts(folder: Path) -> list[Path]:
    """The parts of a collection, in order.

    Raises:
        DataError: there is none, or one is missing between others.
    """
    found = sorted(folder.glob("part-*.parquet"))
    if not found:
        raise DataError(f"{folder}: no documents there; `dvc repro deduplicate` brings them")
    for number, part in enumerate(found):
        if part.name != part_name(number):
            raise DataError(f"{folder / part_name(number)}: no such file; `dvc repro deduplicate` brings it")
    return found


def count_documents(part: Path) -> int:
    """How many documents a part holds, from its footer."""
    return int(_open(part).metadata.num_rows)


def read_column(part: Path, name: str) -> pa.ChunkedArray:
    """One column of a part."""
    with _reading(part):
        return _open(part).read(columns=[name]).column(name)


def read_hashes(part: Path) -> np.ndarray:
    """The content hashes of a part: uint64 (documents, 2)."""
    column = read_column(part, "hash").combine_chunks()
    raw = np.frombuffer(column.buffers()[1], dtype=np.uint64)
    return raw.reshape(-1, 2)[column.offset : column.offset + len(column)]


def read_texts(
    part: Path, struck: np.ndarray | None = None, share: float = 1.0
) -> Iterator[tuple[list[str], np.ndarray]]:
    """The texts of a part a batch at a time, and which of them are held out (bool).

    `struck` are indices (int64, ascending) of documents to leave out, counted from the part's first. A `share` below
    one keeps only a sample of the documents, chosen by their hashes.
    """
    first = 0
    hashes = read_hashes(part)[:, 1] if share < 1 else None
    with _reading(part):
        for batch in _open(part).iter_batches(_ROWS, columns=["text", "validation"]):
            end = first + len(batch)
            keep = np.ones(len(batch), dtype=bool) if hashes is None else hashes[first:end] < share * 2.0**64
            if struck is not None:
                keep[struck[(struck >= first) & (struck < end)] - first] = False
            first = end
            kept = batch.filter(pa.array(keep))
            yield kept.column("text").to_pylist(), kept.column("validation").to_numpy(zero_copy_only=False)


def training_texts(folder: Path, duplicates: np.ndarray, share: float = 1.0) -> Iterator[list[str]]:
    """The texts of a collection that training may see, or a sample of them, a batch at a time."""
    for part, struck in split_by_part(folder, duplicates):
        for texts, validation in read_texts(part, struck, share):
            yield [text for text, held_out in zip(texts, validation, strict=True) if not held_out]


def read_duplicates(path: Path) -> np.ndarray:
    """The indices (int64, ascending) of a collection's documents that repeat an earlier one."""
    try:
        return np.load(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `dvc repro deduplicate` writes it") from None
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({reason}); {_RESTORE}") from None


def split_by_part(folder: Path, indices: np.ndarray) -> Iterator[tuple[Path, np.ndarray]]:
    """Each part of a collection, with the indices (ascending) that fall into it, counted from its first document."""
    first = 0
    for part in parts(folder):
        size = count_documents(part)
        low, high = np.searchsorted(indices, [first, first + size])
        yield part, indices[low:high] - first
        first += size


def part_name(number: int) -> str:
    """The file name of a collection's n-th part."""
    return f"part-{number:05}.parquet"


def _open(path: Path) -> pq.ParquetFile:
    with _reading(path):
        state = path.stat()
        _check_whole(path, state.st_size, state.st_mtime_ns)
        return pq.ParquetFile(path, page_checksum_verification=True)  # not mapped: a cut file is no SIGBUS


@functools.lru_cache(maxsize=1 << 16)  # a part is opened for its count, its hashes and its texts
def _check_whole(path: Path, size: int, modified_ns: int) -> None:
    """Check what the checksums of the pages do not cover: their headers, and the footer, which says where they are.

    Some damaged footers make Arrow end the process, so this check comes before Arrow reads the footer.
    """
    with path.open("rb") as file:
        found, expected = _checksums(file)
    if found != expected:
        raise pa.ArrowInvalid("a byte has changed")


def _seal(file: BinaryIO) -> None:
    """Put the checksum of a part where its writer has left room for it."""
    place = _place_of_checksum(file)
    assert place is not None
    _, checksum = _checksums(file)
    file.seek(place)
    file.write(checksum)


def _checksums(file: BinaryIO) -> tuple[bytes, bytes]:
    """The checksum that a part states, and that of all its other bytes; both empty for an older part without one."""
    place = _place_of_checksum(file)
    if place is None:
        return b"", b""
    checksum, position = 0, file.seek(0)
    while piece := file.read(min(_PIECE_BYTES, place - position) if position < place else _PIECE_BYTES):
        checksum = zlib.crc32(piece, checksum)
        position += len(piece)
        if position == place:
            stated = file.read(_CHECKSUM_BYTES)
            position += len(stated)
    return stated, b"%08x" % checksum


def _place_of_checksum(file: BinaryIO) -> int | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    start = max(0, size - _TAIL_BYTES - int.from_bytes(file.read(4), "little"))
    file.seek(start)
    at = file.read().rfind(_CHECKSUM)
    # Between the key and the value stand the type of the field and its length, a byte each.
    return None if at < 0 else start + at + len(_CHECKSUM) + 2


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a part; for damage, Arrow raises ArrowInvalid or an OSError without errno."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `dvc repro deduplicate` brings it") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a whole Parquet file ({reason}); {_RESTORE}") from None
