"""Exact duplicates over all collections: found by sorting the documents' content hashes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from azneobert.data.documents import count_documents, parts, read_column, read_hashes, split_by_part


@dataclass(frozen=True)
class Duplicates:
    """What a collection loses: indices (int64, ascending), split by where the kept copy stands."""

    within: np.ndarray
    across: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """Every index that goes, ascending."""
        return np.sort(np.concatenate([self.within, self.across]))


def find_duplicates(folders: Iterable[Path]) -> list[Duplicates]:
    """For each collection, the documents whose text occurs earlier: in the same collection or in one before it.

    The memory is 16 bytes a document for its hash and some 50 more while they are sorted.
    """
    hashes = [np.concatenate([read_hashes(part) for part in parts(folder)]) for folder in folders]
    sizes = [len(collection) for collection in hashes]
    everything = np.concatenate(hashes)
    del hashes
    first, repeated = _repeats(everything)
    starts = np.cumsum([0, *sizes])
    found = []
    for start, end in itertools.pairwise(starts.tolist()):
        inside = (repeated >= start) & (repeated < end)
        across = first[inside] < start
        found.append(Duplicates(*(np.sort(repeated[inside][chosen] - start) for chosen in (~across, across))))
    return found


@dataclass(frozen=True)
class DuplicateIds:
    """How many documents of a collection bear the id of an earlier one, and up to three such ids."""

    count: int
    examples: list[str]


def find_duplicate_ids(folder: Path) -> DuplicateIds:
    """The ids that a collection uses more than once, found by sorting 8-byte hashes of them.

    Two ids with the same hash would count as equal; among 100 million ids the chance of that is one in 3,700. The
    memory is 8 bytes a document and some 16 more while they are sorted.
    """
    hashes = np.concatenate([_hash_ids(part) for part in parts(folder)])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    repeated = np.sort(order[1:][ordered[1:] == ordered[:-1]])
    del order, ordered
    _, places = np.unique(hashes[repeated], return_index=True)
    shown = repeated[np.sort(places)[:3]]
    examples = [
        identity
        for part, indices in split_by_part(folder, shown)
        if len(indices)
        for identity in read_column(part, "id").take(pa.array(indices)).to_pylist()
    ]
    return DuplicateIds(len(repeated), examples)


def _hash_ids(part: Path) -> np.ndarray:
    ids = read_column(part, "id").cast(pa.binary()).to_pylist()
    # Python's own hash is faster, but differs from process to process.
    return np.frombuffer(b"".join(hashlib.blake2b(i, digest_size=8).digest() for i in ids), dtype=np.uint64)


def remaining(folder: Path, duplicates: Duplicates) -> dict[str, int]:
    """Counts of the documents that remain in a collection: all, those held out, their words and characters."""
    counts = dict.fromkeys(("documents", "validation", "words", "characters"), 0)
    for part, struck in split_by_part(folder, duplicates.all):
        keep = np.ones(count_documents(part), dtype=bool)
        keep[struck] = False
        counts["documents"] += int(keep.sum())
        counts["validation"] += int(read_column(part, "validation").to_numpy()[keep].sum())
        counts["words"] += int(read_column(part, "words").to_numpy()[keep].sum())
        counts["characters"] += int(pc.utf8_length(read_column(part, "text")).to_numpy()[keep].sum())
    return counts


def _repeats(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each document that repeats an earlier one: the index of the first with its hash, and its own (both int64)."""
    order = np.argsort(hashes[:, 0], kind="stable")
    low = hashes[order, 0]
    same = np.flatnonzero(low[1:] == low[:-1])
    # Few documents agree in half of the hash: only those are sorted by all of it.
    candidates = order[np.unique(np.concatenate([same, same + 1]))]
    del order, low
    candidates = candidates[np.lexsort((candidates, hashes[candidates, 1], hashes[candidates, 0]))]
    sorted_hashes = hashes[candidates]
    new = np.ones(len(candidates), dtype=bool)
    new[1:] = (sorted_hashes[1:] != sorted_hashes[:-1]).any(axis=1)
    first = candidates[np.flatnonzero(new)][np.cumsum(new) - 1] if len(candidates) else candidates
    return first[~new], candidates[~new]
