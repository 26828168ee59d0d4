"""Cleaned documents on disk: one Parquet file a collection, read back in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from azneobert.data.cleaning import HASH_BYTES, Document
from azneobert.errors import DataError

SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("hash", pa.binary(HASH_BYTES)), ("validation", pa.bool_())]
)
_ROWS_PER_GROUP = 4096


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents to a Parquet file; it appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        group: list[dict[str, object]] = []
        for document in documents:
            group.append(vars(document))
            if len(group) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group = []
        writer.write_table(pa.Table.from_pylist(group, SCHEMA))
    partial.rename(path)


def read_texts(path: Path, duplicates: Path, *, validation: bool) -> Iterator[list[str]]:
    """The texts of one side of the split, a batch at a time, without those that `duplicates` strikes out."""
    struck = read_duplicates(duplicates)
    first = 0
    for batch in _open(path).iter_batches(_ROWS_PER_GROUP, columns=["text", "validation"]):
        keep = np.asarray(batch.column("validation")) == validation
        inside = struck[(struck >= first) & (struck < first + len(keep))]
        keep[inside - first] = False
        first += len(keep)
        yield batch.column("text").filter(pa.array(keep)).to_pylist()


def find_duplicates(paths: Iterable[Path]) -> Iterator[np.ndarray]:
    """For each file in turn, the indices (int64) of documents whose text an earlier file already holds.

    The memory is that of a set of 16-byte hashes: 1.1 GB for 12 million documents.
    """
    seen: set[bytes] = set()
    for path in paths:
        hashes = _open(path).read(columns=["hash"]).column("hash").to_pylist()
        yield np.asarray([i for i, digest in enumerate(hashes) if digest in seen], dtype=np.int64)
        seen.update(hashes)


def read_duplicates(path: Path) -> np.ndarray:
    """The indices of the documents of one collection that other collections already hold."""
    try:
        return np.load(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `dvc repro deduplicate` writes it") from None


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `dvc repro ingest` writes it") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); delete it and run `dvc repro ingest`") from None
