"""Token stores of toy size, written by the real writers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from azneobert.data.store import ShardWriter, StoreMeta, assemble_store, shard_files


def write_store(
    path: Path,
    documents: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    tokenizer_sha256: str = "tokenizer",
    source_md5: str = "source",
) -> StoreMeta:
    """Write a store of these documents, through one shard."""
    with tempfile.TemporaryDirectory() as folder:
        shard = ShardWriter(Path(folder), "only")
        for ids in documents:
            shard.add(np.asarray(ids, dtype=np.int32), np.asarray([len(ids)]))
        shard.close()
        return assemble_store(
            path,
            [shard_files(Path(folder), "only")],
            vocab_size=vocab_size,
            tokenizer_sha256=tokenizer_sha256,
            source_md5=source_md5,
        )
